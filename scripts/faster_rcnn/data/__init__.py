"""Data sets: images with boxes and labels, generated or read from a folder."""
