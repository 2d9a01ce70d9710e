"""The detector as one ONNX graph: its export, its verification, its publication."""
