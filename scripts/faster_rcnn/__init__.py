"""Faster R-CNN: the detector of the paper, its data, training, evaluation and its ONNX graph."""
