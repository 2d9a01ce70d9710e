"""torchvision's Faster R-CNN models, made exportable: each image is computed as if it were alone on its canvas."""
