"""Comparison by characters: the choices of a serving graph against those of the reference from the same state.

The reference's logits are those of one step from the graph's own state, so a difference is meaningful however much a
trained network amplifies roundings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import onnxruntime as ort
import torch

from rill.bundle import Bundle
from rill.export.errors import ParityError
from rill.export.parity.compare import (
    Array,
    Named,
    decode_feeds,
    random_states,
    random_text,
    row_maxima,
    rows_beyond,
    run_graph,
    side_by_side,
    take_rows,
    zero_states,
)
from rill.export.parity.reference import Reference, next_states
from rill.sampling import Sampling, threshold, uniforms, window_of
from rill.train.nets.sample import choose
from rill.vocabulary import Vocabulary

NEAR = 1e-4  # a choice this close to its boundary may fall to either side
CHARACTERS = 2000
CHOICES = 600


@dataclass(frozen=True)
class Graph:
    """A serving graph of a bundle, and its reference."""

    name: str
    session: ort.InferenceSession
    bundle: Bundle
    reference: Reference

    @property
    def inputs(self) -> set[str]:
        """The names of the graph's inputs."""
        return {value.name for value in self.session.get_inputs()}

    def run(self, feeds: Named) -> Named:
        """Run the graph; returns its outputs by name."""
        return run_graph(self.session, feeds)

    def run_on(self, feeds: Named) -> Named:
        """Run the graph so that no row chooses an end symbol, which would leave its states as they were."""
        vocabulary = self.bundle.vocabulary
        if not vocabulary.ends:
            return self.run(feeds)
        other = next(index for index in range(len(vocabulary)) if index not in vocabulary.end_ids)
        is_end = np.isin(feeds["forced"], vocabulary.end_ids)
        return self.run(feeds | {"forced": np.where((feeds["forced"] < 0) | is_end, other, feeds["forced"])})

    def logits(self, tokens: Array, before: Named, outputs: Named) -> Array:
        """The reference's logits [batch, vocab] after the step that produced `outputs`.

        Raises ParityError if the reference's states differ from those in `outputs`.
        """
        expected = self.reference.step(tokens, before, next_states(outputs))
        for name in before:
            got, right = outputs[f"next_{name}"], expected[f"next_{name}"]
            if (differs := rows_beyond(name, got, right)).any():
                distances = row_maxima(name, np.abs(got - right))
                bounds = self.reference.rounding_bounds(tokens[:, None], before)[f"next_{name}"]
                if not (distances[differs] <= bounds[differs]).all():
                    raise ParityError(f"{self.name}: {name} is off by {distances.max():.2e} after one step")
        logits: Array = expected["logits"][:, 0]
        return logits


def choices(graph: Graph, rng: np.random.Generator) -> int:
    """Compare one choice of each of CHOICES rows in one call; returns the number of excused differences.

    Every row has states, a text to read, a step limit and sampling parameters of its own; half of the rows have a
    uniform close to a boundary. Raises ParityError.
    """
    bundle, longest = graph.bundle, 4
    symbols = len(bundle.vocabulary)
    states = random_states(bundle, CHOICES, rng)
    tokens = random_text(bundle, (CHOICES, longest), rng)
    steps = np.sort(rng.integers(longest + 1, size=CHOICES))
    rows = [random_sampling(bundle.vocabulary, graph.inputs, rng) for _ in range(CHOICES)]

    feeds = decode_feeds(graph.session, tokens[:, 0], states, rng.random((longest, CHOICES), np.float32), Sampling())
    feeds["forced"] = np.where(np.arange(1, longest + 1)[:, None] < steps, np.roll(tokens, -1, axis=1).T, -1)
    bias = set_parameters(feeds, rows, symbols)

    # Each row's states before its last step, and the reference's logits after it.
    at = np.maximum(steps - 1, 0)
    before = next_states(graph.run(feeds | {"steps": at}))
    logits = graph.logits(tokens[np.arange(CHOICES), at], before, graph.run_on(feeds | {"steps": at + 1}))
    biased = torch.from_numpy(logits + bias)
    u = feeds["uniforms"]
    u[:, ::2] = _near_boundaries(biased, [sampling.temperature for sampling in rows], rng)[::2]
    got = graph.run(feeds | {"steps": steps})
    after = take_rows(next_states(got), steps == 0)
    for name, values in take_rows(states, steps == 0).items():
        if (after[name] != values).any():
            raise ParityError(f"{graph.name}: a row that takes no step changes its {name}")

    taken = np.flatnonzero(steps)
    return count_excused(
        graph,
        got["tokens"][at, np.arange(CHOICES)][taken],
        biased[taken],
        u[at, np.arange(CHOICES)][taken],
        [rows[row] for row in taken],
    )


