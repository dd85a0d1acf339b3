"""Whether the exported graphs do what the PyTorch model does: run at every export, on the bytes to be written.

Two things are shown with ONNX Runtime on the CPU against plain PyTorch, both in float32:

- teacher-forced: logits and states from random non-zero states, over chained calls of random lengths and batch sizes,
  differ by at most 1e-5 + 1e-5 |x|;
- free-running: thousands of characters in a row are the same, greedy, sampled, and sampled with filters.

A trained network can be locally unstable: from some states it multiplies a rounding error a thousandfold within a few
steps, whoever computes it (PyTorch's float32 strays as far from its own float64 there). So a row that differs by more
is walked through again one step at a time, both starting every step from the same state. If each step agrees, the row
is excused, and counted; a wrong graph agrees at no step.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, NamedTuple

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
# From tokens [batch, time] and state [layers, batch, hidden] to named outputs, "next_state_h" among them.
Call = Callable[[Array, Array], dict[str, Array]]


class ParityError(ValueError):
    """An exported graph does not do what the PyTorch model does."""


@dataclass(frozen=True)
class Parity:
    """What was compared. Differences are the largest absolute ones, of rows that were not excused.

    `excused_rows`, of `rows`, are locally unstable; `excused_characters` are choices within 1e-4 of their boundary.
    """

    logits_difference: float
    state_difference: float
    decode_state_difference: float
    rows: int
    excused_rows: int
    greedy_characters: int
    sampled_characters: int
    filtered_characters: int
    excused_characters: int

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
    plain = _pytorch_call(model)
    with torch.inference_mode():
        forced = [
            _teacher_forced("model.onnx", _portable_call(graphs["model"]), plain, model, rng),
            _teacher_forced("decode.onnx", _serving_call(graphs["decode"]), plain, model, rng),
            _teacher_forced("decode-filters.onnx", _serving_call(graphs["decode_filters"]), plain, model, rng),
        ]
        excused = [
            _free_running(graphs[key], model, sampling, bundle, rng)
            for key, sampling in [
                ("decode", Sampling(temperature=0)),
                ("decode", Sampling()),
                ("decode_filters", FILTERED),
            ]
        ]
    return Parity(
        logits_difference=forced[0].worst["logits"],
        state_difference=forced[0].worst["next_state_h"],
        decode_state_difference=max(serving.worst["next_state_h"] for serving in forced[1:]),
        rows=sum(compared.rows for compared in forced),
        excused_rows=sum(compared.excused for compared in forced),
        greedy_characters=CHARACTERS,
        sampled_characters=CHARACTERS,
        filtered_characters=CHARACTERS,
        excused_characters=sum(excused),
    )


def session(graph: bytes) -> ort.InferenceSession:
    """An ONNX Runtime session on one CPU thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


# ---- teacher-forced


class _Compared(NamedTuple):
    worst: dict[str, float]  # by output
    rows: int
    excused: int


def _teacher_forced(name: str, graph: Call, plain: Call, model: CharacterModel, rng: np.random.Generator) -> _Compared:
    """Compare the two over chained calls. Raises ParityError for a row that is beyond the tolerance and stable."""
    worst: dict[str, float] = {}
    rows = excused = 0
    for entry, texts in _chains(model, rng):
        state = plain_state = entry
        for tokens in texts:
            got, expected = graph(tokens, state), plain(tokens, plain_state)
            beyond = np.zeros(len(tokens), bool)
            for output, values in got.items():
                beyond |= _rows_beyond(output, values, expected[output])
            for row in np.flatnonzero(beyond):
                _step_by_step(name, graph, plain, tokens[[row]], state[:, [row]])
            for output, values in got.items():
                distances = np.abs(values - expected[output])[_of_rows(output, ~beyond)]
                worst[output] = max(worst.get(output, 0.0), float(distances.max(initial=0)))
            rows, excused = rows + len(tokens), excused + int(beyond.sum())
            state = got["next_state_h"]
            plain_state = np.where(beyond[:, None], state, expected["next_state_h"])
    return _Compared(worst, rows, excused)


