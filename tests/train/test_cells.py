"""The written-out cells agree with fused kernels, ONNX and the NumPy reference in outputs, states and gradients."""

from functools import partial
from itertools import accumulate

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rill.train.nets import numpy_gru
from rill.train.nets.cells import STEPS, State, Weights, other_update_convention, unroll
from rill.train.nets.numpy_gru import GRUWeights

FUSED = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
PARTS = {"rnn": 1, "gru": 1, "lstm": 2}
T, B, IN, H = 7, 3, 5, 4
SHAPES = st.tuples(*[st.integers(1, 5)] * 4)
few = settings(max_examples=25, deadline=None, derandomize=True)
close = partial(torch.testing.assert_close, rtol=0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def fused_module(cell: str, inputs: int, hidden: int, bias: bool = True) -> nn.RNNBase:
    """A PyTorch layer with weights large enough to reach the nonlinear parts of σ and tanh."""
    module = FUSED[cell](inputs, hidden, bias=bias).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def random_gru(inputs: int, hidden: int, bias: bool = True) -> Weights:
    return Weights(*fused_module("gru", inputs, hidden, bias).parameters())


def run_fused(module: nn.RNNBase, x: Tensor, state: State) -> tuple[Tensor, State]:
    parts = tuple(part[None] for part in state)  # a layer axis
    outputs, last = module(x, parts if len(parts) == 2 else parts[0])
    return outputs, tuple(part[0] for part in (last if len(parts) == 2 else (last,)))


def coefficients(*shape: int) -> Tensor:
    """A random gradient of that shape: the tests differentiate L, a random mixture of outputs and final state."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def gradients(outputs: Tensor, state: State, inputs: list[Tensor]) -> list[Tensor]:
    mixture = sum((part * coefficients(*part.shape)).sum() for part in (outputs, *state))
    return list(torch.autograd.grad(mixture, inputs))


@pytest.mark.parametrize("cell", FUSED)
@few
@given(shape=SHAPES, bias=st.booleans())
@example(shape=(T, B, IN, H), bias=True)
@example(shape=(T, B, H, H), bias=True)  # x taken for h has the right shape here
def test_a_cell_written_out_equals_the_fused_one(cell: str, shape: tuple[int, ...], bias: bool) -> None:
    steps, batch, inputs, hidden = shape
    torch.manual_seed(1)
    module = fused_module(cell, inputs, hidden, bias)
    x, state = randn(steps, batch, inputs), tuple(randn(batch, hidden) for _ in range(PARTS[cell]))
    outputs, last = unroll(STEPS[cell, "after"], x, state, Weights(*module.parameters()))
    expected, expected_last = run_fused(module, x, state)
    close(outputs, expected, atol=1e-12)
    close(last, expected_last, atol=1e-12)
    sources = [x, *state, *module.parameters()]
    close(gradients(outputs, last, sources), gradients(expected, expected_last, sources), atol=1e-11)


@pytest.mark.parametrize("reference", ["nn.GRU", "after", "before"])
@few
@given(shape=SHAPES, bias=st.booleans())
@example(shape=(T, B, IN, H), bias=True)
@example(shape=(T, B, H, H), bias=True)
def test_closed_form_gradients_equal_autograd(reference: str, shape: tuple[int, ...], bias: bool) -> None:
    steps, batch, inputs, hidden = shape
    torch.manual_seed(2)
    module = fused_module("gru", inputs, hidden, bias)
    x, h = randn(steps, batch, inputs), randn(batch, hidden)
    if reference == "nn.GRU":
        reset, (expected, last) = "after", run_fused(module, x, (h,))
    else:
        reset, (expected, last) = reference, unroll(STEPS["gru", reference], x, (h,), Weights(*module.parameters()))
    weights = GRUWeights.from_pytorch(*(parameter.detach().numpy() for parameter in module.parameters()))
    trace = numpy_gru.forward(x.detach().numpy(), h.detach().numpy(), weights, reset)
    np.testing.assert_allclose(trace.outputs, expected.detach(), rtol=0, atol=1e-12)

    grad_outputs = coefficients(*expected.shape)
    grad_outputs[-1] += coefficients(*h.shape)
    found = numpy_gru.backward(trace, grad_outputs.numpy(), weights)
    autograd = gradients(expected, last, [x, h, *module.parameters()])
    # Without biases autograd has no gradients of them, the last two here.
    for ours, theirs in zip([found.x, found.h, *found.weights.to_pytorch()], autograd, strict=bias):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("reset", ["after", "before"])
def test_closed_form_gradients_equal_finite_differences(reset: numpy_gru.Reset) -> None:
    random = np.random.default_rng(3)
    steps, batch, inputs, hidden = 3, 2, 2, 3
    shapes = [(steps, batch, inputs), (batch, hidden), (3 * hidden, inputs), (3 * hidden, hidden)] + [(3 * hidden,)] * 2
    arrays = [random.normal(size=shape) for shape in shapes]
    grad_outputs = random.normal(size=(steps, batch, hidden))

    def run() -> numpy_gru.Trace:
        return numpy_gru.forward(arrays[0], arrays[1], GRUWeights.from_pytorch(*arrays[2:]), reset)

    def difference(array: np.ndarray, index: tuple[int, ...], epsilon: float = 1e-5) -> float:
        middle, values = array[index], []
        for array[index] in (middle + epsilon, middle - epsilon):
            values.append((run().outputs * grad_outputs).sum())
        array[index] = middle
        return (values[0] - values[1]) / (2 * epsilon)

    found = numpy_gru.backward(run(), grad_outputs, GRUWeights.from_pytorch(*arrays[2:]))
    for array, gradient in zip(arrays, [found.x, found.h, *found.weights.to_pytorch()], strict=True):
        expected = [difference(array, index) for index in np.ndindex(array.shape)]
        np.testing.assert_allclose(gradient.ravel(), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("reset", "linear_before_reset"), [("after", 1), ("before", 0)])
def test_the_resets_are_those_of_onnx(reset: str, linear_before_reset: int) -> None:
    torch.manual_seed(4)
    weights = Weights(*(rows.detach().float() for rows in random_gru(IN, H)))
    x, h = torch.randn(T, B, IN), torch.randn(B, H)

    def z_first(rows: Tensor) -> Tensor:  # ONNX stacks z, r, n
        r, z, n = rows.chunk(3)
        return torch.cat([z, r, n])

    w_ih, w_hh, b_ih, b_hh = map(z_first, weights)
    values = {"x": x, "w": w_ih[None], "r": w_hh[None], "b": torch.cat([b_ih, b_hh])[None], "h": h[None]}
    node = onnx.helper.make_node(
        "GRU", ["x", "w", "r", "b", "", "h"], ["y"], hidden_size=H, linear_before_reset=linear_before_reset
    )
    declare = partial(onnx.helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT)
    inputs = [declare(name, shape=value.shape) for name, value in values.items()]
    graph = onnx.helper.make_graph([node], "gru", inputs, [declare("y", shape=(T, 1, B, H))])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {name: value.numpy() for name, value in values.items()})
    outputs, _ = unroll(STEPS["gru", reset], x, (h,), weights)
    np.testing.assert_allclose(outputs, y[:, 0], rtol=0, atol=2e-6)


def other_convention_step(reset: str, state: State, x: Tensor, weights: Weights) -> State:
    """A GRU whose update gate admits the new state, where PyTorch's keeps the old one."""
    (h,) = state
    (w_xr, w_xz, w_xn), (w_hr, w_hz, w_hn) = weights.w_ih.chunk(3), weights.w_hh.chunk(3)
    no_bias = torch.zeros(len(weights.w_ih), dtype=x.dtype)
    b_xr, b_xz, b_xn = (no_bias if weights.b_ih is None else weights.b_ih).chunk(3)
    b_hr, b_hz, b_hn = (no_bias if weights.b_hh is None else weights.b_hh).chunk(3)
    r = torch.sigmoid(x @ w_xr.T + b_xr + h @ w_hr.T + b_hr)
    z = torch.sigmoid(x @ w_xz.T + b_xz + h @ w_hz.T + b_hz)
    recurrent = r * (h @ w_hn.T + b_hn) if reset == "after" else (r * h) @ w_hn.T + b_hn
    return ((1 - z) * h + z * torch.tanh(x @ w_xn.T + b_xn + recurrent),)


@pytest.mark.parametrize("reset", ["after", "before"])
@few
@given(shape=SHAPES, bias=st.booleans())
@example(shape=(T, B, IN, H), bias=True)
def test_weights_of_the_other_update_convention(reset: str, shape: tuple[int, ...], bias: bool) -> None:
    steps, batch, inputs, hidden = shape
    torch.manual_seed(5)
    x, h, weights = randn(steps, batch, inputs), randn(batch, hidden), random_gru(inputs, hidden, bias)
    states = list(accumulate(x, partial(other_convention_step, reset, weights=weights), initial=(h,)))
    expected, (expected_last,) = torch.stack([state[0] for state in states[1:]]), states[-1]
    outputs, (last,) = unroll(STEPS["gru", reset], x, (h,), other_update_convention(weights))
    close(outputs, expected, atol=1e-12)
    close(last, expected_last, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_the_conversion_is_its_own_inverse(bias: bool) -> None:
    weights = random_gru(IN, H, bias)
    once = other_update_convention(weights)
    assert not torch.equal(once.w_hh, weights.w_hh)
    for back, rows in zip(other_update_convention(once), weights, strict=True):
        assert back is rows is None or torch.equal(back, rows)


@pytest.mark.parametrize("reset", ["after", "before"])
def test_an_update_gate_at_one_keeps_the_state_whatever_the_input(reset: numpy_gru.Reset) -> None:
    torch.manual_seed(6)
    weights = random_gru(H, H)  # as many inputs as units: x in the place of h would not change a shape
    with torch.no_grad():
        weights.b_ih[H : 2 * H] = 1e4
        x, h = 10 * torch.randn(T, B, H).double(), torch.randn(B, H).double()
        outputs, (last,) = unroll(STEPS["gru", reset], x, (h,), weights)
    assert torch.equal(outputs, h.expand(T, B, H))
    assert torch.equal(last, h)
    in_numpy = GRUWeights.from_pytorch(*(rows.detach().numpy() for rows in weights))
    assert np.array_equal(numpy_gru.forward(x.numpy(), h.numpy(), in_numpy, reset).outputs, outputs)


@pytest.mark.parametrize("reset", ["after", "before"])
def test_gates_at_zero_forget_the_state(reset: numpy_gru.Reset) -> None:
    torch.manual_seed(8)
    weights = random_gru(IN, H)
    with torch.no_grad():
        weights.b_ih[: 2 * H] = -1e4
        x, h = torch.randn(T, B, IN).double(), torch.randn(B, H).double()
        outputs, _ = unroll(STEPS["gru", reset], x, (h,), weights)
        fresh, _ = unroll(STEPS["gru", reset], x, (torch.zeros_like(h),), weights)
    assert torch.equal(outputs, fresh)
    in_numpy = GRUWeights.from_pytorch(*(rows.detach().numpy() for rows in weights))
    trace = numpy_gru.forward(x.numpy(), h.numpy(), in_numpy, reset)  # would warn if its σ overflowed
    np.testing.assert_allclose(trace.outputs, outputs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("cell", "reset", "count"),
    [(cell, reset, count) for cell, reset in STEPS for count in range(4) if count != PARTS[cell]],
)
def test_a_wrong_number_of_state_parts_is_refused(cell: str, reset: str, count: int) -> None:
    weights = Weights(*fused_module(cell, IN, H).parameters())
    state = tuple(randn(B, H) for _ in range(count))
    needs = {"rnn": r"1 part \(h\)", "gru": r"1 part \(h\)", "lstm": r"2 parts \(h, c\)"}[cell]
    with pytest.raises(ValueError, match=f"this cell's state has {needs}, not {count}"):
        unroll(STEPS[cell, reset], randn(T, B, IN), state, weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("cell", "reset"), STEPS)
def test_other_dtypes_are_kept(cell: str, reset: str, dtype: torch.dtype) -> None:
    torch.manual_seed(7)
    exact = Weights(*FUSED[cell](IN, H).double().parameters())
    x, state = randn(T, B, IN), tuple(randn(B, H) for _ in range(PARTS[cell]))
    expected, _ = unroll(STEPS[cell, reset], x, state, exact)
    cast = tuple(part.to(dtype) for part in state)
    outputs, last = unroll(STEPS[cell, reset], x.to(dtype), cast, Weights(*(rows.to(dtype) for rows in exact)))
    assert {part.dtype for part in (outputs, *last)} == {dtype}
    close(outputs.double(), expected, atol=10 * torch.finfo(dtype).eps)


def test_an_unknown_reset_is_refused() -> None:
    weights = GRUWeights.from_pytorch(*(rows.detach().numpy() for rows in random_gru(IN, H)))
    with pytest.raises(ValueError, match="reset must be 'after' or 'before', not 'Before'"):
        numpy_gru.forward(np.zeros((T, B, IN)), np.zeros((B, H)), weights, "Before")  # type: ignore[arg-type]