def set_parameters(feeds: Named, rows: Sequence[Sampling], symbols: int) -> Array:
    """Give each row of `feeds` sampling parameters of its own; returns the logit biases, float32 [batch, vocab]."""
    for name in feeds.keys() & {"temperature", "top_k", "top_p", "min_p"}:
        feeds[name] = np.array([getattr(sampling, name) for sampling in rows], feeds[name].dtype)
    if "window" in feeds:
        feeds["window"] = window_of(feeds["top_k"], symbols)
    bias = np.zeros((len(rows), symbols), np.float32)
    for row, sampling in enumerate(rows):
        for symbol, value in sampling.logit_bias.items():
            bias[row, symbol] = value
    if "logit_bias" in feeds:
        feeds["logit_bias"] = bias
    return bias


def free_running(graph: Graph, sampling: Sampling, rng: np.random.Generator, count: int = CHARACTERS) -> int:
    """Generate `count` characters in calls of random lengths; returns the number of excused differences.

    Single steps must give the same bits, and each must match the reference. Raises ParityError.
    """
    bundle, u = graph.bundle, uniforms(int(rng.integers(2**32)), 0, count)
    end_ids = bundle.vocabulary.end_ids
    token, states = np.array([bundle.vocabulary.start_id]), zero_states(bundle, 1)
    read, before, after, chosen = list[Array](), list[Named](), list[Named](), list[int]()
    while len(chosen) < count:
        chances = u[len(chosen) :][: int(rng.integers(1, 65)), None]
        called = graph.run(decode_feeds(graph.session, token, states, chances, sampling))
        for step in range(len(chances)):
            feeds = decode_feeds(graph.session, token, states, chances[[step]], sampling)
            outputs = graph.run(feeds)
            chosen.append(int(outputs["tokens"][0, 0]))
            read.append(token)
            before.append(states)
            after.append(graph.run_on(feeds) if chosen[-1] in end_ids else outputs)
            states = next_states(outputs)
            if chosen[-1] in end_ids:  # the next call begins where the text ended
                break
            token = outputs["tokens"][0]
        same = all((states[name] == values).all() for name, values in next_states(called).items())
        if not same or chosen[-step - 1 :] != called["tokens"][: step + 1, 0].tolist():
            raise ParityError(f"{graph.name}: a call of {len(chances)} steps differs from as many calls of one")

    def joined(parts: list[Named]) -> Named:
        return side_by_side([{name: part[name] for name in part if name in names} for part in parts])

    names = {*states, *(f"next_{name}" for name in states)}
    bias = np.zeros(len(bundle.vocabulary), np.float32)
    bias[list(sampling.logit_bias)] = list(sampling.logit_bias.values())
    logits = graph.logits(np.concatenate(read), joined(before), joined(after))
    return count_excused(
        graph, np.array(chosen), torch.from_numpy(logits + bias), u[: len(chosen)], [sampling] * len(chosen)
    )


def log_probabilities(graph: Graph, rng: np.random.Generator, batch: int = 64) -> float:
    """Compare the log-probabilities of characters and alternatives; returns the largest difference, in nats.

    Raises ParityError for a difference beyond the tolerance, and for alternatives that are not the most probable.
    """
    symbols, never_ids = len(graph.bundle.vocabulary), list(graph.bundle.vocabulary.never_ids)
    states = random_states(graph.bundle, batch, rng)
    token = rng.integers(symbols, size=batch)
    feeds = decode_feeds(graph.session, token, states, rng.random((1, batch), np.float32), Sampling())
    feeds["forced"][0, ::2] = rng.integers(symbols, size=len(token[::2]))
    got = graph.run(feeds)
    logits = graph.logits(token, states, graph.run_on(feeds))
    expected = torch.log_softmax(torch.from_numpy(logits).double(), dim=1).numpy()
    rows = np.arange(batch)
    of_tokens = expected[rows, got["tokens"][0]]
    expected[:, never_ids] = -np.inf
    of_top = np.take_along_axis(expected, got["top_tokens"][0], axis=1)
    best = -np.sort(-expected, axis=1)[:, : of_top.shape[1]]
    pairs = [(got["logprobs"][0], of_tokens), (got["top_logprobs"][0], of_top), (of_top, best)]
    with np.errstate(invalid="ignore"):  # only what is never chosen is left: -inf on both sides
        far = max(float(np.nan_to_num(np.abs(a - b) - 1e-5 * np.abs(b), nan=0.0).max()) for a, b in pairs)
    if far > NEAR:
        raise ParityError(f"{graph.name}: log-probabilities are off by {far:.2e}")
    return max(far, 0.0)


def ends(graph: Graph, rng: np.random.Generator, batch: int = 32) -> None:
    """Check rows that are forced to take an end symbol after some steps: they must stay as they were before that step.

    Raises ParityError.
    """
    bundle, longest = graph.bundle, 6
    states, tokens = random_states(bundle, batch, rng), random_text(bundle, (longest + 1, batch), rng)
    steps = rng.integers(longest, size=batch)
    feeds = decode_feeds(graph.session, tokens[0], states, rng.random((longest, batch), np.float32), Sampling())
    before = graph.run(feeds | {"forced": tokens[1:], "steps": steps})
    forced = tokens[1:].copy()
    forced[steps, np.arange(batch)] = rng.choice(bundle.vocabulary.end_ids, size=batch)
    after = graph.run(feeds | {"forced": forced})
    for name, values in next_states(before).items():
        if (values != after[f"next_{name}"]).any():
            raise ParityError(f"{graph.name}: an end symbol changes {name}")