def _chains(model: CharacterModel, rng: np.random.Generator) -> Iterator[tuple[Array, list[Array]]]:
    """Random states in (-1, 1) [layers, batch, hidden], each with the texts [batch, time] of its chained calls."""
    config, symbols = model.config, model.vocabulary_size
    for batch in (1, *rng.integers(2, 20, size=3)):
        state = rng.uniform(-1, 1, (config.layers, batch, config.hidden)).astype(np.float32)
        yield state, [rng.integers(symbols, size=(batch, time)) for time in (1, *rng.integers(1, 40, size=4))]


def _of_rows(output: str, rows: Array) -> Any:
    """The index of some rows: states have layers first."""
    return (slice(None), rows) if output == "next_state_h" else rows


def _rows_beyond(output: str, got: Array, expected: Array) -> Array:
    """Which rows differ by more than the tolerance anywhere, or are no numbers: bool [batch]."""
    if got.shape != expected.shape:
        raise ParityError(f"{output}: shape {got.shape}, expected {expected.shape}")
    beyond = ~(np.abs(got - expected) <= TOLERANCE + TOLERANCE * np.abs(expected))
    rows: Array = beyond.any(axis=(0, 2) if output == "next_state_h" else (1, 2))
    return rows


def _step_by_step(name: str, graph: Call, plain: Call, tokens: Array, state: Array) -> None:
    """Compare step after step for one row, each from the graph's state. Raises ParityError where they differ."""
    for time in range(tokens.shape[1]):
        step = tokens[:, time : time + 1]
        got, expected = graph(step, state), plain(step, state)
        for output, values in got.items():
            if _rows_beyond(output, values, expected[output]).any():
                distance = np.abs(values - expected[output]).max()
                raise ParityError(
                    f"{name}: {output} differs from PyTorch's by {distance:.2e} in one step, more than 1e-5 + 1e-5 |x|"
                )
        state = got["next_state_h"]


def _pytorch_call(model: CharacterModel) -> Call:
    def call(tokens: Array, state: Array) -> dict[str, Array]:
        logits, (next_state,) = model(torch.from_numpy(tokens), (torch.from_numpy(state),))
        return {"logits": logits.numpy(), "next_state_h": next_state.numpy()}

    return call


def _portable_call(graph: ort.InferenceSession) -> Call:
    def call(tokens: Array, state: Array) -> dict[str, Array]:
        names = ["logits", "next_state_h"]
        return dict(zip(names, graph.run(names, {"tokens": tokens, "state_h": state}), strict=True))

    return call


def _serving_call(graph: ort.InferenceSession) -> Call:
    """A serving graph that is forced to take the given characters; it shows no logits."""

    def call(tokens: Array, state: Array) -> dict[str, Array]:
        batch, time = tokens.shape
        # The graph reads `token`, then each character that it was forced to take but the last.
        feeds = decode_feeds(graph, tokens[:, 0], state, np.zeros((time, batch), np.float32), Sampling())
        feeds["forced"][:-1] = tokens.T[1:]
        return {"next_state_h": graph.run(["next_state_h"], feeds)[0]}

    return call


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


# ---- free-running

Picker = Callable[[torch.Tensor, float, Sampling], int]  # from one row of logits [vocab], u and the parameters


class _Step(NamedTuple):
    """A step of PyTorch's: what it chose, from which logits [vocab], and the state after it."""

    chosen: int
    logits: torch.Tensor
    state: tuple[torch.Tensor, ...]


def _free_running(
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
            choice = int(got[first]), float(chances[first]), sampling, pick
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


def _is_near(logits: torch.Tensor, got: int, u: float, sampling: Sampling, pick: Picker) -> bool:
    """Whether moving the uniform or a filter by at most NEAR, or not at all, would have chosen `got`."""
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
