"""The recurrent model. Its state is an argument and a return value, never hidden in the module."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rill.train.config import ModelConfig
from rill.train.nets.cells import State
from rill.train.nets.ngrams import NgramTables
from rill.train.nets.recurrent import fused, has_faster_kernel, run_layers

KINDS: dict[str, type[nn.RNNBase]] = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}


class CharacterModel(nn.Module):
    """A model from symbols to logits: one-hot input or embedding, recurrent layers, one linear layer.

    The logits are for the next symbol, or, with `labels`, for the label of each symbol. Parameters have PyTorch's
    names: `embedding.weight` (V, E) unless the input is one-hot, `rnn.weight_ih_l0` (G * H, E or V),
    `rnn.weight_hh_l0` (G * H, H), `rnn.bias_ih_l0`, …, with `_reverse` for a second direction, `linear.weight`
    (V or labels, D * H), `linear.bias`; G gates, D directions. With n-grams, `ngrams.2.weight` (rows, E or V), ….
    A state is (h,), or (h, c) for an LSTM, each (L * D, B, H) f32; with n-grams, its last part is the context: the last
    symbols that were read, (N - 1, B) int64, the oldest first. `scratch` computes by the equations of
    rill.train.nets.cells instead of fused kernels; `ngram_dropout` is that of NgramTables.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary_size: int,
        labels: int = 0,
        scratch: bool = False,
        ngram_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.vocabulary_size = vocabulary_size
        self.scratch = scratch
        self.embedding = nn.Embedding(vocabulary_size, config.embedding) if config.embedding else None
        width = config.embedding or vocabulary_size
        self.rnn = KINDS[config.cell](
            width,  # type: ignore[arg-type]  # RNNBase's first argument is the mode
            config.hidden,
            config.layers,
            bias=config.bias,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
            bidirectional=config.bidirectional,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(config.features, labels or vocabulary_size)
        self.ngrams = (
            NgramTables(config.ngrams, vocabulary_size, config.ngram_rows, width, ngram_dropout)
            if config.ngrams > 1
            else None
        )

    def initial_state(self, batch: int) -> State:
        """The zero state of `batch` texts."""
        config, weight = self.config, self.linear.weight
        shape = (config.layers * config.directions, batch, config.hidden)
        vectors = tuple(weight.new_zeros(shape) for _ in config.state_parts)
        if self.ngrams is None:
            return vectors
        return *vectors, weight.new_zeros((config.context_length, batch), dtype=torch.int64)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Read `tokens` (B, T) int64 from `state` (zeros if None): logits (B, T, V) f32 and the state after them.

        Under autocast, both have its dtype, and all but the embedding is computed in it. Raises ValueError for a state
        with a wrong number of parts.
        """
        state = self.initial_state(len(tokens)) if state is None else state
        parts = len(self.config.state_parts)
        if len(state) != parts + (self.ngrams is not None):
            raise ValueError(f"the state of a {self.config.cell} model cannot have {len(state)} parts")
        vectors, context = state[:parts], state[parts:]
        kind = tokens.device.type
        if torch.is_autocast_enabled(kind):
            # Autocast itself would pass float16 to cuDNN, whatever its dtype, and mixed dtypes to layers of ours.
            vectors = tuple(part.to(torch.get_autocast_dtype(kind)) for part in vectors)
            with torch.autocast(kind, enabled=False):
                outputs, state = self._recur(tokens, vectors, context)
        else:
            outputs, state = self._recur(tokens, vectors, context)
        return self.linear(self.dropout(outputs)), state

    def _recur(self, tokens: Tensor, state: State, context: State) -> tuple[Tensor, State]:
        """The outputs of the last layer (B, T, D * H) and the state after them, computed in the dtype of `state`.

        `context` is the last part of the state given and returned where there are n-grams, else empty.
        """
        rows: Tensor | None = None
        if self.ngrams is not None:
            ids = torch.cat([*context, tokens.t()])
            rows = self.ngrams(ids).to(state[0].dtype)
            context = (ids[-self.config.context_length :].clone(),)
        compute = self._layer_by_layer if self._by_layer() else self._fused
        outputs, state = compute(tokens, rows, state)
        return outputs, state + context

    def _by_layer(self) -> bool:
        """Whether PyTorch's own kernel cannot compute this model, or is slower."""
        config = self.config
        if config.residual or config.reset == "before" or self.scratch:
            return True
        symbols = self.vocabulary_size if self.embedding is None and self.ngrams is None else 0
        return has_faster_kernel(config.cell, self.linear.weight, config.hidden, symbols)

    def _layer_by_layer(self, tokens: Tensor, rows: Tensor | None, state: State) -> tuple[Tensor, State]:
        """`rows` (T, B, I), those of the n-gram tables, are added to the first layer's input."""
        by_time = tokens.t()  # the rows of a step are contiguous
        inputs = by_time if self.embedding is None else self.embedding(by_time).to(state[0].dtype)
        if rows is not None and self.embedding is None:  # a one-hot vector adds 1 at its symbol
            inputs = rows.scatter_add(2, by_time[:, :, None], rows.new_ones(()).expand(*by_time.shape, 1))
        elif rows is not None:
            inputs = inputs + rows
        outputs, state = run_layers(self.rnn, self.config, inputs, state, self.training, self.scratch)
        return outputs.transpose(0, 1), state

    def _fused(self, tokens: Tensor, rows: Tensor | None, state: State) -> tuple[Tensor, State]:
        """`rows` (T, B, I), those of the n-gram tables, are added to the first layer's input."""
        config, dtype = self.config, state[0].dtype
        x = F.one_hot(tokens, self.vocabulary_size) if self.embedding is None else self.embedding(tokens)
        x = x.to(dtype) if rows is None else x.to(dtype) + rows.transpose(0, 1)
        weights = [weight.to(dtype) for layer in self.rnn.all_weights for weight in layer]
        options = (config.bias, config.layers, self.rnn.dropout, self.training, config.bidirectional)
        return fused(config.cell, x, state, weights, *options, batch_first=True)
