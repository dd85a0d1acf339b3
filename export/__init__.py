"""Turn a run folder into a verified bundle of ONNX graphs."""
