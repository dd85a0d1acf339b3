"""Whether the exported graphs do what the PyTorch model does: run at every export, on the bytes to be written.

Three things are shown with ONNX Runtime on the CPU against plain PyTorch, both in float32:

- teacher-forced: logits and states from random non-zero states, over chained calls of random lengths and batch sizes,
  differ by at most 1e-5 + 1e-5 |x|;
- choices: in one batch, rows with parameters, prompts and step limits of their own choose the same characters;
- free-running: thousands of characters in a row are the same, greedy, sampled, and sampled with filters.

A trained network can be locally unstable: from some states it multiplies a rounding error a thousandfold within a few
steps, whoever computes it (PyTorch's float32 strays as far from its own float64 there). So where a row differs by more,
the call is walked through: the graph's state after each number of steps must be one step of PyTorch's from the graph's
state before. Then the row is excused, and counted: it follows the network, along another rounding.
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
CHOICES = 600
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

    `excused_rows`, of `rows`, are locally unstable; `excused_characters`, of all characters and choices, were within
    1e-4 of their boundary.
    """

    logits_difference: float
    state_difference: float
    decode_state_difference: float
    rows: int
    excused_rows: int
    greedy_characters: int
    sampled_characters: int
    filtered_characters: int
    choices: int
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
        excused = [_choices(graphs[key], model, bundle, rng) for key in ("decode", "decode_filters")]
        excused += [
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
        choices=2 * CHOICES,
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
    """Compare the two over chained calls. Raises ParityError for a row beyond the tolerance that has no excuse."""
    worst: dict[str, float] = {}
    rows = excused = 0
    for entry, texts in _chains(model, rng):
        state = plain_state = entry
        for tokens in texts:
            got, expected = graph(tokens, state), plain(tokens, plain_state)
            beyond = np.zeros(len(tokens), bool)
            for output, values in got.items():
                beyond |= _rows_beyond(output, values, expected[output])
            if beyond.any():
                _walk(name, graph, plain, tokens, state)
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


def _walk(name: str, graph: Call, plain: Call, tokens: Array, entry: Array) -> None:
    """Show that a call is a chain of PyTorch's steps, for all its rows. Raises ParityError at a step that is not.

    The graph is called for 1, 2, 3, ... steps, in the same batch: what it does wrong over time or between rows shows.
    """
    before = entry
    for time in range(1, tokens.shape[1] + 1):
        got, expected = graph(tokens[:, :time], entry), plain(tokens[:, time - 1 : time], before)
        for output, values in got.items():
            last = values if output == "next_state_h" else values[:, -1:]
            if _rows_beyond(output, last, expected[output]).any():
                distance = np.abs(last - expected[output]).max()
                raise ParityError(
                    f"{name}: {output} differs from PyTorch's by {distance:.2e} in one step, more than 1e-5 + 1e-5 |x|"
                )
        before = got["next_state_h"]


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


# ---- choices


def _choices(graph: ort.InferenceSession, model: CharacterModel, bundle: Bundle, rng: np.random.Generator) -> int:
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
        _rows_beyond("next_state_h", got_state, expected_state).any()
        or (got_state[:, steps == 0] != state[:, steps == 0]).any()
    ):
        raise ParityError("decode: rows with step limits of their own do not end in PyTorch's states")
    pick = _picker(unknown_id)
    excused = 0
    for row in np.flatnonzero(steps).tolist():
        chosen, choice = int(got[steps[row] - 1, row]), (float(u[row]), rows[row], pick)
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
