"""What is asked for: the texts of a load, drawn from a mix of lengths."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rill.v1 import rill_pb2 as pb

POOL = 2**16  # random characters that prompts are cut from


@dataclass(frozen=True)
class Mix:
    """Lengths, from the least to the most, both drawn so that each doubling is as likely as any other."""

    name: str
    prompt: tuple[int, int]
    generated: tuple[int, int]


MIXES = {
    mix.name: mix
    for mix in (
        Mix("mixed", (8, 256), (16, 1000)),
        Mix("prompt-heavy", (512, 512), (64, 64)),
        Mix("generate-heavy", (16, 16), (1000, 1000)),
    )
}


class Texts:
    """Requests of a mix to `model`, all different; the same ones in the same order for equal arguments."""

    def __init__(self, model: str, mix: Mix, symbols: Sequence[str], top_p: float = 1.0) -> None:
        self.mix, self._model, self._top_p = mix, model, top_p
        self._random = np.random.default_rng(0)
        characters = [symbol for symbol in symbols if len(symbol) == 1]
        self._pool = "".join(characters[index] for index in self._random.integers(len(characters), size=POOL))
        self._seed = 0

    @property
    def mean_generated(self) -> float:
        """Characters that a text of the mix generates, on average."""
        return float(np.mean(_lengths(np.random.default_rng(1), self.mix.generated, 100_000)))

    def request(self) -> pb.GenerateRequest:
        """The next one."""
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
    """Texts without a prompt, all of one length: what speeds are compared by."""
    return Mix("plain", (0, 0), (max_chars, max_chars))


def _lengths(random: np.random.Generator, bounds: tuple[int, int], count: int) -> NDArray[np.float64]:
    least, most = bounds
    if least == most:
        return np.full(count, float(least))
    return np.rint(np.exp(random.uniform(np.log(least), np.log(most), count)))
