"""The detector of the papers: its layers, targets and losses, its configuration and its checkpoints."""
