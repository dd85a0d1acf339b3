"""The ONNX graphs of a bundle, built from the weights of a run."""
