"""Data sets: images with boxes and labels, from a generator or from disk."""
