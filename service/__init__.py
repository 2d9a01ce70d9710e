"""The online half: a Faster R-CNN detection service over ONNX Runtime. It never imports torch."""
