"""The recurrent cells written out, one step at a time, to be read beside the formulas of the fused kernels.

In the formulas, vectors are columns, ⊙ multiplies element by element, σ is the logistic sigmoid, and a prime marks the
next state. In the code, a batch has one vector per row, and the input's share of every gate, W_ih x + b_ih, is given:
it does not depend on the state, so `input_shares` computes it for all steps at once. Parameters are in PyTorch's
layout: the rows of a matrix, and the entries of a bias, are stacked by gate, in the order r, z, n (GRU) or i, f, g, o
(LSTM).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

State = tuple[Tensor, ...]


class Weights(NamedTuple):
    """The parameters of one cell with G gates (RNN 1, GRU 3, LSTM 4), I inputs and H units, of one dtype.

    w_ih (G * H, I) and b_ih (G * H) act on the input, w_hh (G * H, H) and b_hh (G * H) on the state. Biases
    may be None.
    """

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None


Step = Callable[[Tensor, State, Weights], State]


def rnn_step(x: Tensor, state: State, weights: Weights) -> State:
    """Step the simple recurrent network of Elman (1990), as in `nn.RNN`.

    h' = tanh(W_ih x + b_ih + W_hh h + b_hh)

    x (B, H), the input's share; state (h,), h (B, H). Raises ValueError unless the state has one part.
    """
    (h,) = _parts(state, "h")
    return (torch.tanh(x + F.linear(h, weights.w_hh, weights.b_hh)),)


def gru_step(x: Tensor, state: State, weights: Weights) -> State:
    """Step the gated recurrent unit that resets after the recurrent product, as in `nn.GRU` and cuDNN.

    r  = σ(W_ir x + b_ir + W_hr h + b_hr)
    z  = σ(W_iz x + b_iz + W_hz h + b_hz)
    n  = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
    h' = (1 - z) ⊙ n + z ⊙ h

    x (B, 3H), the input's shares; state (h,), h (B, H). Raises ValueError unless the state has one part.
    """
    (h,) = _parts(state, "h")
    x_r, x_z, x_n = x.chunk(3, dim=1)
    h_r, h_z, h_n = F.linear(h, weights.w_hh, weights.b_hh).chunk(3, dim=1)
    r = torch.sigmoid(x_r + h_r)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return ((1 - z) * n + z * h,)


def gru_reset_before_step(x: Tensor, state: State, weights: Weights) -> State:
    """Step the gated recurrent unit that resets before the recurrent product: Cho et al. 2014, arXiv:1406.1078v3.

    r, z and h' are as in `gru_step`;
    n  = tanh(W_in x + b_in + W_hn (r ⊙ h) + b_hn)

    ONNX calls this linear_before_reset = 0. x (B, 3H), the input's shares; state (h,), h (B, H). Raises ValueError
    unless the state has one part.
    """
    (h,) = _parts(state, "h")
    w_hr, w_hz, w_hn = weights.w_hh.chunk(3)
    b_hr, b_hz, b_hn = (None, None, None) if weights.b_hh is None else weights.b_hh.chunk(3)
    x_r, x_z, x_n = x.chunk(3, dim=1)
    r = torch.sigmoid(x_r + F.linear(h, w_hr, b_hr))
    z = torch.sigmoid(x_z + F.linear(h, w_hz, b_hz))
    n = torch.tanh(x_n + F.linear(r * h, w_hn, b_hn))
    return ((1 - z) * n + z * h,)


def lstm_step(x: Tensor, state: State, weights: Weights) -> State:
    """Step the long short-term memory with a forget gate and no peepholes, as in `nn.LSTM`.

    i  = σ(W_ii x + b_ii + W_hi h + b_hi)
    f  = σ(W_if x + b_if + W_hf h + b_hf)
    g  = tanh(W_ig x + b_ig + W_hg h + b_hg)
    o  = σ(W_io x + b_io + W_ho h + b_ho)
    c' = f ⊙ c + i ⊙ g
    h' = o ⊙ tanh(c')

    x (B, 4H), the input's shares; state (h, c), each (B, H). Raises ValueError unless the state has two parts.
    """
    h, c = _parts(state, "h, c")
    i, f, g, o = (x + F.linear(h, weights.w_hh, weights.b_hh)).chunk(4, dim=1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


# By `cell` and `reset` of rill.train.config.ModelConfig.
STEPS: dict[tuple[str, str], Step] = {
    ("rnn", "after"): rnn_step,
    ("gru", "after"): gru_step,
    ("gru", "before"): gru_reset_before_step,
    ("lstm", "after"): lstm_step,
}


def unroll(step: Step, x: Tensor, state: State, weights: Weights) -> tuple[Tensor, State]:
    """Run a cell over time, for x (T, B, I) or tokens (T, B), T at least 1, and a state of (B, H) parts.

    Returns every step's output (T, B, H), which is the first part of the state after it, and the state after the last.
    Raises ValueError if the state has a wrong number of parts.
    """
    outputs = []
    for share in input_shares(x, weights):
        state = step(share, state, weights)
        outputs.append(state[0])
    return torch.stack(outputs), state


def input_shares(x: Tensor, weights: Weights) -> Tensor:
    """Compute W_ih x + b_ih of every step and gate, (T, B, G * H), for x (T, B, I).

    For tokens (T, B) int64, which stand for one-hot vectors, the product is a row of W_ihᵀ.
    """
    if x.dtype != torch.int64:
        return F.linear(x, weights.w_ih, weights.b_ih)
    product = F.embedding(x, weights.w_ih.t())
    return product if weights.b_ih is None else product + weights.b_ih


def other_update_convention(weights: Weights) -> Weights:
    """Convert a GRU's weights to the other meaning of its update gate. Its own inverse; for both kinds of reset gate.

    Here, as in PyTorch, Keras and ONNX, h' = (1 - z) ⊙ n + z ⊙ h. Elsewhere (Chung et al. 2014, arXiv:1412.3555, and
    Microsoft's ai-edu course) h' = (1 - z) ⊙ h + z ⊙ n. Because 1 - σ(a) = σ(-a), negating the weights of z turns
    weights trained with one convention into weights that compute the same with the other.
    """

    def negate_z(rows: Tensor) -> Tensor:
        r, z, n = rows.chunk(3)
        return torch.cat([r, -z, n])

    return Weights(*(None if rows is None else negate_z(rows) for rows in weights))  # type: ignore[arg-type]


def _parts(state: State, names: str) -> State:
    """Return `state` if it has as many parts as `names` has names; raises ValueError otherwise."""
    expected = len(names.split(", "))
    if len(state) != expected:
        raise ValueError(f"this cell's state has {expected} part{'s' * (expected > 1)} ({names}), not {len(state)}")
    return state
