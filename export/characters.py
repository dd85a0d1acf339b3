"""Comparison by characters: what a serving graph and a plain PyTorch loop choose, with the same uniforms."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
import torch

from export.bundle import Bundle
from export.compare import Array, ParityError, decode_feeds, rows_beyond
from export.sampling import Sampling, uniforms
from train.model import CharacterModel
from train.sample import choose

NEAR = 1e-4  # a choice this close to its boundary may fall to either side
CHARACTERS = 2000
CHOICES = 600

Picker = Callable[[torch.Tensor, float, Sampling], int]  # from one row of logits [vocab], u and the parameters


def choices(graph: ort.InferenceSession, model: CharacterModel, bundle: Bundle, rng: np.random.Generator) -> int:
    """Compare one choice of each of CHOICES rows, in one call; the number of excused differences.

    Every row has a state, a text to read, a step limit and parameters of its own, and half of the rows a uniform close
    to a boundary. Raises ParityError.
    """
    config, symbols, unknown_id = model.config, len(bundle.vocabulary), bundle.vocabulary.unknown_id
    filters = "top_k" in {value.name for value in graph.get_inputs()}
    longest = 4
    state = rng.uniform(-1, 1, (config.layers, CHOICES, config.hidden)).astype(np.float32)
    tokens = rng.integers(symbols, size=(CHOICES, longest))
    steps = np.sort(rng.integers(longest + 1, size=CHOICES))
    rows = [_random_sampling(symbols, unknown_id, filters, rng) for _ in range(CHOICES)]
    bias = np.zeros((CHOICES, symbols), np.float32)
    for row, sampling in enumerate(rows):
        for symbol, value in sampling.logit_bias.items():
            bias[row, symbol] = value

    expected_state, logits = state.copy(), np.zeros((CHOICES, symbols), np.float32)
    for count in range(1, longest + 1):
        these = np.flatnonzero(steps == count)
        read, (after,) = model(torch.from_numpy(tokens[these, :count]), (torch.from_numpy(state[:, these]),))
        logits[these], expected_state[:, these] = read[:, -1].numpy(), after.numpy()
    biased = torch.from_numpy(logits + bias)
    u = rng.random(CHOICES, np.float32)
    u[::2] = _near_boundaries(biased, [sampling.temperature for sampling in rows], rng)[::2]

    feeds = decode_feeds(graph, tokens[:, 0], state, np.repeat(u[None], longest, axis=0), Sampling())
    for step in range(longest - 1):
        feeds["forced"][step] = np.where(step + 1 < steps, tokens[:, step + 1], -1)
    feeds["steps"] = steps
    for name in ("temperature", "top_k", "top_p", "min_p"):
        if name in feeds:
            feeds[name] = np.array([getattr(sampling, name) for sampling in rows], feeds[name].dtype)
    if filters:
        feeds["logit_bias"] = bias
    got, got_state = graph.run(["tokens", "next_state_h"], feeds)

    if (
        rows_beyond("next_state_h", got_state, expected_state).any()
        or (got_state[:, steps == 0] != state[:, steps == 0]).any()
    ):
        raise ParityError("decode: rows with step limits of their own do not end in PyTorch's states")
    pick = _picker(unknown_id)
    excused = 0
    for row in np.flatnonzero(steps).tolist():
        chosen, choice = int(got[steps[row] - 1, row]), (float(u[row]), rows[row], pick, unknown_id)
        if pick(biased[row], float(u[row]), rows[row]) != chosen:
            if not _is_near(biased[row], chosen, *choice):
                raise ParityError(f"decode: a row with {rows[row]} chose {chosen}, and no boundary is within {NEAR}")
            excused += 1
    return excused


def _random_sampling(symbols: int, unknown_id: int | None, filters: bool, rng: np.random.Generator) -> Sampling:
    """Parameters that bite; biases that ban some symbols and leave others."""
    temperature = float(rng.choice([0.0, 1.0, rng.uniform(0.2, 3.0)]))
    if not filters:
        return Sampling(temperature)
    bias = dict(enumerate(rng.normal(0, 2, symbols).astype(np.float32).tolist())) if rng.random() < 0.5 else {}
    for symbol in rng.integers(symbols, size=symbols // 4):
        if bias and symbol not in (symbols - 1, unknown_id):  # the last one stays
            bias[int(symbol)] = -np.inf
    return Sampling(
        temperature,
        top_k=int(rng.choice([0, 0, int(rng.integers(1, 6)), symbols, 2**32 - 1])),
        top_p=float(rng.choice([1.0, rng.uniform(0.05, 0.99)])),
        min_p=float(rng.choice([0.0, rng.uniform(0.001, 0.5)])),
        logit_bias=bias,
    )


def _near_boundaries(logits: torch.Tensor, temperatures: list[float], rng: np.random.Generator) -> Array:
    """Uniforms just beyond NEAR from a boundary between two characters, as it is without filters: float32 [batch]."""
    temperature = torch.tensor(temperatures)[:, None]
    bounds = (
        torch.softmax(logits / torch.where(temperature == 0, 1.0, temperature), dim=1).double().cumsum(dim=1).numpy()
    )
    chosen = bounds[np.arange(len(bounds)), rng.integers(bounds.shape[1], size=len(bounds))]
    moved = chosen + rng.choice([-2 * NEAR, 2 * NEAR], size=len(bounds))
    within: Array = np.clip(moved, 0, 1 - 2**-24).astype(np.float32)
    return within


class _Step(NamedTuple):
    """A step of PyTorch's: what it chose, from which logits [vocab], and the state after it."""

    chosen: int
    logits: torch.Tensor
    state: tuple[torch.Tensor, ...]


