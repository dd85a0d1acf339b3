"""Vocabularies: of a file in JSON or pickle, and those that lie in a checkpoint beside the weights.

A vocabulary is a list of symbols in id order, a string of characters, {symbol: id}, {id: symbol} or one dict of both;
it may be inside another object, as in the JSON files of torch-rnn and of tokenizers.
"""

import json
import math
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rill.export.errors import ForeignError
from rill.export.foreign.checkpoints import CheckpointError, read_checkpoint, texts_of
from rill.export.foreign.pickles import Instance
from rill.export.jobs import CHARACTERS_ONLY, Symbols
from rill.train.errors import TrainError
from rill.train.text.tokenizers import tokenizer_of
from rill.vocabulary import CHARACTERS, UNKNOWN, Vocabulary

_FROM_1 = ("idx_to_token", "token_to_idx")  # torch-rnn's, for Lua, where arrays begin at 1
_VOCABULARY_NAME = re.compile("vocab|char|alphabet|symbol|letter|token|itos|idx|index")
_MOST_VALUES, _MOST_LEVELS = 1_000_000, 12  # that are looked at


class FoundVocabulary(NamedTuple):
    """Symbols in id order, and where they were found."""

    symbols: tuple[str, ...]
    where: str


def load_vocabulary_file(path: str | Path, how: Symbols = CHARACTERS_ONLY) -> Vocabulary:
    """Read a vocabulary from JSON, or from a pickle or a torch.save file, nothing of which runs.

    Raises ForeignError naming the first wrong position.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ForeignError(f"{path} cannot be read: {error.strerror}") from None
    if data[:1] == b"\x80" or data[:2] == b"PK":
        try:
            content = read_checkpoint(path)
        except CheckpointError as error:
            raise ForeignError(f"{path} {error}") from None
    else:
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ForeignError(
                f"{path} is not JSON: {error}; json.dump(list_of_characters, file) writes what is read here"
            ) from None
    return vocabulary_of(content, str(path), how)


def vocabulary_of(content: object, source: str, how: Symbols = CHARACTERS_ONLY) -> Vocabulary:
    """Make a vocabulary of `content`, which is one or has one inside. Raises ForeignError naming a wrong symbol."""
    tokenizer, special = _tokenizer(how.tokenizer), {UNKNOWN, how.start, *how.ends}
    inside = [] if _is_vocabulary(content) else _different(find_vocabularies(content))
    if len(inside) > 1:
        places = " and ".join(f"{source}{found.where}" for found in inside[:3])
        raise ForeignError(f"{places} are different vocabularies; give a file with one of them")
    symbols = list(inside[0].symbols) if inside else _in_id_order(content, source)
    first: dict[str, int] = {}
    for position, given in enumerate(symbols):
        what = f"{source}: {_shown(given)} at position {position}"
        if not isinstance(given, str):
            raise ForeignError(f"{what} is not a string")
        symbol = UNKNOWN if how.unknown and given == how.unknown else given
        if len(symbol) != 1 and (not symbol or (tokenizer == CHARACTERS and symbol not in special)):
            raise ForeignError(f"{what} is not one character; {_instead_of(symbol)}")
        if "\ud800" <= symbol <= "\udfff":
            raise ForeignError(f"{what} is half a surrogate pair, which cannot occur in a text")
        if first.setdefault(symbol, position) != position:
            raise ForeignError(f"{what} is already at position {first[symbol]}")
    if not first:
        raise ForeignError(f"{source} has no symbols")
    if how.unknown and UNKNOWN not in first:
        raise ForeignError(f"{source}: the unknown symbol {how.unknown!r} is not in the vocabulary")
    try:
        return Vocabulary(tuple(first), tokenizer, how.start, how.ends)
    except ValueError as error:
        raise ForeignError(f"{source}: {error}") from None


def _tokenizer(word: str) -> str:
    """The tokenizer of a vocabulary. Raises ForeignError for a wrong `word`."""
    try:
        return tokenizer_of(word)
    except TrainError as error:
        raise ForeignError(str(error)) from None


def find_vocabularies(content: object) -> list[FoundVocabulary]:
    """The vocabularies inside `content`, dicts, lists and objects at any depth; the same one perhaps several times."""
    found = []
    for where, name, value in _walk(content):
        if isinstance(value, str) and not (isinstance(name, str) and _VOCABULARY_NAME.search(name.lower())):
            continue  # any word without a repeated letter
        if (symbols := _characters(_from_0(value) if name in _FROM_1 else value)) and len(symbols) > 1:
            found.append(FoundVocabulary(symbols, where))
    return found


def choose_vocabulary(found: Sequence[FoundVocabulary], symbols: int, source: str) -> FoundVocabulary:
    """The only vocabulary of so many symbols in a checkpoint. Raises ForeignError."""
    fitting = _different([each for each in found if len(each.symbols) == symbols])
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        places = " and ".join(f"{source}{each.where}" for each in fitting[:3])
        raise ForeignError(
            f"{places} are different vocabularies of {symbols} symbols; write the right one to a JSON file, "
            "and give it with --vocabulary"
        )
    others = ", ".join(f"{len(each.symbols)} at {each.where}" for each in _different(found)[:5])
    seen = f"vocabularies of other sizes: {others}" if others else "no vocabulary"
    raise ForeignError(
        f"{source} has a model of {symbols} symbols and {seen}; give the characters in id order with --vocabulary "
        "FILE.json"
    )


def _different(found: Sequence[FoundVocabulary]) -> list[FoundVocabulary]:
    first: dict[tuple[str, ...], FoundVocabulary] = {}
    for each in found:
        first.setdefault(each.symbols, each)
    return list(first.values())


def _is_vocabulary(content: object) -> bool:
    """Whether `content` itself is meant to be a vocabulary, right or wrong."""
    if not isinstance(content, Mapping):
        return not isinstance(content, Instance)
    return bool(content) and (
        all(_is_whole(value) for value in content.values())
        or all(isinstance(value, str) and _id_of_key(key) is not None for key, value in content.items())
        or _has_both_ways(content)
    )


def _has_both_ways(content: Mapping[object, object]) -> bool:
    """Whether `content` maps symbols to ids and these ids to the symbols, as the vocabulary of REINVENT does."""
    return all(
        (isinstance(key, str) and _is_whole(value)) or (type(key) is int and isinstance(value, str))
        for key, value in content.items()
    ) and all(content.get(value) == key for key, value in content.items())


def _in_id_order(content: object, source: str) -> Sequence[object]:
    """The symbols of a list, a string or a dict by id. Raises ForeignError for ids that are not 0 to V - 1."""
    if isinstance(content, str):
        return list(content)
    if isinstance(content, Sequence):
        return content
    if not (isinstance(content, Mapping) and _is_vocabulary(content)):
        keys = list(content)[:3] if isinstance(content, Mapping) else []
        shown = f"an object with {', '.join(map(_shown, keys))}" if keys else _shown(content)
        raise ForeignError(
            f"{source} must hold the characters in id order, as a list, a string, {{character: id}} or "
            f"{{id: character}}, not {shown}"
        )
    pairs = _pairs(content)
    by_id: dict[int, object] = {}
    for symbol, index in pairs:
        if by_id.setdefault(index, symbol) != symbol:
            raise ForeignError(f"{source}: {_shown(by_id[index])} and {_shown(symbol)} both have the id {index}")
    if list(range(len(by_id))) == sorted(by_id):
        return [by_id[index] for index in range(len(by_id))]
    lowest, highest = min(by_id), max(by_id)
    if lowest < 0:
        raise ForeignError(f"{source}: {_shown(by_id[lowest])} has the id {lowest}; ids are 0 to V - 1")
    missing = next(index for index in range(highest) if index not in by_id)
    raise ForeignError(
        f"{source}: its ids are {lowest} to {highest}, but no symbol has the id {missing}; if the model has a row for "
        'it (padding, for example), give that id a name, such as "<pad>", and say --end "<pad>"; if not, number the '
        "symbols from 0, as the model's rows are"
    )


def _from_0(content: object) -> object:
    """Ids from 0 instead of 1, as {character: id}."""
    if isinstance(content, Mapping) and _is_vocabulary(content):
        pairs = _pairs(content)
        if min(index for _, index in pairs) == 1:
            return {symbol: index - 1 for symbol, index in pairs if isinstance(symbol, str)}
    return content


def _pairs(content: Mapping[object, object]) -> list[tuple[object, int]]:
    """{character: id} or {id: character} as pairs of symbol and id."""
    if _has_both_ways(content):
        return [(symbol, int(index)) for symbol, index in content.items() if isinstance(symbol, str)]  # type: ignore[call-overload]
    if all(_is_whole(value) for value in content.values()):
        return [(symbol, int(index)) for symbol, index in content.items()]  # type: ignore[call-overload]
    return [(symbol, index) for key, symbol in content.items() if (index := _id_of_key(key)) is not None]


def _shown(value: object) -> str:
    """A value in a message: short, whatever it is."""
    if isinstance(value, str | bytes):
        return f"{value[:40]!r}"
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**64):
        return str(value)
    return f"a {type(value).__name__}"


def _is_whole(value: object) -> bool:
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    return type(value) is int and abs(value) < 2**31


def _id_of_key(key: object) -> int | None:
    """An id as a key: in JSON it is a string."""
    if type(key) is int:
        return key
    return int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10 else None


def _characters(value: object) -> tuple[str, ...] | None:
    """`value` as symbols in id order, if it is a whole vocabulary of characters."""
    try:
        if isinstance(value, list | tuple):
            symbols = list(value) if value and isinstance(value[0], str) else []
        elif isinstance(value, str) or (isinstance(value, Mapping) and _is_vocabulary(value)):
            symbols = list(_in_id_order(value, ""))
        else:
            return None
    except ForeignError:
        return None
    texts = [symbol for symbol in symbols if isinstance(symbol, str)]
    single = sum(len(symbol) == 1 for symbol in texts)
    # Words and flags are not characters; but special symbols may be among these, and are named later.
    if len(texts) < len(symbols) or single <= len(symbols) / 2 or len(set(texts)) < len(texts):
        return None
    return tuple(texts)


def _walk(content: object) -> Iterator[tuple[str, object, object]]:
    """All values inside `content`, each once: the way to them (`['key']`, `.attribute`), the last key, the value."""
    waiting: deque[tuple[str, object, object, int]] = deque([("", None, content, 0)])
    seen: set[int] = set()
    while waiting and len(seen) < _MOST_VALUES:
        where, name, value, level = waiting.popleft()
        if isinstance(value, str):
            yield where, name, value
            continue
        if not isinstance(value, Mapping | Instance | list | tuple) or id(value) in seen or level > _MOST_LEVELS:
            continue
        seen.add(id(value))
        yield where, name, value
        inside: list[tuple[str, object, object]] = []
        if isinstance(value, Mapping):
            inside = [(f"[{_shown(key)}]", key, each) for key, each in value.items()]
        elif isinstance(value, Instance) and (texts := texts_of(value)):
            inside = [("", name, texts)]
        elif isinstance(value, Instance):
            if value.path.rpartition(".")[2] in {"set", "frozenset"}:
                continue  # its order is not that of the ids
            inside = [(f".{key}"[:40], key, each) for key, each in value.attributes.items() if isinstance(key, str)]
            inside += [("", name, each) for each in (value.entries, value.items, value.arguments)]
        elif len(value) < 1000:  # not a list of numbers
            inside = [(f"[{index}]", name, each) for index, each in enumerate(value) if not isinstance(each, str)]
        waiting.extend((where + step, key, each, level + 1) for step, key, each in inside)


def _instead_of(symbol: str) -> str:
    """What to write for a symbol that is not one character."""
    if symbol.strip("<>[]{}|_ ").lower() in {"unk", "unknown", "oov"}:
        return f"--unknown {symbol!r} says that it stands for unknown characters: it is read and never generated"
    if not symbol:
        return "a symbol cannot be empty"
    if symbol[:1] + symbol[-1:] in ("<>", "[]") and symbol.strip("<>[]/_ ").isalpha():
        return "--start or --end says that it is special; --tokenizer longest, that it is part of texts"
    return "give --tokenizer longest or another one that makes symbols of several characters"
