"""Bytes to an image on its canvas, and boxes onto an image. Nothing here knows of HTTP."""
