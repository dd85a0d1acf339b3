"""The recurrent layers of a model, one by one: for what `nn.GRU` as a whole cannot compute, or computes slowly.

That is residual sums, the GRU that resets before the product, the written-out equations, and training on a CPU.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rill.train.config import ModelConfig
from rill.train.nets.cells import STEPS, State, Weights, unroll
from rill.train.nets.gru_cpu import gru_training
from rill.train.nets.lstm_cpu import lstm_training


def run_layers(
    rnn: nn.RNNBase, config: ModelConfig, inputs: Tensor, state: State, training: bool, scratch: bool
) -> tuple[Tensor, State]:
    """Run every layer of `rnn` over time, with the residual sums that `config` asks for.

    inputs (T, B, I), or tokens (T, B) int64 that stand for one-hot vectors; state: tuple of (L * D, B, H), D
    directions, in the dtype to compute in. Returns outputs (T, B, D * H), of the last layer or the last sum, and the
    state after the last step. `scratch` computes every cell by the equations of rill.train.nets.cells.
    """
    layer = _Layer(config, training, scratch)
    dropout = config.dropout if training else 0.0
    x = inputs
    last: list[State] = []
    for index in range(config.layers):
        read = F.dropout(x, dropout) if index and dropout else x
        directions = []
        for direction in range(config.directions):
            slot = index * config.directions + direction
            entry = tuple(part[slot] for part in state)
            weights = weights_of(rnn, index, direction, entry[0].dtype)
            if direction:  # reads the sequence from its end
                outputs, exit_ = layer(read.flip(0), entry, weights)
                outputs = outputs.flip(0)
            else:
                outputs, exit_ = layer(read, entry, weights)
            directions.append(outputs)
            last.append(exit_)
        h = torch.cat(directions, dim=2) if config.bidirectional else directions[0]  # (T, B, D * H)
        x = x + h if config.residual and index else h
    return x, tuple(torch.stack(parts) for parts in zip(*last, strict=True))


def weights_of(rnn: nn.RNNBase, layer: int, direction: int, dtype: torch.dtype) -> Weights:
    """The four parameters of one layer and direction, in `dtype`; the biases are None in a layer without them."""
    suffix = f"l{layer}{'_reverse' * direction}"
    names = (f"weight_ih_{suffix}", f"weight_hh_{suffix}", f"bias_ih_{suffix}", f"bias_hh_{suffix}")
    parameters = (getattr(rnn, name, None) for name in names)
    return Weights(*(None if weight is None else weight.to(dtype) for weight in parameters))  # type: ignore[arg-type]


def has_faster_kernel(cell: str, weight: Tensor, hidden: int, symbols: int) -> bool:
    """Whether one of our kernels trains faster than PyTorch's. `symbols` is the width of a one-hot input, else 0.

    On a CPU, ours is always faster for a GRU. PyTorch has a good LSTM kernel, so ours is faster only if a one-hot input
    wider than the state is most of the work.
    """
    if not torch.is_grad_enabled() or weight.device.type != "cpu":
        return False
    return cell == "gru" or (cell == "lstm" and symbols > hidden)


class _Layer(NamedTuple):
    """One layer in one direction, computed by the fastest kernel for it."""

    config: ModelConfig
    training: bool
    scratch: bool

    def __call__(self, x: Tensor, state: State, weights: Weights) -> tuple[Tensor, State]:
        """x (T, B, I) or tokens (T, B), state parts (B, H): outputs (T, B, H) and the state after the last step."""
        cell, reset = self.config.cell, self.config.reset
        written_out = self.scratch or reset == "before"
        tokens = x.dtype == torch.int64
        symbols = weights.w_ih.shape[1] if tokens else 0
        if not written_out and has_faster_kernel(cell, weights.w_hh, self.config.hidden, symbols):
            kernel = gru_training if cell == "gru" else lstm_training
            return kernel(x, state, weights)
        if written_out:
            return unroll(STEPS[cell, reset], x, state, weights)
        if tokens:
            x = F.one_hot(x, symbols).to(weights.w_ih.dtype)
        flat = [weight for weight in weights if weight is not None]
        one_layer = tuple(part[None] for part in state)  # (1, B, H)
        bias = weights.b_ih is not None
        outputs, one_layer = fused(cell, x, one_layer, flat, bias, 1, 0.0, self.training, False, False)
        return outputs, tuple(part[0] for part in one_layer)


def fused(
    cell: str,
    x: Tensor,
    state: State,
    weights: list[Tensor],
    bias: bool,
    layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, State]:
    """Run PyTorch's own kernel over all `layers`, as `nn.GRU` and the like do, with `weights` in their order.

    x (T, B, I), or (B, T, I) if `batch_first`, state parts (L * D, B, H). Returns outputs (T, B, D * H) or
    (B, T, D * H), and the state after the last step. All have one dtype.
    """
    options = (weights, bias, layers, dropout, training, bidirectional, batch_first)
    if cell == "lstm":
        outputs, *last = torch.lstm(x, list(state), *options)
    else:
        kernel = torch.gru if cell == "gru" else torch.rnn_tanh
        outputs, *last = kernel(x, state[0], *options)
    return outputs, tuple(last)
