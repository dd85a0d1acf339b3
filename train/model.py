"""The recurrent character model. Its state is an argument and a return value, never hidden in the module."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.config import ModelConfig
from train.gru import gru_training

State = tuple[Tensor, ...]


class CharacterModel(nn.Module):
    """Characters in, logits of the next character out: one-hot or embedding, `nn.GRU`, one linear layer.

    Parameters carry PyTorch's names: `embedding.weight` (V, E) unless the input is one-hot, `rnn.weight_ih_l0`
    (3H, E or V), `rnn.weight_hh_l0` (3H, H), `rnn.bias_ih_l0`, …, `linear.weight` (V, H), `linear.bias` (V).
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocabulary_size = vocabulary_size
        self.embedding = nn.Embedding(vocabulary_size, config.embedding) if config.embedding else None
        self.rnn = nn.GRU(
            config.embedding or vocabulary_size,
            config.hidden,
            config.layers,
            bias=config.bias,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(config.hidden, vocabulary_size)

    def initial_state(self, batch: int) -> State:
        """The zero state of `batch` texts about to begin: (h,), h (L, B, H) f32."""
        weight = self.linear.weight
        return (weight.new_zeros(self.config.layers, batch, self.config.hidden),)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Read `tokens` (B, T) int64 from `state` (zeros if None): logits (B, T, V) f32 and the state after the last.

        `state` is (h,) with h (L, B, H) f32, and so is the one returned.
        """
        (h,) = self.initial_state(len(tokens)) if state is None else state
        x = self.embedding(tokens) if self.embedding else None  # (B, T, E)
        if torch.is_grad_enabled() and h.device.type == "cpu":
            dropout = self.rnn.dropout if self.training else 0.0
            outputs, h = gru_training(self.rnn, tokens if x is None else x, h, dropout)
        else:
            if x is None:
                x = F.one_hot(tokens, self.vocabulary_size).to(h.dtype)  # (B, T, V)
            outputs, h = self.rnn(x, h)  # (B, T, H), (L, B, H)
        return self.linear(self.dropout(outputs)), (h,)
