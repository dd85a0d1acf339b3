"""Run a bundle's portable graph without Rill: ONNX Runtime and NumPy only.

    python examples/portable_onnx.py bundles/demo/model.onnx "ROMEO:"

The graph takes `tokens` int64 [batch, time] and, for each state, `state_X` float32 [layers, batch, hidden]; it gives
`logits` float32 [batch, time, vocab] and `next_state_X`. What is needed to run it is in the file's metadata.
"""

import json
import sys

import numpy as np
import onnxruntime


def main(path: str = "bundles/demo/model.onnx", prompt: str = "ROMEO:", length: int = 200) -> None:
    """Read the prompt in one call, then choose `length` characters at temperature 0.7, one call each."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    symbols = json.loads(session.get_modelmeta().custom_metadata_map["rill.vocabulary"])
    ids = {symbol: index for index, symbol in enumerate(symbols)}
    # Every state's shape is [layers, batch, hidden]; the batch is free.
    states = {
        value.name: np.zeros((value.shape[0], 1, value.shape[2]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("state_")
    }
    outputs = ["logits", *(f"next_{name}" for name in states)]
    random = np.random.default_rng(7)

    tokens = [ids[character] for character in prompt] or [ids.get("\n", 0)]  # a text begins as after a newline
    print(prompt, end="")
    for _ in range(length):
        logits, *after = session.run(outputs, {"tokens": np.array([tokens], np.int64), **states})
        states = dict(zip(states, after, strict=True))
        masses = np.exp((logits[0, -1] - logits[0, -1].max()) / 0.7)
        if "<unk>" in ids:
            masses[ids["<unk>"]] = 0  # read, never produced
        tokens = [int(random.choice(len(symbols), p=masses / masses.sum()))]
        print(symbols[tokens[0]], end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
