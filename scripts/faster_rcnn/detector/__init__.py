"""The detector of the papers: layers, targets, losses, configuration and checkpoints."""
