"""Cutting a request's text into symbols, for models whose symbols are not characters."""

import asyncio
import time
from weakref import WeakKeyDictionary

from rill.serve.errors import RequestError
from rill.serve.models.model import Model
from rill.vocabulary import UnknownCharacterError, Vocabulary

# A bundle may come from anybody: the worst pattern takes 20 microseconds for a symbol, the worst symbols 80.
CUT_AT_ONCE = 32  # symbols
SLICE_SECONDS = 0.001  # in which the event loop can do nothing else

_slices: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


async def cut_text(text: str, model: Model, most: int, field: str) -> str:
    """Return `text` as coded text (`rill.serve.engine.text_codec`).

    However long it is, other calls wait for a slice at most, however many texts are cut. Raises RequestError if the
    text has more than `most` symbols, or a part that is no symbol.
    """
    if model.codec.is_text:
        return text
    if len(text) > most * model.codec.longest:
        raise _too_long(most, field)
    vocabulary, codec = model.bundle.vocabulary, model.codec
    try:
        ids, at = vocabulary.cut(text, 0, min(CUT_AT_ONCE, most + 1))
        parts, count = [codec.code(ids)], len(ids)
        turn = _slices.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        while at < len(text) and count <= most:
            async with turn:  # first come, first served: one slice for each turn of the event loop
                ids, at = _cut_slice(text, at, vocabulary, most + 1 - count)
                await asyncio.sleep(0)
            parts.append(codec.code(ids))
            count += len(ids)
    except UnknownCharacterError as error:
        raise RequestError(field, f"{field}: {error}") from None
    if count > most:
        raise _too_long(most, field)
    return "".join(parts)


def _cut_slice(text: str, begin: int, vocabulary: Vocabulary, most: int) -> tuple[list[int], int]:
    """Cut text from `begin` on for a moment: the ids, and where the next symbol begins."""
    slice_: list[int] = []
    at, until = begin, time.perf_counter() + SLICE_SECONDS
    while at < len(text) and len(slice_) < most and time.perf_counter() < until:
        ids, at = vocabulary.cut(text, at, min(CUT_AT_ONCE, most - len(slice_)))
        slice_ += ids
    return slice_, at


def _too_long(most: int, field: str) -> RequestError:
    return RequestError(field, f"{field} has more symbols of the model than the limit of this server, {most}")
