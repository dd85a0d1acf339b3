"""A GRU layer for training on a CPU, with its backward pass written out: the results of `nn.GRU` in less time.

PyTorch differentiates its CPU GRU one operation at a time, and sums the gradient of the recurrent weights from one
small matrix product per step. Here that gradient is one large product after the loop, the backward pass of a step is
four operations, and a one-hot input costs a row look-up.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rill.train.nets.cells import State, Weights


class _GRULayer(torch.autograd.Function):
    """One layer over time, from its input's share of the gates; the equations of `nn.GRU` ("reset after").

    r, z = σ(x_rz + h W_rzᵀ)    q = h W_nᵀ + b_n    n = tanh(x_n + r ⊙ q)    h' = n + z ⊙ (h - n)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, w: Tensor, b_n: Tensor) -> Tensor:
        """x (T, B, 3H) for n, r, z; h (B, H); w (3H, H) for r, z, n; b_n (H) -> every h' (T, B, H)."""
        steps, (batch, hidden) = len(x), h.shape
        states = x.new_empty(steps + 1, batch, hidden)  # h before each step, and the last one
        states[0] = h
        rz, n, q = (x.new_empty(steps, batch, width * hidden) for width in (2, 1, 1))
        x_n, x_rz = torch.split(x, [hidden, 2 * hidden], dim=2)
        w_rz, w_n = (part.t() for part in torch.split(w, [2 * hidden, hidden]))
        parts = by_step(states[:-1], states[1:], x_n, x_rz, rz, *rz.chunk(2, dim=2), n, q)
        for h_t, next_h, x_n_t, x_rz_t, rz_t, r_t, z_t, n_t, q_t in parts:
            torch.addmm(x_rz_t, h_t, w_rz, out=rz_t).sigmoid_()
            torch.addmm(b_n, h_t, w_n, out=q_t)
            torch.addcmul(x_n_t, r_t, q_t, out=n_t).tanh_()
            torch.lerp(n_t, h_t, z_t, out=next_h)
        ctx.save_for_backward(states, rz, n, q, w)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor, ...]:
        """The gradients of the four inputs. With δ the gradient of h', and a bar for that of a gate's argument:

        n̄ = δ ⊙ (1 - z) ⊙ (1 - n²)    r̄ = n̄ ⊙ q ⊙ r ⊙ (1 - r)    z̄ = δ ⊙ (h - n) ⊙ z ⊙ (1 - z)    q̄ = n̄ ⊙ r
        gradient of h = δ ⊙ z + [r̄ z̄ q̄] W
        """
        states, rz, n, q, w = ctx.saved_tensors
        r, z = rz.chunk(2, dim=2)
        before = states[:-1]  # (T, B, H)
        steps, batch, hidden = before.shape
        # All four are δ times a factor without δ, in an order that keeps both n̄ r̄ z̄ and r̄ z̄ q̄ contiguous.
        factors = n.new_empty(steps, batch, 4, hidden)
        f_n, f_r, f_z, f_q = factors.unbind(2)
        torch.mul(1 - z, 1 - n * n, out=f_n)
        torch.mul(f_n, r, out=f_q)
        torch.mul(f_q * q, 1 - r, out=f_r)
        torch.mul((before - n) * z, 1 - z, out=f_z)
        bars = torch.empty_like(factors)
        recurrent = bars.view(steps, batch, 4 * hidden)[:, :, hidden:]  # r̄ z̄ q̄
        delta = torch.zeros_like(before[0])
        for grad_t, factors_t, bars_t, recurrent_t, z_t in reversed(by_step(grad_states, factors, bars, recurrent, z)):
            delta = delta + grad_t
            torch.mul(delta[:, None], factors_t, out=bars_t)
            delta = (delta * z_t).addmm_(recurrent_t, w)
        grad_w = recurrent.flatten(0, 1).t() @ before.flatten(0, 1)
        grad_x = bars.view(steps, batch, 4 * hidden)[:, :, : 3 * hidden]
        return grad_x, delta, grad_w, bars[:, :, 3].sum((0, 1))


def by_step(*parts: Tensor) -> list[tuple[Tensor, ...]]:
    """Split tensors (T, …) into their T steps; all views at once cost less than one after another."""
    return list(zip(*(part.unbind() for part in parts), strict=True))


def gru_training(x: Tensor, state: State, weights: Weights) -> tuple[Tensor, State]:
    """Compute the outputs (T, B, H) and the last state of one layer, to be differentiated on a CPU.

    x is (T, B, I), or tokens (T, B) int64 that stand for one-hot vectors: their product with the input weights is a row
    of a table. state is (h,), h (B, H).
    """
    w_ih, w_hh, b_ih, b_hh = weights
    hidden = w_hh.shape[1]
    bias = b_n = w_hh.new_zeros(())
    if b_ih is not None and b_hh is not None:
        b_rz, b_n = torch.split(b_hh, [2 * hidden, hidden])
        bias = _n_first(b_ih + F.pad(b_rz, (0, hidden)))
    table = _n_first(w_ih).t()
    shares = F.embedding(x, table + bias) if x.dtype == torch.int64 else x @ table + bias  # (T, B, 3H)
    outputs = _GRULayer.apply(shares, *state, w_hh, b_n.expand(hidden))  # type: ignore[no-untyped-call]
    return outputs, (outputs[-1],)


def _n_first(rows: Tensor) -> Tensor:
    """Reorder rows of the gates r, z, n to n, r, z."""
    r, z, n = rows.chunk(3)
    return torch.cat([n, r, z])
