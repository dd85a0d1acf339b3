"""The requests of a load, drawn from a mix of lengths."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rill.bench.options import Mix
from rill.v1 import rill_pb2 as pb

POOL = 2**16  # random characters that prompts are cut from


class Workload:
    """Requests of a mix to `model`, all different; the same ones in the same order for equal arguments."""

    def __init__(self, model: str, mix: Mix, symbols: Sequence[str], top_p: float = 1.0) -> None:
        self.mix, self._model, self._top_p = mix, model, top_p
        self._random = np.random.default_rng(0)
        characters = [symbol for symbol in symbols if len(symbol) == 1]
        self._pool = "".join(characters[index] for index in self._random.integers(len(characters), size=POOL))
        self._seed = 0

    @property
    def mean_generated(self) -> float:
        """The average number of characters that a text of the mix generates."""
        return float(np.mean(_lengths(np.random.default_rng(1), self.mix.generated, 100_000)))

    def request(self) -> pb.GenerateRequest:
        """Return the next request."""
        prompt = int(_lengths(self._random, self.mix.prompt, 1)[0])
        begin = int(self._random.integers(POOL - prompt))
        self._seed += 1
        return pb.GenerateRequest(
            model=self._model,
            prompt=self._pool[begin : begin + prompt],
            max_chars=int(_lengths(self._random, self.mix.generated, 1)[0]),
            sampling=pb.Sampling(seed=self._seed, top_p=self._top_p),
        )


def plain(max_chars: int) -> Mix:
    """Return the mix that speeds are compared by: no prompt, and all texts of one length."""
    return Mix("plain", (0, 0), (max_chars, max_chars))


def _lengths(random: np.random.Generator, bounds: tuple[int, int], count: int) -> NDArray[np.float64]:
    shortest, longest = bounds
    if shortest == longest:
        return np.full(count, float(shortest))
    return np.rint(np.exp(random.uniform(np.log(shortest), np.log(longest), count)))
