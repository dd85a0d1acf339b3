"""The initial weights of a model."""

import torch
from torch import nn

from rill.train.nets.model import CharacterModel
from rill.train.nets.ngrams import is_ngram_table

FORGET_BIAS = 1.0
NORMAL_STD = 0.01


@torch.no_grad()
def initialize(model: CharacterModel, how: str) -> None:
    """Draw the weights of `model` anew, unless `how` is `default`: PyTorch's own, U(-1/√H, 1/√H) for the cells.

    `normal`: N(0, 0.01²), biases 0, as textbooks do. `orthogonal`: each gate's recurrent matrix orthogonal
    (Saxe et al. 2013, arXiv:1312.6120), input matrices Xavier-uniform, biases 0 but 1 for an LSTM's forget gate
    (Jozefowicz et al. 2015); PyTorch's own for the embedding and the output layer. The n-gram tables stay zero.
    """
    if how == "normal":
        for name, parameter in model.named_parameters():
            if not is_ngram_table(name):
                nn.init.normal_(parameter, std=NORMAL_STD) if parameter.dim() > 1 else nn.init.zeros_(parameter)
    elif how == "orthogonal":
        hidden = model.config.hidden
        for name, parameter in model.rnn.named_parameters():
            for gate in torch.split(parameter, hidden):
                if name.startswith("weight_hh"):
                    nn.init.orthogonal_(gate)
                elif name.startswith("weight_ih"):
                    nn.init.xavier_uniform_(gate)
                else:
                    nn.init.zeros_(gate)
            if model.config.cell == "lstm" and name.startswith("bias_ih"):
                parameter[hidden : 2 * hidden] = FORGET_BIAS  # gates i, f, g, o
