"""The recurrent model. Its state is an argument and a return value, never hidden in the module."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rill.train.config import ModelConfig
from rill.train.nets.cells import State
from rill.train.nets.recurrent import fused, has_faster_kernel, run_layers

KINDS: dict[str, type[nn.RNNBase]] = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}


class CharacterModel(nn.Module):
    """A model from symbols to logits: one-hot input or embedding, recurrent layers, one linear layer.

    The logits are for the next symbol, or, with `labels`, for the label of each symbol. Parameters have PyTorch's
    names: `embedding.weight` (V, E) unless the input is one-hot, `rnn.weight_ih_l0` (G * H, E or V),
    `rnn.weight_hh_l0` (G * H, H), `rnn.bias_ih_l0`, …, with `_reverse` for a second direction, `linear.weight`
    (V or labels, D * H), `linear.bias`; G gates, D directions. A state is (h,), or (h, c) for an LSTM, each
    (L * D, B, H) f32. `scratch` computes by the equations of rill.train.nets.cells instead of fused kernels.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, labels: int = 0, scratch: bool = False) -> None:
        super().__init__()
        self.config = config
        self.vocabulary_size = vocabulary_size
        self.scratch = scratch
        self.embedding = nn.Embedding(vocabulary_size, config.embedding) if config.embedding else None
        self.rnn = KINDS[config.cell](
            config.embedding or vocabulary_size,  # type: ignore[arg-type]  # RNNBase's first argument is the mode
            config.hidden,
            config.layers,
            bias=config.bias,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
            bidirectional=config.bidirectional,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(config.features, labels or vocabulary_size)

    def initial_state(self, batch: int) -> State:
        """The zero state of `batch` texts."""
        shape = (self.config.layers * self.config.directions, batch, self.config.hidden)
        return tuple(self.linear.weight.new_zeros(shape) for _ in self.config.state_parts)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Read `tokens` (B, T) int64 from `state` (zeros if None): logits (B, T, V) f32 and the state after them.

        Under autocast, both have its dtype, and all but the embedding is computed in it. Raises ValueError for a state
        with a wrong number of parts.
        """
        state = self.initial_state(len(tokens)) if state is None else state
        if len(state) != len(self.config.state_parts):
            raise ValueError(f"the state of a {self.config.cell} model cannot have {len(state)} parts")
        kind = tokens.device.type
        if torch.is_autocast_enabled(kind):
            # Autocast itself would pass float16 to cuDNN, whatever its dtype, and mixed dtypes to layers of ours.
            state = tuple(part.to(torch.get_autocast_dtype(kind)) for part in state)
            with torch.autocast(kind, enabled=False):
                outputs, state = self._recur(tokens, state)
        else:
            outputs, state = self._recur(tokens, state)
        return self.linear(self.dropout(outputs)), state

    def _recur(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """The outputs of the last layer (B, T, D * H) and the state after them, computed in the dtype of `state`."""
        return self._layer_by_layer(tokens, state) if self._by_layer() else self._fused(tokens, state)

    def _by_layer(self) -> bool:
        """Whether PyTorch's own kernel cannot compute this model, or is slower."""
        config = self.config
        if config.residual or config.reset == "before" or self.scratch:
            return True
        symbols = 0 if config.embedding else self.vocabulary_size
        return has_faster_kernel(config.cell, self.linear.weight, config.hidden, symbols)

    def _layer_by_layer(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        by_time = tokens.t()  # the rows of a step are contiguous
        inputs = by_time if self.embedding is None else self.embedding(by_time).to(state[0].dtype)
        outputs, state = run_layers(self.rnn, self.config, inputs, state, self.training, self.scratch)
        return outputs.transpose(0, 1), state

    def _fused(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        config, dtype = self.config, state[0].dtype
        x = F.one_hot(tokens, self.vocabulary_size) if self.embedding is None else self.embedding(tokens)
        weights = [weight.to(dtype) for layer in self.rnn.all_weights for weight in layer]
        options = (config.bias, config.layers, self.rnn.dropout, self.training, config.bidirectional)
        return fused(config.cell, x.to(dtype), state, weights, *options, batch_first=True)
