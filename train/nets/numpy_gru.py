"""A GRU in NumPy alone, float64, with its gradients in closed form: a reference independent of PyTorch.

Vectors are rows, so that a batch is a matrix; ⊙ multiplies element by element, and σ is the logistic sigmoid. A step
reads x (B, I) and the state h (B, H), and computes the next state h', which is also its output:

    r  = σ(x W_r + b_r + h U_r + c_r)
    z  = σ(x W_z + b_z + h U_z + c_z)
    q  = s U_n + c_n               s = h     (reset after)        s = r ⊙ h    (reset before)
    n  = tanh(x W_n + b_n + p)     p = r ⊙ q (reset after)        p = q        (reset before)
    h' = (1 - z) ⊙ n + z ⊙ h

"After" is the GRU of PyTorch and cuDNN; "before" is that of Cho et al. 2014 (arXiv:1406.1078v3).

Backwards through time, from the last step to the first. L is a scalar that depends on the outputs. δ_r, δ_z and δ_n are
the gradients of L with respect to the arguments of the gate's σ or tanh; δ with any other name is the gradient with
respect to that quantity. δ_h' is the direct gradient of L with respect to the step's output, plus δ_h of the next step:

    δ_z = δ_h' ⊙ (h - n) ⊙ z ⊙ (1 - z)
    δ_n = δ_h' ⊙ (1 - z) ⊙ (1 - n ⊙ n)
                                                after                      before
    δ_q =                                       δ_n ⊙ r                    δ_n
    δ_s = δ_q U_nᵀ
    δ_r = r ⊙ (1 - r) ⊙                         δ_n ⊙ q                    δ_s ⊙ h
    δ_h = δ_h' ⊙ z + δ_r U_rᵀ + δ_z U_zᵀ +      δ_s                        δ_s ⊙ r
    δ_x = δ_r W_rᵀ + δ_z W_zᵀ + δ_n W_nᵀ

The weights are used at every step and for every row of the batch, so their gradients are sums over both:

    W_r: Σ xᵀ δ_r    b_r: Σ δ_r    U_r: Σ hᵀ δ_r    c_r: Σ δ_r
    W_z: Σ xᵀ δ_z    b_z: Σ δ_z    U_z: Σ hᵀ δ_z    c_z: Σ δ_z
    W_n: Σ xᵀ δ_n    b_n: Σ δ_n    U_n: Σ sᵀ δ_q    c_n: Σ δ_q
"""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Reset = Literal["after", "before"]


@dataclass(frozen=True)
class Gate:
    """The parameters of one gate, or their gradients: W (I, H) and b (H) for the input, U (H, H) and c (H) for h."""

    W: Array
    b: Array
    U: Array
    c: Array


@dataclass(frozen=True)
class GRUWeights:
    """The parameters of the gates r and z and of the candidate n, or their gradients."""

    r: Gate
    z: Gate
    n: Gate

    @classmethod
    def from_pytorch(
        cls, w_ih: ArrayLike, w_hh: ArrayLike, b_ih: ArrayLike | None = None, b_hh: ArrayLike | None = None
    ) -> Self:
        """Convert from PyTorch's layout: w_ih (3H, I), w_hh (3H, H), b_ih, b_hh (3H), stacked r, z, n. None is zero."""
        W, U = np.asarray(w_ih, np.float64), np.asarray(w_hh, np.float64)
        b, c = (np.zeros(len(U)) if bias is None else np.asarray(bias, np.float64) for bias in (b_ih, b_hh))
        parts = (np.split(array, 3) for array in (W, b, U, c))
        return cls(*(Gate(W.T, b, U.T, c) for W, b, U, c in zip(*parts, strict=True)))

    def to_pytorch(self) -> tuple[Array, Array, Array, Array]:
        """Convert to w_ih, w_hh, b_ih and b_hh in PyTorch's layout."""
        gates = (self.r, self.z, self.n)
        return (
            np.concatenate([gate.W.T for gate in gates]),
            np.concatenate([gate.U.T for gate in gates]),
            np.concatenate([gate.b for gate in gates]),
            np.concatenate([gate.c for gate in gates]),
        )


