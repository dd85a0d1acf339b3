"""LSTMs whose cells count characters: nothing bounds such a state, so the serving graphs must be exact relative to it.

ONNX Runtime's Sigmoid is exact to 2e-7 absolute. A forget gate of 1e-4 is then wrong by a thousandth, times thousands.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from random_models import LETTERS, make_run

from rill.bundle import VARIANTS
from rill.export.errors import ParityError
from rill.export.graphs.build import build_bundle
from rill.export.graphs.weights import weights_of
from rill.export.parity.compare import decode_feeds, random_states, run_graph, session
from rill.export.parity.float64 import Float64
from rill.export.parity.reference import Int8, next_states
from rill.export.parity.teacher_forced import portable_call, teacher_forced
from rill.export.parity.verify import verify
from rill.sampling import Sampling

COUNTING = 4  # cells, which see the character and not the state
RESETS = (-3.0, -7.6, -11.0, -16.0)  # the forget gate's argument when a cell's own character is read
KEYS = [variant.key for variant in VARIANTS]
EVERY_PRECISION = pytest.mark.parametrize("precision", ["fp32", "int8"])


def counting_run(resets=RESETS, entry=30.0, forget=30.0, **config):
    """Cell k of each layer counts up or down by σ(entry) a character, and keeps σ(resets[k]) at character k + 1."""
    run = make_run(cell="lstm", **{"hidden": 8, **config})
    hidden = run.model.hidden
    for layer in range(run.model.layers):
        for direction in ("", "_reverse")[: run.model.directions]:
            suffix = f"l{layer}{direction}"
            names = ("weight_ih", "weight_hh", "bias_hh", "bias_ih")
            inputs, recurrent, other, bias = (run.weights[f"rnn.{name}_{suffix}"] for name in names)
            for cell, reset in enumerate(resets):
                for gate, argument in enumerate((entry, forget, 30.0 * (-1) ** cell, 1.0)):
                    row = gate * hidden + cell
                    inputs[row], recurrent[row], other[row], bias[row] = 0.0, 0.0, 0.0, argument
                if layer == 0:
                    inputs[hidden + cell, cell + 1] = reset - forget
    return run


def forced(graph, tokens, states):
    """The states after reading `tokens` [batch, time]."""
    feeds = decode_feeds(graph, tokens[:, 0], states, np.zeros(tokens.T.shape, np.float32), Sampling())
    feeds["forced"][:-1] = tokens.T[1:]
    return next_states(run_graph(graph, feeds))


def float64(run):
    return Float64(run.model, {name: values.numpy() for name, values in run.weights.items()})


@pytest.mark.parametrize("key", KEYS)
def test_a_step_is_exact_relative_to_the_cell(key):
    """From cells of any size, down to what a gate almost closes: fp32."""
    run = counting_run(entry=-9.0)
    bundle, graph = build_bundle(run, "x"), session(build_bundle(run, "x").graphs[key])
    rng = np.random.default_rng(0)
    states = random_states(bundle, 200, rng)
    states["state_c"] *= 10.0 ** rng.uniform(-3, 6, (1, 200, 1)).astype(np.float32)
    tokens = rng.integers(COUNTING + 1, size=(200, 1))
    got, right = forced(graph, tokens, states), float64(run)(tokens, states)
    cells, of_cells = (c[0, :, :COUNTING].astype(float) for c in (got["state_c"], right["next_state_c"]))
    # Of a sum of two terms, which may cancel, as large as the larger term.
    scale = np.maximum(np.abs(of_cells), 1e-4)
    assert (np.abs(cells - of_cells) / scale).max() < 4e-6
    np.testing.assert_allclose(got["state_h"], right["next_state_h"], rtol=0, atol=2e-6)


@EVERY_PRECISION
@pytest.mark.parametrize("argument", [-1000.0, -100.0, -89.0, 89.0, 100.0, 1000.0])
def test_gates_whose_exponential_overflows_are_shut_or_open(argument, precision):
    run = counting_run(resets=(argument,) * COUNTING, entry=argument)
    graph = session(build_bundle(run, "x", precision).graphs["decode"])
    states = {f"state_{part}": np.full((1, 1, 8), 1000.0 * (part == "c"), np.float32) for part in "hc"}
    got = forced(graph, np.array([[1]]), states)
    assert all(np.isfinite(values).all() for values in got.values())
    assert got["state_c"][0, 0, 0] == (1001.0 if argument > 0 else 0.0)  # this cell's character is read


@EVERY_PRECISION
def test_verification_passes(precision):
    run = counting_run(hidden=16, layers=2)
    parity = verify(build_bundle(run, "x", precision), run)
    assert parity.worst_difference < 1e-4
    assert parity.excused_rows == 0


MANY = tuple(map(chr, range(0x4E00, 0x4E00 + 400)))


@pytest.mark.parametrize("wrong", [0.0, 0.02])
def test_the_portable_graph_is_excused_for_its_operator_only(wrong):
    """Cells of a hundred, shut by a rare character: ONNX Runtime's LSTM is off by 2e-7 times the cell."""
    run = counting_run(resets=np.linspace(-16, -4, 32).tolist(), hidden=32, symbols=MANY)
    for cell in range(32):
        run.weights["rnn.weight_ih_l0"][32 + cell, :] = 0
        run.weights["rnn.weight_ih_l0"][32 + cell, -8:] = float(np.linspace(-16, -4, 32)[cell]) - 30
        run.weights["rnn.weight_ih_l0"][cell, -8:] = -60  # nothing is added then
    graph = session(build_bundle(run, "x").graphs["model"])
    run.weights["rnn.bias_ih_l0"][32 + 20] += wrong
    bundle, rng = build_bundle(run, "x"), np.random.default_rng(5)
    with torch.inference_mode():
        arguments = "model.onnx", portable_call(graph), run.build(), bundle, rng
        if wrong:
            with pytest.raises(ParityError, match="more than rounding explains"):
                teacher_forced(*arguments, inexact_gates=True)
        else:
            assert teacher_forced(*arguments, inexact_gates=True).excused > 0


