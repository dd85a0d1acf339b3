"""The portable graph: logits for whole texts, in standard ONNX operators, for any runtime.

inputs    tokens        int64 [batch, time]
          state_h       f32   [layers, batch, hidden]
outputs   logits        f32   [batch, time, vocab]
          next_state_h  f32   [layers, batch, hidden]   the state after the last step: the next call's `state_h`
"""

from collections.abc import Mapping

import numpy as np

from export.graph import FLOAT, INT64, Graph, model_bytes, tensor
from export.weights import Matrix, Weights


def model_graph(weights: Weights, metadata: Mapping[str, str]) -> bytes:
    """The serialised portable graph."""
    layers, hidden, vocabulary = len(weights.layers), weights.hidden, weights.vocabulary_size
    g = Graph("model")
    by_time = g.op("Transpose", "tokens", perm=[1, 0])  # ONNX's GRU wants time first
    if weights.embedding is None:
        # OneHot(indices, depth, [off, on]) -> (time, batch, vocab)
        x = g.op("OneHot", by_time, g.constant(vocabulary), g.constant(np.array([0, 1], np.float32)))
    else:
        x = g.op("Gather", g.constant(weights.embedding.astype(np.float32), "embedding.weight"), by_time)

    axis_1 = g.constant([1])
    entry = g.ops("Split", "state_h", out=layers, axis=0, num_outputs=layers)  # each (1, batch, hidden)
    exit_ = []
    for index, layer in enumerate(weights.layers):
        bias = np.concatenate([_gates_zrh(layer.input_bias), _gates_zrh(layer.hidden_bias)])
        outputs, final = g.ops(
            "GRU",
            x,
            g.constant(_gates_zrh(layer.input)[None], f"rnn.weight_ih_l{index}"),
            g.constant(_gates_zrh(layer.hidden)[None], f"rnn.weight_hh_l{index}"),
            g.constant(bias[None], f"rnn.bias_l{index}"),
            "",  # sequence_lens: all rows are as long as the batch
            entry[index],
            out=2,
            hidden_size=hidden,
            linear_before_reset=1,  # PyTorch's GRU: the reset gate scales the product, not the state
        )
        x = g.op("Squeeze", outputs, axis_1)  # (time, directions = 1, batch, hidden) -> (time, batch, hidden)
        exit_.append(final)
    g.op("Concat", *exit_, axis=0, out="next_state_h") if layers > 1 else g.op("Identity", *exit_, out="next_state_h")

    by_batch = g.op("Transpose", x, perm=[1, 0, 2])
    product = g.op("MatMul", by_batch, g.constant(weights.linear.T.astype(np.float32), "linear.weight"))
    g.op("Add", product, g.constant(weights.linear_bias.astype(np.float32), "linear.bias"), out="logits")
    return model_bytes(
        g.finish(
            inputs=[
                tensor("tokens", INT64, ["batch", "time"]),
                tensor("state_h", FLOAT, [layers, "batch", hidden]),
            ],
            outputs=[
                tensor("logits", FLOAT, ["batch", "time", vocabulary]),
                tensor("next_state_h", FLOAT, [layers, "batch", hidden]),
            ],
        ),
        metadata,
    )


def _gates_zrh(values: Matrix) -> np.ndarray:
    """PyTorch stacks the gates r, z, n; ONNX z, r, h."""
    r, z, n = np.split(values, 3, axis=0)
    return np.concatenate([z, r, n], axis=0).astype(np.float32)
