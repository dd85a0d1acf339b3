"""How a character is chosen from logits: the parameters, the uniforms and the NumPy reference.

The same choice is made in three places that must agree: here, in the serving graph (`rill.export.graphs.serving`) and
in PyTorch (`rill.train.nets.sample`). Standard library and NumPy only: the server imports this module too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

# Greedy is the limit of small temperatures: divided by this one, every logit below the maximum underflows to no mass.
GREEDY_TEMPERATURE = float(np.finfo(np.float32).tiny)


class SamplingError(ValueError):
    """A sampling parameter is out of range. `parameter` is its name."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(parameter, message)  # what a copy, in another process too, is made of
        self.parameter = parameter

    def __str__(self) -> str:
        return str(self.args[1])


@dataclass(frozen=True)
class Sampling:
    """How to choose characters. Raises SamplingError, which names the parameter, for a value out of range.

    `logit_bias` maps symbol ids to numbers that are added to their logits; -inf bans a symbol.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Written so that NaN fails every comparison and is refused.
        if not 0 <= self.temperature < math.inf:
            raise SamplingError("temperature", f"temperature must be a finite number >= 0, not {self.temperature}")
        if not self.top_k >= 0:
            raise SamplingError("top_k", f"top_k must be >= 0, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise SamplingError("top_p", f"top_p must be in (0, 1], not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise SamplingError("min_p", f"min_p must be in [0, 1], not {self.min_p}")
        for bias in self.logit_bias.values():
            if not bias < math.inf:
                raise SamplingError("logit_bias", f"a logit bias must be a finite number or -infinity, not {bias}")

    @property
    def filtered(self) -> bool:
        """Whether anything but the temperature influences the choice."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0 or bool(self.logit_bias)


def window_of(top_k: Ints, symbols: int) -> Ints:
    """The serving graph's `window`, int64 [1]: how many masses it sorts for rows with `top_k`, int64 [batch]."""
    return np.array([min(max(int(top_k.max()), 1), symbols)])


def uniforms(seed: int, start: int, count: int) -> Floats:
    """The values u[start : start + count] of a stream's uniforms, float32 in [0, 1).

    u is `numpy.random.Generator(numpy.random.Philox(key=seed)).random(dtype=float32)`. Philox makes blocks of four
    64-bit words, each word two float32, so `advance` jumps eight values at a time. Source: Salmon et al., Parallel
    random numbers: as easy as 1, 2, 3 (2011).
    """
    bits = np.random.Philox(key=seed)
    bits.advance(start // 8)
    return np.random.Generator(bits).random(start % 8 + count, dtype=np.float32)[start % 8 :]


class UniformSource:
    """`uniforms` without a new generator each time, which would ask the system for entropy that is not used."""

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._random = np.random.Generator(self._bits)
        self._state: Any = self._bits.state  # before the first value

    def draw(self, seed: int, start: int, count: int) -> Floats:
        """`uniforms(seed, start, count)`."""
        inner = self._state["state"]
        inner["key"][:] = seed, 0
        inner["counter"][0] = start // 8
        self._bits.state = self._state
        return self._random.random(start % 8 + count, dtype=np.float32)[start % 8 :]


def choose(
    logits: Floats,
    u: float,
    sampling: Sampling = Sampling(),
    never_ids: Sequence[int] = (),
    allowed: NDArray[np.bool_] | None = None,
) -> int:
    """The id that `sampling` chooses from one row of logits, float32 [vocab], with the uniform `u` in [0, 1).

    None of `never_ids` is chosen, nor a symbol that is not `allowed`, bool [vocab], of which there must be one.

    The plain reference for the serving graph (`rill.export.graphs.choice`): float32 in the order of the vocabulary, as
    there, but with top-p by sorting.
    """
    logits = logits.astype(np.float32, copy=True)
    for symbol, bias in sampling.logit_bias.items():
        logits[symbol] += np.float32(bias)
    logits[list(never_ids)] = -np.inf
    if allowed is not None:
        logits[~allowed] = -np.inf
    greedy = sampling.temperature == 0
    temperature = np.float32(GREEDY_TEMPERATURE if greedy else sampling.temperature)
    with np.errstate(over="ignore", under="ignore"):
        mass = np.exp((logits - logits.max()) / temperature)  # not normalised: the largest is 1
    mass[mass < threshold(mass, sampling)] = 0
    cumulative = np.cumsum(mass, dtype=np.float32)
    # The last sum exceeds u times itself for every float32 u < 1, so there is always a first sum that does.
    return int(np.argmax(cumulative > np.float32(0 if greedy else u) * cumulative[-1]))


def threshold(mass: NDArray[Any], sampling: Sampling) -> Any:
    """The smallest mass that top-k, top-p and min-p keep, of masses [vocab] whose largest is 1.

    Equal masses are kept or dropped together, so a threshold is enough.
    """
    ordered = -np.sort(-mass)
    # Fewer than k masses are strictly larger than the k-th largest.
    top_k = ordered[min(sampling.top_k or len(mass), len(mass)) - 1]
    cumulative = np.cumsum(np.where(ordered >= top_k, ordered, 0), dtype=mass.dtype)
    # The first mass whose sum reaches the goal.
    goal = mass.dtype.type(sampling.top_p) * cumulative[-1]
    top_p = ordered[int((cumulative[:-1] < goal).sum())] if sampling.top_p < 1 else 0
    return max(top_k, top_p, mass.dtype.type(sampling.min_p))
