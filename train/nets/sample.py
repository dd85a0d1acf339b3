"""Sampling, written plainly: the reference for the serving graph and the NumPy sampler.

Temperature, then top-k, top-p and min-p, each applied to the characters that the previous one kept, with ties kept
together; then the inverse of the cumulative distribution, in vocabulary order, at a given uniform number.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rill.train.nets.cells import State
from rill.train.nets.model import CharacterModel
from rill.vocabulary import Vocabulary


def choose(
    logits: Tensor,
    uniforms: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    never_ids: Sequence[int] = (),
    allowed: Tensor | None = None,
) -> Tensor:
    """Choose one character per row: ids (B,) int64 from logits (B, V) f32.

    uniforms (B,) f32 in [0, 1); temperature (B,), 0 = greedy: the first maximal index; top_k (B,) int64, 0 = off;
    top_p (B,) above 0, 1 or more = off; min_p (B,), 0 = off. None of `never_ids` is chosen, nor a symbol that
    is not `allowed` (B, V) bool, of which each row must have one. Probabilities are f32; their running sums are f64, so
    that the order of summation does not matter.
    """
    if never_ids:
        logits = logits.index_fill(1, torch.tensor(list(never_ids), device=logits.device), -torch.inf)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    greedy = temperature == 0
    scale = torch.where(greedy, 1.0, temperature)[:, None]  # (B, 1)
    shifted = logits - logits.max(dim=1, keepdim=True).values
    probability = torch.softmax(shifted / scale, dim=1).double()  # (B, V)

    top_k, top_p, min_p = top_k[:, None], top_p[:, None], min_p[:, None]
    more_probable, _ = _strictly_more_probable(probability)
    probability = _keep(probability, (top_k == 0) | (more_probable < top_k))
    _, mass_above = _strictly_more_probable(probability)
    probability = _keep(probability, (top_p >= 1) | (mass_above < top_p))
    kept = probability >= min_p * probability.max(dim=1, keepdim=True).values
    probability = _keep(probability, kept)

    cumulative = probability.cumsum(dim=1)
    beyond = cumulative > uniforms[:, None] * cumulative[:, -1:]
    last_kept = logits.shape[1] - 1 - (probability > 0).flip(1).int().argmax(dim=1)
    sampled = torch.where(beyond.any(dim=1), beyond.int().argmax(dim=1), last_kept)
    return torch.where(greedy, logits.argmax(dim=1), sampled)


def _strictly_more_probable(probability: Tensor) -> tuple[Tensor, Tensor]:
    """For each character, the number of strictly more probable ones, (B, V) int64, and their mass, (B, V) f64."""
    ascending = probability.sort(dim=1).values
    count = probability.shape[1] - torch.searchsorted(ascending, probability, right=True)
    mass_of_first = torch.nn.functional.pad(ascending.flip(1).cumsum(dim=1), (1, 0))  # (B, V + 1)
    return count, mass_of_first.gather(1, count)


def _keep(probability: Tensor, kept: Tensor) -> Tensor:
    """Set the probabilities (B, V) that are not `kept` to zero, and renormalize."""
    probability = torch.where(kept, probability, 0.0)
    return probability / probability.sum(dim=1, keepdim=True)


def uniforms_of_seed(seed: int, count: int) -> Tensor:
    """The first `count` uniform numbers of `seed`, (count,) f32: number i is for generated character i."""
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=seed)).random(count, dtype=np.float32))


@torch.no_grad()
def generate(
    model: CharacterModel,
    vocabulary: Vocabulary,
    prompt: str,
    length: int,
    temperature: float = 1.0,
    seed: int = 0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop: Callable[[], bool] | None = None,
) -> str:
    """Generate `length` symbols that continue `prompt`, which the model reads after its start symbol, if it has one.

    The text depends only on the arguments; the model should be in eval mode. The text ends earlier where the model
    chooses an end symbol, or if `stop` is true after a symbol. Raises UnknownCharacterError for a prompt with a
    character that the vocabulary lacks.
    """
    device = model.linear.weight.device
    tokens = torch.tensor([vocabulary.begin(vocabulary.encode(prompt))], device=device)  # (1, T)
    k = torch.tensor([top_k], device=device)
    t, p, m = torch.tensor([[temperature], [top_p], [min_p]], device=device)
    state: State | None = None
    ids = []
    for uniform in uniforms_of_seed(seed, length).to(device):
        logits, state = model(tokens, state)
        chosen = choose(logits[:, -1], uniform[None], t, k, p, m, vocabulary.never_ids)
        if int(chosen) in vocabulary.end_ids:
            break
        ids.append(int(chosen))
        tokens = chosen[:, None]
        if stop is not None and stop():
            break
    return vocabulary.decode(ids)
