"""Turn run folders into verified bundles of ONNX graphs."""

import os

# ONNX Runtime's official builds report their use to Microsoft, unless this is set before the first import of it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
