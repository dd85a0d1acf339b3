"""An LSTM layer for training on a CPU, with its backward pass written out: `nn.LSTM`'s results in less time.

As train.gru: the gradient of the recurrent weights is one large product after the loop, and a one-hot input costs a row
look-up, which for a thousand symbols is most of what there is to gain.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from train.cells import State, Weights


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
        for t in range(steps):
            torch.addmm(x[t], states[t], w.t(), out=gates[t])
            i, f, g, o = gates[t].chunk(4, dim=1)
            gates[t, :, : 2 * hidden].sigmoid_()
            g.tanh_()
            o.sigmoid_()
            torch.mul(f, cells[t], out=cells[t + 1]).addcmul_(i, g)
            torch.tanh(cells[t + 1], out=squashed[t])
            torch.mul(o, squashed[t], out=states[t + 1])
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
        # What does not depend on δ and ε, for all steps at once.
        cell_factor = o * (1 - squashed * squashed)
        output_factor = squashed * o * (1 - o)
        factors = torch.cat([g * i * (1 - i), cells[:-1] * f * (1 - f), i * (1 - g * g)], dim=2)  # (T, B, 3H)
        bar = torch.empty_like(gates)
        delta, epsilon = torch.zeros_like(states[0]), torch.zeros_like(states[0])
        batch, hidden = delta.shape
        for t in reversed(range(len(gates))):
            delta = delta + grad_states[t]
            epsilon = torch.addcmul(epsilon + grad_cells[t], delta, cell_factor[t])
            rows = bar[t].view(batch, 4, hidden)
            torch.mul(factors[t].view(batch, 3, hidden), epsilon[:, None], out=rows[:, :3])
            torch.mul(delta, output_factor[t], out=rows[:, 3])
            epsilon = epsilon * f[t]
            delta = bar[t] @ w
        grad_w = bar.flatten(0, 1).t() @ states[:-1].flatten(0, 1)
        return bar, delta, epsilon, grad_w


def lstm_training(x: Tensor, state: State, weights: Weights) -> tuple[Tensor, State]:
    """The outputs (T, B, H) and the last state of one layer, by a pass that will be differentiated on a CPU.

    x is (T, B, I), or tokens (T, B) int64 that stand for one-hot vectors. state is (h, c), each (B, H).
    """
    w_ih, w_hh, b_ih, b_hh = weights
    bias = w_hh.new_zeros(()) if b_ih is None or b_hh is None else b_ih + b_hh
    shares = F.embedding(x, w_ih.t() + bias) if x.dtype == torch.int64 else x @ w_ih.t() + bias  # (T, B, 4H)
    outputs, cells = _LSTMLayer.apply(shares, *state, w_hh)  # type: ignore[no-untyped-call]
    return outputs, (outputs[-1], cells[-1])
