"""The portable graph, as anybody would load it. Without PyTorch: a peer that does not need it must not carry it."""

import onnxruntime as ort

from rill.bundle import Bundle


def portable_session(bundle: Bundle) -> ort.InferenceSession:
    """ONNX Runtime's session of model.onnx, on the CPU and one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(bundle.graphs["model"], options, providers=["CPUExecutionProvider"])
