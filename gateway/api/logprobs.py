"""Log-probabilities as JSON, in OpenAI's form for completions and in vLLM's for prompts."""

import math
from collections.abc import Iterable, Sequence
from json.encoder import encode_basestring_ascii as quoted

from rill.v1 import rill_pb2 as pb
from rill.vocabulary import Vocabulary

LOWEST = -9999.0  # stands for minus infinity, which JSON lacks, as with vLLM


class LogprobLists:
    """The four lists of OpenAI's form, as JSON texts: a long prompt would be ten times as large in objects.

    Each symbol has the one that was chosen and at most `count` alternatives; offsets are in code points of the choice's
    text.
    """

    def __init__(self, count: int, offset: int = 0) -> None:
        self._count, self._offset = count, offset
        self._tokens: list[str] = []
        self._logprobs: list[str] = []
        self._top: list[str] = []
        self._offsets: list[str] = []

    def add(self, entries: Iterable[pb.CharLogprob]) -> None:
        """Append the next symbols."""
        for entry in entries:
            self._add(entry.character, entry)
            self._offset += len(entry.character)

    def add_special(self, symbol: str, entry: pb.CharLogprob | None) -> None:
        """Append a start or end symbol, which has no place in the text."""
        self._add(symbol, entry or pb.CharLogprob(logprob=math.nan))

    def _add(self, symbol: str, entry: pb.CharLogprob) -> None:
        character, logprob = quoted(symbol), number(entry.logprob)
        self._tokens.append(character)
        self._logprobs.append(logprob)
        self._offsets.append(str(self._offset))
        if logprob == "null":
            self._top.append("null")
            return
        top = {quoted(other.character): number(other.logprob) for other in entry.alternatives[: self._count]}
        top[character] = logprob
        self._top.append(f"{{{','.join(f'{other}:{value}' for other, value in top.items())}}}")

    def extend(self, other: "LogprobLists") -> None:
        """Append the symbols of another."""
        self._tokens += other._tokens
        self._logprobs += other._logprobs
        self._top += other._top
        self._offsets += other._offsets

    @property
    def json(self) -> str:
        """The object."""
        tokens, logprobs, top = ",".join(self._tokens), ",".join(self._logprobs), ",".join(self._top)
        offsets = ",".join(self._offsets)
        return f'{{"tokens":[{tokens}],"token_logprobs":[{logprobs}],"top_logprobs":[{top}],"text_offset":[{offsets}]}}'


def prompt_logprobs(entries: Sequence[pb.CharLogprob], ids: Sequence[int], vocabulary: Vocabulary, count: int) -> str:
    """Return vLLM's list: for each symbol an object by ids, or null. The rank is null where it is not known."""
    return f"[{','.join(map(_ranked, entries, ids, [vocabulary] * len(ids), [count] * len(ids)))}]"


def _ranked(entry: pb.CharLogprob, given: int, vocabulary: Vocabulary, count: int) -> str:
    if (own := number(entry.logprob)) == "null":
        return "null"
    ranked = {
        vocabulary.id_of(other.character): (number(other.logprob), str(rank), quoted(other.character))
        for rank, other in enumerate(entry.alternatives, 1)
    }
    rank = ranked[given][1] if given in ranked else "null"
    shown = {given: (own, rank, quoted(entry.character)), **dict(list(ranked.items())[:count])}
    parts = (
        f'"{at}":{{"logprob":{value},"rank":{place},"decoded_token":{symbol}}}'
        for at, (value, place, symbol) in shown.items()
    )
    return f"{{{','.join(parts)}}}"


def number(logprob: float) -> str:
    """Return a log-probability as JSON: all its digits, null for NaN."""
    if math.isnan(logprob):
        return "null"
    return repr(max(logprob, LOWEST))
