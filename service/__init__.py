"""The online half: a Faster R-CNN detection service over ONNX Runtime. It knows nothing of torch."""
