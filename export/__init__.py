"""Turn run folders into verified bundles of ONNX graphs."""
