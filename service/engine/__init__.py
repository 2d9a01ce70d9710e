"""Runs published models with ONNX Runtime: their files, their sessions, and the devices."""