def assert_no_drift(characters):
    """One stream of so many characters: its cells are those of float64 whenever one was reset."""
    run = counting_run(symbols=LETTERS, hidden=4)
    graph = session(build_bundle(run, "x").graphs["decode"])
    rng = np.random.default_rng(1)
    tokens = rng.choice(len(LETTERS), size=characters, p=_rare(len(LETTERS), COUNTING))
    arguments = np.full((len(LETTERS), COUNTING), 30.0)
    arguments[np.arange(COUNTING) + 1, np.arange(COUNTING)] = RESETS
    keeps, counts = 1 / (1 + np.exp(-arguments)), np.where(np.arange(COUNTING) % 2, -1.0, 1.0)
    states = {f"state_{part}": np.zeros((1, 1, 4), np.float32) for part in "hc"}
    right, largest, worst = np.zeros(COUNTING), 0.0, 0.0
    resets = np.flatnonzero((tokens > 0) & (tokens <= COUNTING)) + 1
    for first, end in pairwise([0, *resets.tolist()]):
        states = forced(graph, tokens[None, first:end], states)
        for token in tokens[first:end].tolist():
            right = keeps[token] * right + counts
        largest = max(largest, float(np.abs(right).max()))
        worst = max(worst, float((np.abs(states["state_c"][0, 0] - right) / np.maximum(np.abs(right), 1)).max()))
    assert largest > 1000
    assert worst < 1e-5, worst


def _rare(symbols, cells):
    """Probabilities: a cell's own character once in 2,000."""
    own = np.zeros(symbols)
    own[1 : cells + 1] = 1 / 2000
    rest = own == 0
    own[rest] = (1 - own.sum()) / rest.sum()
    return own


def test_a_stream_does_not_drift():
    assert_no_drift(20_000)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_stream_of_a_million_characters_does_not_drift():
    assert_no_drift(1_000_000)


@EVERY_PRECISION
def test_steps_of_large_cells_match_their_reference(precision):
    """The emulation of int8, and float64."""
    run = counting_run(layers=2)
    bundle = build_bundle(run, "x", precision)
    graph, rng = session(bundle.graphs["decode_logprobs"]), np.random.default_rng(3)
    states = random_states(bundle, 100, rng)
    states["state_c"][:, :, :COUNTING] *= 3000
    tokens = rng.integers(COUNTING + 1, size=(100, 1))
    got = forced(graph, tokens, states)
    if precision == "int8":
        right = Int8(run.model, weights_of(run)).step(tokens[:, 0], states, got)
    else:
        right = float64(run)(tokens, states)
    for name, values in got.items():
        np.testing.assert_allclose(values, right[f"next_{name}"], rtol=1e-5, atol=1e-5)
