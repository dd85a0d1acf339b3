"""Write a model's vocabulary as a Hugging Face tokenizer folder, for programs that count or send symbol ids.

    rill tokenizer tokenizers/demo --bundle bundles/demo
    rill tokenizer tokenizers/demo --target text.example.com:50051 --tls --model demo

`AutoTokenizer.from_pretrained(FOLDER)` reads it. A text is cut into its characters, and nothing is added to it. An
unknown character gets the id of the model's <unk>; if there is none, an id above all others, which servers refuse and
which decodes to nothing.
"""

import argparse
import errno
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from rill.cli.flags import add_connection, add_timeout, connected
from rill.cli.models import find_generator
from rill.client.sync import Client
from rill.files import naming, replaced
from rill.vocabulary import UNKNOWN, Vocabulary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("out", type=_folder, metavar="OUT", help="the folder to write; made if it does not exist")
    parser.add_argument("--force", action="store_true", help="replace another tokenizer that is in OUT")
    add_timeout(parser)
    add_connection(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status. Raises ServerError, ValueError and OSError."""
    with (
        connected(options) as connection,
        Client(**connection._asdict()) as client,
    ):
        info = find_generator(client.models(timeout=options.timeout), options.model)
    vocabulary = _vocabulary(info.name, tuple(info.vocabulary))
    files = {
        "tokenizer.json": _encoded(tokenizer(vocabulary)),
        "tokenizer_config.json": _encoded(tokenizer_config(vocabulary)),
    }
    is_written = _write(options.out, files, options.force)
    print(f"{options.out}: the {len(vocabulary):,} symbols of {info.name}{'' if is_written else ' (unchanged)'}")
    return 0


def tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return what `tokenizer.json` holds: a WordLevel model whose words are single characters."""
    ids = {symbol: index for index, symbol in enumerate(vocabulary.symbols)}
    ids.setdefault(UNKNOWN, len(ids))
    unknown_text = vocabulary.unknown_character or ""  # read as <unk> again; a model without one cannot read any
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],  # they would be found in texts before these are cut
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": r"[\s\S]"},  # any character, newlines too
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        # Without a decoder there would be a blank between two characters.
        "decoder": {"type": "Replace", "pattern": {"String": UNKNOWN}, "content": unknown_text},
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": UNKNOWN},
    }


def tokenizer_config(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return what `tokenizer_config.json` holds: the symbol that a new text begins behind, as begin and end."""
    start = vocabulary.symbols[vocabulary.start_id]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": start,
        "eos_token": start,
        **({"unk_token": UNKNOWN} if vocabulary.unknown_id is not None else {}),
        "split_special_tokens": True,  # a text that contains "<unk>" has five characters there
        "clean_up_tokenization_spaces": False,
    }


def _vocabulary(name: str, symbols: tuple[str, ...]) -> Vocabulary:
    try:
        return Vocabulary(symbols)
    except ValueError as error:
        raise ValueError(f"no tokenizer of this kind cuts texts as {name} does: {error}") from None


def _encoded(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()


def _folder(text: str) -> Path:
    """Return the path of a folder that exists or can be made. Raises ArgumentTypeError."""
    path = Path(text)
    try:
        if not text:
            raise OSError(errno.ENOENT, "the name is empty")
        if path.exists() and not path.is_dir():
            raise OSError(errno.ENOTDIR, "it is not a folder")
        if not path.exists() and not path.absolute().parent.is_dir():
            raise OSError(errno.ENOENT, f"there is no folder {path.parent}")
        parent = path if path.exists() else path.absolute().parent
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"{os.strerror(errno.EACCES)} in {parent}")
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text}: {error.strerror}") from None
    return path


def _write(folder: Path, files: dict[str, bytes], force: bool) -> bool:
    """Write the files, all or none into a new folder; tell whether there was anything to write. Raises ValueError."""
    if not folder.exists():
        _write_new(folder, files)
        return True
    differing = {name: data for name, data in files.items() if _read(folder / name) != data}
    for name in differing:
        if (folder / name).exists() and not force:
            raise ValueError(f"{folder / name} exists and is of another tokenizer; name another folder, or use --force")
    for name, data in differing.items():
        with replaced(folder / name) as file:
            file.write(data)
    return bool(differing)


def _write_new(folder: Path, files: dict[str, bytes]) -> None:
    aside = folder.absolute().parent / f".rill-{secrets.token_hex(8)}.tmp"
    with naming(folder):
        try:
            aside.mkdir()
            for name, data in files.items():
                (aside / name).write_bytes(data)
            aside.rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
