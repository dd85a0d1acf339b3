"""Between the symbols of a model and the texts that its servers take."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rill.gateway.api.fields import shown
from rill.gateway.errors import ApiError
from rill.vocabulary import UnknownCharacterError, Vocabulary

TURN_SECONDS = 0.005  # for which a text is cut before other requests have their turn
# Symbols that are cut between two looks at the clock: each may take 100 microseconds to find.
CHARACTERS_AT_ONCE = 8192
SYMBOLS_AT_ONCE = 50


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt as a server reads it. `ids` are those of the symbols of `text`; None where nobody needs them.

    A list of ids may have had one before them that begins a text, and the id of an end symbol after them.
    """

    text: str
    ids: list[int] | None
    start: int | None = None
    end: int | None = None

    @property
    def given_ids(self) -> list[int]:
        """All ids, with those of the special symbols around the text."""
        before, after = ([] if special is None else [special] for special in (self.start, self.end))
        return before + (self.ids or []) + after

    @property
    def count(self) -> int:
        """The number of symbols of the text."""
        return len(self.text) if self.ids is None else len(self.ids)


async def read_prompt(
    name: str, given: str | list[int], vocabulary: Vocabulary, needs_ids: bool, may_end: bool
) -> ReadPrompt:
    """Read a prompt, a text or a list of ids; `may_end` allows an end symbol as the last. Raises ApiError."""
    if isinstance(given, str):
        if vocabulary.are_characters and not needs_ids:
            return ReadPrompt(given, None)
        return ReadPrompt(given, await ids_of(name, given, vocabulary, "prompt"))
    check_ids(name, given, vocabulary, "prompt")
    start = end = None
    ids = given
    if ids and _begins(ids, vocabulary, may_end):
        start, ids = ids[0], ids[1:]
    if may_end and ids and ids[-1] in vocabulary.end_ids:
        end, ids = ids[-1], ids[:-1]
    _check_special(name, ids, 0 if start is None else 1, vocabulary, may_end)
    text = text_of(ids, vocabulary)
    if not vocabulary.are_characters:
        await _check_cut(name, ids, 0 if start is None else 1, text, vocabulary)
    return ReadPrompt(text, ids, start, end)


def _begins(ids: Sequence[int], vocabulary: Vocabulary, is_scored: bool) -> bool:
    """Tell whether the first id only says that a new text begins.

    lm-eval has the end symbol, behind which one begins, in the place of a start symbol whose id is 0.
    """
    if not vocabulary.start:
        return False
    return ids[0] == vocabulary.start_id or (is_scored and len(ids) > 1 and ids[0] in vocabulary.end_ids)


def _check_special(name: str, ids: Sequence[int], shift: int, vocabulary: Vocabulary, may_end: bool) -> None:
    special = {*vocabulary.end_ids, *([vocabulary.start_id] if vocabulary.start else [])}
    if special.isdisjoint(ids):
        return
    at, one = next((at, one) for at, one in enumerate(ids) if one in special)
    if one in vocabulary.end_ids:
        last = "it can only be the last" + ("" if may_end else " of a prompt that is scored (echo with logprobs)")
        what = f"the end symbol {shown(vocabulary.symbols[one])}: {last}"
    else:
        what = f"the start symbol {shown(vocabulary.symbols[one])}: it can only be the first"
    raise ApiError(400, f"{name}[{at + shift}] is {one}, {what}", "prompt")


async def _check_cut(name: str, ids: Sequence[int], shift: int, text: str, vocabulary: Vocabulary) -> None:
    """Raise ApiError unless a server cuts the text into these ids."""
    try:
        found = await _cut(text, vocabulary)
    except UnknownCharacterError as error:
        raise ApiError(400, f"{name}: the text of these ids cannot be cut into symbols: {error}", "prompt") from None
    if found == ids:
        return
    at = next((at for at, pair in enumerate(zip(found, ids, strict=False)) if pair[0] != pair[1]), len(found))
    symbols = vocabulary.symbols
    other = f"{found[at]} ({shown(symbols[found[at]])})" if at < len(found) else "none"
    given = f"{name}[{at + shift}] is {ids[at]} ({shown(symbols[ids[at]])})"
    raise ApiError(400, f"{given}, but the text of these ids is read as {other} there", "prompt")


def text_of(ids: Sequence[int], vocabulary: Vocabulary) -> str:
    """Return the text that a server reads as these ids; start and end symbols have none."""
    unknown, unknown_id = vocabulary.unknown_character, vocabulary.unknown_id
    if unknown is None or unknown_id not in ids:
        return vocabulary.decode(ids)
    return "".join(unknown if one == unknown_id else vocabulary.decode((one,)) for one in ids)


def check_ids(name: str, ids: Sequence[int], vocabulary: Vocabulary, field: str) -> None:
    """Raise ApiError for what is not the id of a symbol."""
    if ids and not 0 <= min(ids) <= max(ids) < len(vocabulary):
        at, one = next((at, one) for at, one in enumerate(ids) if not 0 <= one < len(vocabulary))
        last = len(vocabulary) - 1
        raise ApiError(400, f"{name}[{at}] is {shown(one)}; the ids of the model's symbols are 0 to {last}", field)


async def ids_of(name: str, text: str, vocabulary: Vocabulary, field: str) -> list[int]:
    """Return the ids of a text's symbols, and let others have their turn. Raises ApiError for what cannot be cut."""
    try:
        return await _cut(text, vocabulary)
    except UnknownCharacterError as error:
        raise ApiError(400, f"{name}: {error}", field) from None


async def _cut(text: str, vocabulary: Vocabulary) -> list[int]:
    most = CHARACTERS_AT_ONCE if vocabulary.are_characters else SYMBOLS_AT_ONCE
    ids: list[int] = []
    at, due = 0, time.perf_counter() + TURN_SECONDS
    while at < len(text):
        more, at = vocabulary.cut(text, at, most)
        ids += more
        if time.perf_counter() > due:
            await asyncio.sleep(0)
            due = time.perf_counter() + TURN_SECONDS
    return ids


def lengths_of(ids: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """Return how many code points each of these symbols of a text has: one that the model does not know has one."""
    unknown = vocabulary.unknown_id
    return [1 if one == unknown else len(vocabulary.symbols[one]) for one in ids]


def ids_of_symbols(text: str, lengths: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """Return the ids of the symbols of a generated text, which need not be those that it would be cut into."""
    if not lengths:
        return vocabulary.encode(text)
    ids, at = [], 0
    for length in lengths:
        found = vocabulary.id_of(text[at : at + length])
        if found is not None:  # else another model has generated it
            ids.append(found)
        at += length
    return ids


def biases_of(biases: Mapping[int, float], vocabulary: Vocabulary) -> dict[str, float]:
    """Return biases by symbol; those of symbols that are never generated are left out. Raises ApiError."""
    symbols, never = vocabulary.symbols, vocabulary.never_ids
    for one in biases:
        if one >= len(symbols):
            message = f"logit_bias: {one} is not the id of a symbol; those of the model are 0 to {len(symbols) - 1}"
            raise ApiError(400, message, "logit_bias")
    return {symbols[one]: bias for one, bias in biases.items() if one not in never}


def special_id(text: str, vocabulary: Vocabulary) -> int | None:
    """Return the id of a start or end symbol that is the whole text, as tokenizers of others read special symbols."""
    return vocabulary.id_of(text) if text and text in (vocabulary.start, *vocabulary.ends) else None
