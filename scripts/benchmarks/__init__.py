"""What `scripts/benchmark.py` measures and how. Only what concerns torchvision's models imports torch."""
