"""Whether the exported graphs do what the PyTorch model does: run at every export, on the bytes to be written.

Two things are shown with ONNX Runtime on the CPU against plain PyTorch, both in float32:

- teacher-forced: logits and states from random non-zero states, over chained calls of random lengths and batch sizes,
  differ by at most 1e-5 + 1e-5 |x|;
- free-running: thousands of characters in a row are the same, greedy, sampled, and sampled with filters.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from export.bundle import Bundle
from export.sampling import Sampling, uniforms
from train.model import CharacterModel
from train.sample import choose

TOLERANCE = 1e-5
NEAR = 1e-4  # a choice this close to its boundary may fall to either side
CHARACTERS = 2000
FILTERED = Sampling(temperature=0.9, top_k=40, top_p=0.95, min_p=0.01)

Array = NDArray[Any]
Feeds = dict[str, Array]


class ParityError(ValueError):
    """An exported graph does not do what the PyTorch model does."""


@dataclass(frozen=True)
class Parity:
    """What was compared. Differences are the largest absolute ones; `excused` counts choices at a boundary (NEAR)."""

    logits_difference: float
    state_difference: float
    decode_state_difference: float
    greedy_characters: int
    sampled_characters: int
    filtered_characters: int
    excused: int

    @property
    def worst_difference(self) -> float:
        """Of logits and states, in all graphs."""
        return max(self.logits_difference, self.state_difference, self.decode_state_difference)

    def report(self) -> dict[str, Any]:
        """For the manifest."""
        return {"onnxruntime": ort.__version__, "torch": torch.__version__, "tolerance": TOLERANCE, **asdict(self)}


def verify(bundle: Bundle, model: CharacterModel, seed: int = 0) -> Parity:
    """Compare all graphs of `bundle` with `model`. Raises ParityError, with figures, where one does not hold."""
    graphs = {key: session(graph) for key, graph in bundle.graphs.items()}
    rng = np.random.default_rng(seed)
    with torch.inference_mode():
        logits, state = _portable(graphs["model"], model, rng)
        decode_state = max(_forced(graphs[key], model, rng) for key in ("decode", "decode_filters"))
        excused = [
            _free_running(graphs[key], model, sampling, bundle, rng)
            for key, sampling in [
                ("decode", Sampling(temperature=0)),
                ("decode", Sampling()),
                ("decode_filters", FILTERED),
            ]
        ]
    return Parity(logits, state, decode_state, CHARACTERS, CHARACTERS, CHARACTERS, sum(excused))


def session(graph: bytes) -> ort.InferenceSession:
    """An ONNX Runtime session on one CPU thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _chains(model: CharacterModel, rng: np.random.Generator) -> Iterator[tuple[Array, list[Array]]]:
    """Random states in (-1, 1) [layers, batch, hidden], each with the texts [batch, time] of its chained calls."""
    config = model.config
    for batch in (1, *rng.integers(2, 20, size=3)):
        state = rng.uniform(-1, 1, (config.layers, batch, config.hidden)).astype(np.float32)
        yield (
            state,
            [rng.integers(model.vocabulary_size, size=(batch, time)) for time in (1, *rng.integers(1, 40, size=4))],
        )


def _portable(graph: ort.InferenceSession, model: CharacterModel, rng: np.random.Generator) -> tuple[float, float]:
    """The largest differences of logits and of states."""
    worst_logits = worst_state = 0.0
    for state, texts in _chains(model, rng):
        expected_state, got_state = torch.from_numpy(state), state
        for tokens in texts:
            expected, (expected_state,) = model(torch.from_numpy(tokens), (expected_state,))
            got, got_state = graph.run(["logits", "next_state_h"], {"tokens": tokens, "state_h": got_state})
            worst_logits = max(worst_logits, difference("model.onnx: logits", got, expected.numpy()))
            worst_state = max(worst_state, difference("model.onnx: next_state_h", got_state, expected_state.numpy()))
    return worst_logits, worst_state


def _forced(graph: ort.InferenceSession, model: CharacterModel, rng: np.random.Generator) -> float:
    """The largest difference of states after forced characters, rows stopping at limits of their own."""
    worst = 0.0
    for state, texts in _chains(model, rng):
        expected_state, got_state = torch.from_numpy(state).clone(), state
        for tokens in texts:
            batch, time = tokens.shape
            steps = rng.integers(1, time + 1, size=batch)
            for row, count in enumerate(steps):
                _, (row_state,) = model(
                    torch.from_numpy(tokens[row : row + 1, :count]), (expected_state[:, row : row + 1],)
                )
                expected_state[:, row : row + 1] = row_state
            # The graph reads `token`, then each character it is forced to take but the last.
            feeds = decode_feeds(graph, tokens[:, 0], got_state, np.zeros((time, batch), np.float32), Sampling())
            feeds["forced"][:-1] = tokens.T[1:]
            feeds["steps"] = steps
            (got_state,) = graph.run(["next_state_h"], feeds)
            worst = max(worst, difference("decode: next_state_h", got_state, expected_state.numpy()))
    return worst


