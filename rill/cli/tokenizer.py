"""Write a model's vocabulary as a Hugging Face tokenizer folder, for programs that count or send symbol ids.

    rill tokenizer tokenizers/demo --bundle bundles/demo
    rill tokenizer tokenizers/demo --target text.example.com:50051 --tls --model demo

`AutoTokenizer.from_pretrained(FOLDER)` reads it. A text is cut into the model's symbols, and nothing is added to it:
servers read the start symbol by themselves. An unknown character gets the id of the model's <unk>; if there is none, an
id above all others, which servers refuse and which decodes to nothing. Start and end symbols decode to nothing, too.
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
from rill.symbol_patterns import compile_pattern, translate
from rill.v1 import rill_pb2 as pb
from rill.vocabulary import CHARACTERS, MAX_SYMBOL, REGEX, UNKNOWN, Vocabulary


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
    vocabulary = _vocabulary(info)
    try:
        written = tokenizer(vocabulary)
    except ValueError as error:
        raise ValueError(f"no tokenizer of this kind cuts texts as {info.name} does: {error}") from None
    files = {
        "tokenizer.json": _encoded(written),
        "tokenizer_config.json": _encoded(tokenizer_config(vocabulary)),
    }
    is_written = _write(options.out, files, options.force)
    print(f"{options.out}: the {len(vocabulary):,} symbols of {info.name}{'' if is_written else ' (unchanged)'}")
    return 0


def tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return what `tokenizer.json` holds: a WordLevel model whose words are the symbols that a text is cut into.

    Raises ValueError for a pattern that cannot be written for it.
    """
    names = _names(vocabulary)
    ids = {name: index for index, name in enumerate(names)}
    ids.setdefault(UNKNOWN, len(ids))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],  # they would be found in texts before these are cut
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": _pattern(vocabulary)},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": _decoder(vocabulary, names),
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": UNKNOWN},
    }


def _names(vocabulary: Vocabulary) -> list[str]:
    """Return what the symbols are called in the folder, by their ids.

    A start or end symbol that could be a part of a text gets another name, so that no text is cut into it.
    """
    names = list(vocabulary.symbols)
    special = [("end", one) for one in vocabulary.end_ids] + [("start", vocabulary.start_id)] * bool(vocabulary.start)
    for kind, one in special:
        if _may_be_cut(names[one], vocabulary):
            tries = (f"<{kind}{number}>" for number in ("", *range(2, 100)))
            free = (name for name in tries if name not in names and not _may_be_cut(name, vocabulary))
            names[one] = next(free, f"<{kind}>" * MAX_SYMBOL)  # longer than any symbol
    return names


def _may_be_cut(name: str, vocabulary: Vocabulary) -> bool:
    """Tell whether a text may have this part, symbol or not."""
    if len(name) == 1 or not vocabulary.tokenizer.startswith(REGEX):
        return len(name) == 1
    return compile_pattern(vocabulary.tokenizer.removeprefix(REGEX)).fullmatch(name) is not None


def _pattern(vocabulary: Vocabulary) -> str:
    """Return a regular expression of Oniguruma that matches the next symbol, or else one code point."""
    any_character = r"[\s\S]"  # newlines too
    if vocabulary.tokenizer.startswith(REGEX):
        if vocabulary.unknown_id is not None:
            raise ValueError(
                f"it cuts texts by a pattern and has {UNKNOWN}, so what matches but is not a symbol is {UNKNOWN} and a "
                "rest that is cut anew"
            )
        return f"{translate(vocabulary.tokenizer.removeprefix(REGEX), _spelled)}|{any_character}"
    longer = [symbol for symbol in vocabulary.text_symbols if len(symbol) > 1]
    return f"{_longest(longer)}|{any_character}" if longer else any_character


def _longest(symbols: list[str]) -> str:
    """Return a pattern of the longest of these symbols that fits: a tree of their characters."""
    tree: dict[str, Any] = {}
    for symbol in symbols:
        node = tree
        for character in symbol:
            node = node.setdefault(character, {})
        node[""] = {}
    return _branches(tree)


def _branches(node: dict[str, Any]) -> str:
    branches = [_branch(character, below) for character, below in node.items() if character]
    return f"(?:{'|'.join(branches)}){'?' if '' in node else ''}" if branches else ""


def _branch(character: str, node: dict[str, Any]) -> str:
    spelled = _spelled(ord(character))
    while len(node) == 1 and "" not in node:  # in a row: the depth of groups is limited
        ((character, node),) = node.items()
        spelled += _spelled(ord(character))
    return spelled + _branches(node)


def _spelled(code: int) -> str:
    """Return a code point as Oniguruma's patterns have it."""
    character = chr(code)
    return character if character.isascii() and character.isalnum() else f"\\x{{{code:x}}}"


def _escaped(text: str) -> str:
    return "".join(_spelled(ord(character)) for character in text)


def _decoder(vocabulary: Vocabulary, names: list[str]) -> dict[str, Any]:
    """Return a decoder. Without one there would be a blank between two symbols."""
    unknown_text = vocabulary.unknown_character or ""  # read as <unk> again; a model without one cannot read any
    special = dict.fromkeys(names[one] for one in (*vocabulary.end_ids, vocabulary.start_id))
    hidden = list(special) if vocabulary.start else [names[one] for one in vocabulary.end_ids]
    if vocabulary.are_characters and not hidden:
        return {"type": "Replace", "pattern": {"String": UNKNOWN}, "content": unknown_text}
    contents = {UNKNOWN: unknown_text, **dict.fromkeys(hidden, "")}
    replacements = [
        {"type": "Replace", "pattern": {"Regex": rf"\A{_escaped(name)}\z"}, "content": content}
        for name, content in contents.items()
    ]
    return {"type": "Sequence", "decoders": replacements}


def tokenizer_config(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return what `tokenizer_config.json` holds: the symbol that a new text begins behind, and the one that ends it.

    A model without end symbols has the first one in their place.
    """
    names = _names(vocabulary)
    start = names[vocabulary.start_id]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": start,
        "eos_token": names[vocabulary.end_ids[0]] if vocabulary.ends else start,
        **({"unk_token": UNKNOWN} if vocabulary.unknown_id is not None else {}),
        "split_special_tokens": True,  # a text that contains "<unk>" has five characters there
        "clean_up_tokenization_spaces": False,
    }


def _vocabulary(info: pb.ModelInfo) -> Vocabulary:
    try:
        return Vocabulary(
            tuple(info.vocabulary), info.tokenizer or CHARACTERS, info.start_symbol, tuple(info.end_symbols)
        )
    except ValueError as error:
        raise ValueError(f"no tokenizer of this kind cuts texts as {info.name} does: {error}") from None


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