@dataclass(frozen=True)
class Trace:
    """The values of a forward pass: x (T, B, I), all else (T, B, H). `h` is the state before each step."""

    reset: Reset
    x: Array
    h: Array
    r: Array
    z: Array
    s: Array
    q: Array
    n: Array
    outputs: Array


@dataclass(frozen=True)
class Gradients:
    """Gradients with respect to the inputs x (T, B, I), the initial state h (B, H) and the weights."""

    x: Array
    h: Array
    weights: GRUWeights


def forward(x: Array, h: Array, weights: GRUWeights, reset: Reset = "after") -> Trace:
    """Run the GRU over x (T, B, I), T at least 1, from the state h (B, H). The last output is the final state.

    Raises ValueError for a `reset` other than "after" and "before".
    """
    if reset not in ("after", "before"):
        raise ValueError(f"reset must be 'after' or 'before', not {reset!r}")
    w_r, w_z, w_n = weights.r, weights.z, weights.n
    steps = []
    for x_t in x:
        r = _sigmoid(x_t @ w_r.W + w_r.b + h @ w_r.U + w_r.c)
        z = _sigmoid(x_t @ w_z.W + w_z.b + h @ w_z.U + w_z.c)
        s = h if reset == "after" else r * h
        q = s @ w_n.U + w_n.c
        n = np.tanh(x_t @ w_n.W + w_n.b + (r * q if reset == "after" else q))
        output = (1 - z) * n + z * h
        steps.append((x_t, h, r, z, s, q, n, output))
        h = output
    return Trace(reset, *(np.stack(arrays) for arrays in zip(*steps, strict=True)))


def backward(trace: Trace, grad_outputs: Array, weights: GRUWeights) -> Gradients:
    """Compute the gradients of a scalar L from those with respect to the outputs, grad_outputs (T, B, H).

    `weights` are those of the forward pass. If L depends on the final state too, add that gradient to grad_outputs[-1].
    """
    reset_after = trace.reset == "after"
    w_r, w_z, w_n = weights.r, weights.z, weights.n
    delta_r, delta_z, delta_n, delta_q = (np.empty_like(trace.n) for _ in range(4))
    delta_h = np.zeros_like(trace.n[0])
    for t in reversed(range(len(trace.n))):
        h, r, z, q, n = trace.h[t], trace.r[t], trace.z[t], trace.q[t], trace.n[t]
        delta_output = grad_outputs[t] + delta_h
        delta_z[t] = delta_output * (h - n) * z * (1 - z)
        delta_n[t] = delta_output * (1 - z) * (1 - n * n)
        delta_q[t] = delta_n[t] * r if reset_after else delta_n[t]
        delta_s = delta_q[t] @ w_n.U.T
        delta_r[t] = r * (1 - r) * (delta_n[t] * q if reset_after else delta_s * h)
        delta_h = delta_output * z + delta_r[t] @ w_r.U.T + delta_z[t] @ w_z.U.T
        delta_h += delta_s if reset_after else delta_s * r
    delta_x = delta_r @ w_r.W.T + delta_z @ w_z.W.T + delta_n @ w_n.W.T
    grad_weights = GRUWeights(
        r=_gate_gradients(trace.x, delta_r, trace.h, delta_r),
        z=_gate_gradients(trace.x, delta_z, trace.h, delta_z),
        n=_gate_gradients(trace.x, delta_n, trace.s, delta_q),
    )
    return Gradients(delta_x, delta_h, grad_weights)


def _gate_gradients(x: Array, delta_wb: Array, read: Array, delta_uc: Array) -> Gate:
    """The gradients of a gate, from the inputs of W (and b) and U (and c) and both δ; each (T, B, ·)."""
    over = ([0, 1], [0, 1])  # sum over steps and batch
    return Gate(
        W=np.tensordot(x, delta_wb, over),
        b=delta_wb.sum((0, 1)),
        U=np.tensordot(read, delta_uc, over),
        c=delta_uc.sum((0, 1)),
    )


def _sigmoid(a: Array) -> Array:
    """Compute σ(a) = 1 / (1 + exp(-a)) by tanh, because exp would overflow for large negative a."""
    return 0.5 + 0.5 * np.tanh(0.5 * a)
