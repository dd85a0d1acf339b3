"""Why a checkpoint is not a model that can be exported: what its tensors show, in words.

A reason never ends in a command that would export another model: it names what was found, and what the models here are.
"""

import re
from collections.abc import Mapping

from torch import Tensor

# Parts of names, in lower case, and what they tell.
_KINDS = [
    (r"attn|attention|in_proj_weight|q_proj|k_proj|key\.weight|query\.weight", "attention"),
    (
        r"(^|[._])h?0$|(^|[._])c0$|init_?(state|hidden)|initial_?(state|hidden)|h_?zero|start_?state",
        "a learned initial state",
    ),
    (r"running_mean|running_var|(^|[._])bn|batch_?norm", "batch normalisation"),
    (r"(^|[._])ln|layer_?norm|(^|[._])norm", "normalisation"),
    (r"conv|tcn", "a convolution"),
    (r"pos_?(emb|enc)|wpe|position", "positions"),
    (r"peephole|w_c[ifo]", "peepholes"),
    (r"highway|skip|residual|shortcut", "a connection past a layer"),
]


def in_words(tensors: Mapping[str, Tensor]) -> str:
    """What tensors without a role are, as far as their names tell; empty if they do not."""
    told = []
    for pattern, meaning in _KINDS:
        if any(re.search(pattern, name.lower()) for name in tensors):
            told.append(meaning)
    if not told and all(name.endswith((".weight", ".bias")) for name in tensors):
        if any(tensor.ndim == 2 for tensor in tensors.values()):
            told.append("a further linear layer or embedding")
        elif all(tensor.ndim == 1 for tensor in tensors.values()):
            told.append("normalisation, or biases of a further layer")
    return " and ".join(told[:2])


def of_another_kind(tensors: Mapping[str, Tensor]) -> str:
    """What a checkpoint without recurrent weights by PyTorch's names is, as far as its names tell; or nothing."""
    names = [name.lower() for name in tensors]
    if any(re.search(r"recurrent_kernel|/kernel|kernel:0|kernel$", name) for name in names):
        return (
            "these are names of Keras or TensorFlow, whose matrices are transposed and whose gates are in another order"
        )
    if any(re.search(r"attn|attention|in_proj_weight", name) for name in names):
        return (
            "it seems to be a transformer, which has no recurrent state; models here are a GRU, an LSTM or a tanh-RNN"
        )
    if any(re.search(r"conv", name) for name in names):
        return "it seems to be a convolutional model; models here are a GRU, an LSTM or a tanh-RNN"
    if any(re.search(r"i2h|h2h|h2o|in2hidden", name) for name in names):
        return "it seems to have a cell of its own, made of linear layers; models here are as nn.GRU, nn.LSTM or nn.RNN"
    return ""


def of_ends(tensors: Mapping[str, Tensor], cell: str, hidden: int, inputs: int, symbols: int | None) -> str:
    """Why matrices do not fit as embedding and output layer; empty if that is unclear.

    `tensors` are the matrices that are not recurrent, `symbols` the size of the vocabulary, if that is known.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    pairs = [(one, other) for one in shapes for other in shapes if one != other]
    for first, middle in pairs:
        (rows, width), between = shapes[first], shapes[middle]
        if between == (inputs, width) and rows == (symbols or rows) and inputs not in {rows, width}:
            return _between(middle, between, f"the embedding {first} {shapes[first]} and the {cell}")
    for middle, last in pairs:
        between, (rows, width) = shapes[middle], shapes[last]
        if between == (width, hidden) and rows == (symbols or rows) and width not in {rows, hidden}:
            return _between(middle, between, f"the {cell} and the output layer {last} {shapes[last]}")
    for first, last in pairs:
        (rows, width), (others, columns) = shapes[first], shapes[last]
        if (
            width == inputs
            and columns == hidden
            and 0 < abs(rows - others) <= 4
            and (symbols or rows) in (rows, others)
        ):
            return (
                f"the embedding {first} {shapes[first]} has {rows} rows, but the output layer {last} {shapes[last]} "
                f"has {others}: row i of both must belong to the symbol with id i, so a model in which one has rows "
                "more, for padding or a start symbol, must be saved with the same rows in both"
            )
    for name, (rows, columns) in shapes.items():
        if symbols and columns == symbols and rows in (hidden, inputs) and rows != symbols:
            return f"{name} {shapes[name]} has a column for each symbol, but nn.Embedding and nn.Linear have a row"
    return ""


def _between(name: str, shape: tuple[int, ...], where: str) -> str:
    return f"{name} {shape} lies between {where}: a further linear layer cannot be expressed here"