def difference(what: str, got: Array, expected: Array) -> float:
    """The largest absolute difference. Raises ParityError beyond 1e-5 + 1e-5 |x|, or for what is not a number."""
    if got.shape != expected.shape:
        raise ParityError(f"{what}: shape {got.shape}, expected {expected.shape}")
    distance = np.abs(got - expected)
    if not (distance <= TOLERANCE + TOLERANCE * np.abs(expected)).all():
        raise ParityError(f"{what}: differs from PyTorch by {distance.max():.2e}, more than 1e-5 + 1e-5 |x|")
    return float(distance.max(initial=0))


def decode_feeds(graph: ort.InferenceSession, token: Array, state: Array, u: Array, sampling: Sampling) -> Feeds:
    """Inputs of a serving graph for rows that sample alike.

    `token` [batch], `state` [layers, batch, hidden], `u` [time, batch].
    """
    time, batch = u.shape
    feeds: Feeds = {
        "token": token,
        "state_h": state,
        "uniforms": u,
        "forced": np.full((time, batch), -1, np.int64),
        "steps": np.full(batch, time, np.int64),
        "temperature": np.full(batch, sampling.temperature, np.float32),
    }
    inputs = {value.name: value.shape for value in graph.get_inputs()}
    if "top_k" in inputs:
        feeds["top_k"] = np.full(batch, sampling.top_k, np.int64)
        feeds["top_p"] = np.full(batch, sampling.top_p, np.float32)
        feeds["min_p"] = np.full(batch, sampling.min_p, np.float32)
        bias = np.zeros((batch, inputs["logit_bias"][1]), np.float32)
        for symbol, value in sampling.logit_bias.items():
            bias[:, symbol] = value
        feeds["logit_bias"] = bias
    return feeds


def _free_running(
    graph: ort.InferenceSession, model: CharacterModel, sampling: Sampling, bundle: Bundle, rng: np.random.Generator
) -> int:
    """Generate CHARACTERS with both; the number of excused differences. Raises ParityError for one that is not."""
    u = uniforms(int(rng.integers(2**32)), 0, CHARACTERS)
    pick = _picker(sampling, bundle.vocabulary.unknown_id)
    expected, logits = _plain_loop(model, bundle.vocabulary.start_id, u, pick)

    token = np.array([bundle.vocabulary.start_id])
    state = np.zeros((model.config.layers, 1, model.config.hidden), np.float32)
    position = agreed = excused = 0
    while position < CHARACTERS:
        chunk = slice(position, position + int(rng.integers(1, 65)))
        feeds = decode_feeds(graph, token, state, u[chunk, None], sampling)
        wanted = expected[chunk, None]
        # What a difference left behind is taken as PyTorch had it, so that both go on from one text.
        feeds["forced"][: max(agreed - position, 0)] = wanted[: max(agreed - position, 0)]
        got, next_state = graph.run(["tokens", "next_state_h"], feeds)
        if (differs := np.flatnonzero(got != wanted)).size:
            at = position + int(differs[0])
            if not _is_near(logits[at], float(u[at]), int(got[differs[0], 0]), sampling, pick):
                raise ParityError(
                    f"decode: character {at} is {got[differs[0], 0]}, PyTorch's is {expected[at]} ({sampling}); "
                    f"no boundary is within {NEAR}"
                )
            excused, agreed = excused + 1, at + 1
            continue
        token, state, position = got[-1], next_state, position + len(wanted)
    return excused


Picker = Callable[[torch.Tensor, float, Sampling | None], int]


def _picker(default: Sampling, unknown_id: int | None) -> Picker:
    """PyTorch's choice from one row of logits [vocab]."""

    def pick(logits: torch.Tensor, u: float, sampling: Sampling | None = None) -> int:
        use = sampling or default
        u_row, temperature, top_k, top_p, min_p = (
            torch.tensor([value]) for value in (u, use.temperature, use.top_k, use.top_p, use.min_p)
        )
        return int(choose(logits[None], u_row, temperature, top_k, top_p, min_p, unknown_id))

    return pick


def _plain_loop(model: CharacterModel, start: int, u: Array, pick: Picker) -> tuple[Array, torch.Tensor]:
    """The characters [time] that PyTorch generates one by one, and the logits [time, vocab] it chose them from."""
    token, state, tokens, rows = start, model.initial_state(1), [], []
    for chance in u:
        logits, state = model(torch.tensor([[token]]), state)
        token = pick(logits[0, 0], float(chance), None)
        tokens.append(token)
        rows.append(logits[0, 0])
    return np.array(tokens), torch.stack(rows)


def _is_near(logits: torch.Tensor, u: float, got: int, sampling: Sampling, pick: Picker) -> bool:
    """Whether moving the uniform or a filter by at most NEAR would have chosen `got`."""
    if sampling.temperature == 0:
        return float(logits.max() - logits[got]) < NEAR
    moves = [0.0, *(sign * NEAR * 10.0**-power for sign in (-1, 1) for power in range(4))]
    choices = (
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
    return got in choices
