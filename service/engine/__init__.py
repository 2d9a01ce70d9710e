"""A published model on ONNX Runtime: its file, its sessions, and the devices that run them."""
