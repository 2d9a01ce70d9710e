"""Loads published models and runs them on devices with ONNX Runtime."""