def random_sampling(vocabulary: Vocabulary, inputs: set[str], rng: np.random.Generator) -> Sampling:
    """Effective parameters, of those that are inputs; biases that ban some symbols and leave others."""
    symbols, never_ids = len(vocabulary), vocabulary.never_ids
    stays = max(index for index in range(symbols) if index not in never_ids)
    temperature = float(rng.choice([0.0, 1.0, rng.uniform(0.2, 3.0)]))
    if "logit_bias" not in inputs:
        return Sampling(temperature)
    bias = dict(enumerate(rng.normal(0, 2, symbols).astype(np.float32).tolist())) if rng.random() < 0.5 else {}
    for symbol in rng.integers(symbols, size=symbols // 4):
        if bias and symbol not in (stays, *never_ids):
            bias[int(symbol)] = -np.inf
    return Sampling(
        temperature,
        top_k=int(rng.choice([1, 2, int(rng.integers(1, 6)), symbols, 2**32 - 1])) if "top_k" in inputs else 0,
        top_p=float(rng.choice([1.0, rng.uniform(0.05, 0.99)])),
        min_p=float(rng.choice([0.0, rng.uniform(0.001, 0.5)])),
        logit_bias=bias,
    )


def _near_boundaries(logits: torch.Tensor, temperatures: list[float], rng: np.random.Generator) -> Array:
    """Uniforms just beyond NEAR from a boundary between two characters without filters: float32 [batch]."""
    temperature = torch.tensor(temperatures)[:, None]
    bounds = (
        torch.softmax(logits / torch.where(temperature == 0, 1.0, temperature), dim=1).double().cumsum(dim=1).numpy()
    )
    chosen = bounds[np.arange(len(bounds)), rng.integers(bounds.shape[1], size=len(bounds))]
    moved = chosen + rng.choice([-2 * NEAR, 2 * NEAR], size=len(bounds))
    within: Array = np.clip(moved, 0, 1 - 2**-24).astype(np.float32)
    return within


def count_excused(graph: Graph, chosen: Array, logits: torch.Tensor, u: Array, rows: list[Sampling]) -> int:
    """Count the choices [batch], from `logits` [batch, vocab], that differ from PyTorch's but are near their boundary.

    Raises ParityError for a difference that is not near.
    """
    never_ids = graph.bundle.vocabulary.never_ids
    temperature, top_k, top_p, min_p = (
        torch.tensor([getattr(sampling, name) for sampling in rows])
        for name in ("temperature", "top_k", "top_p", "min_p")
    )
    inputs = (logits, torch.from_numpy(u), temperature, top_k, top_p, min_p)
    parts = zip(*(torch.split(values, 256) for values in inputs), strict=True)  # `choose` sorts whole vocabularies
    right = torch.cat([choose(a, b, c, d, e, f, never_ids) for a, b, c, d, e, f in parts]).numpy()
    different = np.flatnonzero(chosen != right).tolist()
    for row in different:
        if not _is_near(logits[row], int(chosen[row]), float(u[row]), rows[row], never_ids):
            raise ParityError(
                f"{graph.name}: {chosen[row]} was chosen instead of {right[row]} with {rows[row]}, and no boundary "
                f"is within {NEAR}"
            )
    return len(different)


def _is_near(logits: torch.Tensor, got: int, u: float, sampling: Sampling, never_ids: Sequence[int]) -> bool:
    """Whether `got` would have been chosen if the uniform or a filter were off by at most NEAR."""
    values = logits.double().numpy().copy()
    values[list(never_ids)] = -np.inf
    if sampling.temperature == 0:
        return float(values.max() - values[got]) < NEAR
    mass = np.exp((values - values.max()) / sampling.temperature)
    ordered = -np.sort(-mass)
    k = min(sampling.top_k or len(mass), len(mass))
    ks = [k]  # and neighbours whose last mass is nearly equal
    close = [n for n in (k - 1, k + 1) if 1 <= n <= len(mass)]
    ks += [n for n in close if abs(ordered[n - 1] - ordered[k - 1]) <= NEAR * ordered[k - 1]]
    for moved_k, dp, dm in product(ks, (0.0, -NEAR, NEAR), (0.0, -NEAR, NEAR)):
        moved = replace(
            sampling,
            top_k=moved_k if sampling.top_k else 0,
            top_p=min(max(sampling.top_p + dp, NEAR), 1.0) if sampling.top_p < 1 else 1.0,
            min_p=min(max(sampling.min_p + dm, 0.0), 1.0) if sampling.min_p else 0.0,
        )
        kept = np.where(mass >= threshold(mass, moved), mass, 0)
        share = kept / kept.sum()
        after = share[: got + 1].sum()
        if share[got] > 0 and after - share[got] - NEAR <= u <= after + NEAR:
            return True
    return False
