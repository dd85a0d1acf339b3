"""An LSTM layer for training on a CPU, with its backward pass written out: the results of `nn.LSTM` in less time.

As in rill.train.nets.gru_cpu, the gradient of the recurrent weights is one large product after the loop, and a one-hot
input costs a row look-up, which is most of the gain for a thousand symbols.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rill.train.nets.cells import State, Weights
from rill.train.nets.gru_cpu import by_step


class _LSTMLayer(torch.autograd.Function):
    """One layer over time, from its input's share of the gates; the equations of `nn.LSTM`.

    i, f, o = σ(x + h Wᵀ)    g = tanh(x + h Wᵀ)    c' = f ⊙ c + i ⊙ g    h' = o ⊙ tanh(c')
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, c: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """x (T, B, 4H), h and c (B, H), w (4H, H) -> every h' and every c', both (T, B, H)."""
        steps, (batch, hidden) = len(x), h.shape
        states = x.new_empty(steps + 1, batch, hidden)  # h before each step, and the last one
        cells = torch.empty_like(states)
        states[0], cells[0] = h, c
        gates = torch.empty_like(x)
        squashed = torch.empty_like(states[1:])  # tanh(c')
        before, after = (states[:-1], cells[:-1]), (states[1:], cells[1:])
        parts = by_step(x, *before, *after, gates, squashed, gates[:, :, : 2 * hidden], *gates.chunk(4, dim=2))
        for x_t, h_t, c_t, next_h, next_c, gates_t, squashed_t, i_f_t, i_t, f_t, g_t, o_t in parts:
            torch.addmm(x_t, h_t, w.t(), out=gates_t)
            i_f_t.sigmoid_()
            g_t.tanh_()
            o_t.sigmoid_()
            torch.mul(f_t, c_t, out=next_c).addcmul_(i_t, g_t)
            torch.tanh(next_c, out=squashed_t)
            torch.mul(o_t, squashed_t, out=next_h)
        ctx.save_for_backward(states, cells, gates, squashed, w)
        return states[1:], cells[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor, grad_cells: Tensor) -> tuple[Tensor, ...]:
        """The gradients of the four inputs. With δ and ε those of h' and c', and a bar for that of a gate's argument:

        ō = δ ⊙ tanh(c') ⊙ o ⊙ (1 - o)    ε' = ε + δ ⊙ o ⊙ (1 - tanh²(c'))    ī = ε' ⊙ g ⊙ i ⊙ (1 - i)
        f̄ = ε' ⊙ c ⊙ f ⊙ (1 - f)    ḡ = ε' ⊙ i ⊙ (1 - g²)    gradient of c = ε' ⊙ f, of h = [ī f̄ ḡ ō] W
        """
        states, cells, gates, squashed, w = ctx.saved_tensors
        i, f, g, o = gates.chunk(4, dim=2)
        steps, batch, hidden = squashed.shape
        # The factors without δ and ε, for all steps at once.
        c_factor = o * (1 - squashed * squashed)
        o_factor = squashed * o * (1 - o)
        factors = torch.stack([g * i * (1 - i), cells[:-1] * f * (1 - f), i * (1 - g * g)], dim=2)  # (T, B, 3, H)
        bar = gates.new_empty(steps, batch, 4, hidden)
        rows = bar.view(steps, batch, 4 * hidden)
        delta, epsilon = torch.zeros_like(states[0]), torch.zeros_like(states[0])
        parts = by_step(grad_states, grad_cells, c_factor, o_factor, factors, bar[:, :, :3], bar[:, :, 3], rows, f)
        for grad_h, grad_c, cell_t, output_t, factors_t, bar_ifg, bar_o, rows_t, f_t in reversed(parts):
            delta = delta + grad_h
            epsilon = torch.addcmul(epsilon + grad_c, delta, cell_t)
            torch.mul(epsilon[:, None], factors_t, out=bar_ifg)
            torch.mul(delta, output_t, out=bar_o)
            epsilon = epsilon * f_t
            delta = rows_t @ w
        grad_w = rows.flatten(0, 1).t() @ states[:-1].flatten(0, 1)
        return rows, delta, epsilon, grad_w


def lstm_training(x: Tensor, state: State, weights: Weights) -> tuple[Tensor, State]:
    """Compute the outputs (T, B, H) and the last state of one layer, to be differentiated on a CPU.

    x is (T, B, I), or tokens (T, B) int64 that stand for one-hot vectors. state is (h, c), each (B, H).
    """
    w_ih, w_hh, b_ih, b_hh = weights
    bias = w_hh.new_zeros(()) if b_ih is None or b_hh is None else b_ih + b_hh
    shares = F.embedding(x, w_ih.t() + bias) if x.dtype == torch.int64 else x @ w_ih.t() + bias  # (T, B, 4H)
    outputs, cells = _LSTMLayer.apply(shares, *state, w_hh)  # type: ignore[no-untyped-call]
    return outputs, (outputs[-1], cells[-1])
