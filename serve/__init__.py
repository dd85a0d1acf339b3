"""Serve bundles as streaming text over gRPC on ONNX Runtime."""
