"""Decodes images onto their canvases, and draws boxes on images. Nothing here depends on HTTP."""