def free_running(
    graph: ort.InferenceSession, model: CharacterModel, sampling: Sampling, bundle: Bundle, rng: np.random.Generator
) -> int:
    """Generate CHARACTERS with both, in calls of random lengths; the number of excused differences.

    Raises ParityError for a difference that has no excuse: the choice is not near a boundary of PyTorch's, neither from
    PyTorch's own state nor from the graph's.
    """
    u = uniforms(int(rng.integers(2**32)), 0, CHARACTERS)
    pick = _picker(bundle.vocabulary.unknown_id)

    def serve(token: int, state: Array, chances: Array, forced: list[int]) -> tuple[Array, Array]:
        feeds = decode_feeds(graph, np.array([token]), state, chances[:, None], sampling)
        feeds["forced"][: len(forced), 0] = forced
        tokens, next_state = graph.run(["tokens", "next_state_h"], feeds)
        return tokens[:, 0], next_state

    token, plain_state = bundle.vocabulary.start_id, model.initial_state(1)
    state: Array = plain_state[0].numpy()
    at = excused = 0
    while at < CHARACTERS:
        chances = u[at : at + int(rng.integers(1, 65))]
        plain = list(_plain_steps(model, token, plain_state, chances, sampling, pick))
        expected = [step.chosen for step in plain]
        got, next_state = serve(token, state, chances, [])
        if (differs := np.flatnonzero(got != expected)).size:
            first = int(differs[0])
            choice = int(got[first]), float(chances[first]), sampling, pick, bundle.vocabulary.unknown_id
            before, last = state, token
            if first:
                before, last = serve(token, state, chances[:first], expected[:first])[1], expected[first - 1]
            logits, _ = model(torch.tensor([[last]]), (torch.from_numpy(before),))
            if not (_is_near(plain[first].logits, *choice) or _is_near(logits[0, 0], *choice)):
                raise ParityError(
                    f"the serving graph's character {at + first} is {choice[0]}, PyTorch's is {expected[first]} "
                    f"({sampling}), and no boundary is within {NEAR}"
                )
            # Both go on from PyTorch's character and one state.
            excused, plain = excused + 1, plain[: first + 1]
            _, next_state = serve(token, state, chances[: first + 1], expected[: first + 1])
            plain[-1] = plain[-1]._replace(state=(torch.from_numpy(next_state),))
        token, plain_state, state, at = plain[-1].chosen, plain[-1].state, next_state, at + len(plain)
    return excused


def _plain_steps(
    model: CharacterModel, token: int, state: tuple[torch.Tensor, ...], u: Array, sampling: Sampling, pick: Picker
) -> Iterator[_Step]:
    """The plain loop: read a character, choose the next."""
    for chance in u:
        logits, state = model(torch.tensor([[token]]), state)
        token = pick(logits[0, 0], float(chance), sampling)
        yield _Step(token, logits[0, 0], state)


def _picker(unknown_id: int | None) -> Picker:
    def pick(logits: torch.Tensor, u: float, sampling: Sampling) -> int:
        chance, temperature, top_k, top_p, min_p = (
            torch.tensor([value]) for value in (u, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
        )
        return int(choose(logits[None], chance, temperature, top_k, top_p, min_p, unknown_id))

    return pick


def _is_near(
    logits: torch.Tensor, got: int, u: float, sampling: Sampling, pick: Picker, unknown_id: int | None
) -> bool:
    """Whether moving the uniform or a filter by at most NEAR, or not at all, would have chosen `got`."""
    if unknown_id is not None:
        logits = logits.index_fill(0, torch.tensor([unknown_id]), -torch.inf)
    if sampling.temperature == 0:
        return float(logits.max() - logits[got]) < NEAR
    if not sampling.filtered:
        mass = torch.softmax((logits - logits.max()).double() / sampling.temperature, dim=0)
        after = float(mass[: got + 1].sum())
        return float(mass[got]) > 0 and after - float(mass[got]) - NEAR <= u <= after + NEAR
    moves = [0.0, *(sign * NEAR * 2.0**-power for sign in (-1, 1) for power in range(20))]
    reachable = (
        pick(
            logits,
            min(max(u + du, 0.0), 1 - 2**-24),
            Sampling(
                sampling.temperature,
                max(sampling.top_k + dk, 0),
                min(max(sampling.top_p + dp, NEAR), 1.0),
                min(max(sampling.min_p + dm, 0.0), 1.0),
            ),
        )
        for du, dk, dp, dm in product(
            moves,
            (0, -1, 1) if sampling.top_k > 1 else (0,),
            (0.0, -NEAR, NEAR) if sampling.top_p < 1 else (0.0,),
            (0.0, -NEAR, NEAR) if sampling.min_p > 0 else (0.0,),
        )
    )
    return got in reachable
