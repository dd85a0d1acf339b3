"""The requests of a load, drawn from a mix of lengths."""

import random
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rill.bench.options import Mix
from rill.v1 import rill_pb2 as pb
from rill.vocabulary import UnknownCharacterError, Vocabulary

POOL = 2**16  # random symbols that prompts are cut from
MOST_STATES = 150  # of a constraint that is drawn
LONGEST_RUN = 12  # symbols of one class that follow each other in such a constraint
TRIES = 100  # for a prompt that can be cut into symbols, before a shorter one


class Workload:
    """Requests of a mix to `model`, all different; the same ones in the same order for equal arguments.

    Each has the next one of `constraints`, if there are any.
    """

    def __init__(
        self,
        model: str,
        mix: Mix,
        vocabulary: Vocabulary,
        top_p: float = 1.0,
        constraints: Sequence[pb.Constraint] = (),
    ) -> None:
        self.mix, self._model, self._vocabulary, self._top_p = mix, model, vocabulary, top_p
        self._constraints = constraints
        self._random = np.random.default_rng(0)
        special = {*vocabulary.never_ids, *vocabulary.end_ids}
        symbols = [symbol for index, symbol in enumerate(vocabulary.symbols) if index not in special]
        self._pool = [symbols[index] for index in self._random.integers(len(symbols), size=POOL)]
        self._seed = 0

    @property
    def mean_generated(self) -> float:
        """The average number of characters that a text of the mix generates."""
        return float(np.mean(_lengths(np.random.default_rng(1), self.mix.generated, 100_000)))

    def request(self) -> pb.GenerateRequest:
        """Return the next request."""
        prompt = self._prompt(int(_lengths(self._random, self.mix.prompt, 1)[0]))
        self._seed += 1
        constraint = self._constraints[self._seed % len(self._constraints)] if self._constraints else None
        return pb.GenerateRequest(
            model=self._model,
            prompt=prompt,
            max_chars=int(_lengths(self._random, self.mix.generated, 1)[0]),
            sampling=pb.Sampling(seed=self._seed, top_p=self._top_p, constraint=constraint),
        )

    def _prompt(self, length: int) -> str:
        """Return a random prompt of so many symbols; of fewer, where a pattern cuts none of that length."""
        while True:
            for _ in range(TRIES):
                begin = int(self._random.integers(POOL - length))
                text = "".join(self._pool[begin : begin + length])
                if self._is_cut(text):
                    return text
            length //= 2

    def _is_cut(self, text: str) -> bool:
        if self._vocabulary.are_characters:
            return True
        try:
            self._vocabulary.encode(text)
        except UnknownCharacterError:
            return False
        return True


def plain(max_chars: int) -> Mix:
    """Return the mix that speeds are compared by: no prompt, and all texts of one length."""
    return Mix("plain", (0, 0), (max_chars, max_chars))


def drawn_constraints(vocabulary: Vocabulary, count: int) -> list[pb.Constraint]:
    """Return different constraints that end no text; the same ones for equal arguments.

    Each is a list of runs of a class of symbols, again and again.
    """
    draw = random.Random(0)
    special = {*vocabulary.never_ids, *vocabulary.end_ids}
    symbols = [re.escape(symbol) for index, symbol in enumerate(vocabulary.symbols) if index not in special]
    found = []
    for _ in range(count):
        runs, states, most = [], 1, draw.randint(MOST_STATES // 5, MOST_STATES)
        while states + LONGEST_RUN <= most:
            length = draw.randint(2, LONGEST_RUN)
            some = draw.sample(symbols, draw.randint(max(len(symbols) // 8, 1), max(len(symbols) // 2, 1)))
            runs.append(f"(?:{'|'.join(some)}){{{length}}}")
            states += length
        found.append(pb.Constraint(regex=f"(?:{''.join(runs)})*", terminator=""))
    return found


def _lengths(random: np.random.Generator, bounds: tuple[int, int], count: int) -> NDArray[np.float64]:
    shortest, longest = bounds
    if shortest == longest:
        return np.full(count, float(shortest))
    return np.rint(np.exp(random.uniform(np.log(shortest), np.log(longest), count)))
