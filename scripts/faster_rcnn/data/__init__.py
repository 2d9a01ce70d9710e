"""Data sets: pictures with boxes and labels, from a generator or from disk."""
