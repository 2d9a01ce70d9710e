"""The detector that the papers describe: layers, targets, losses, configuration and checkpoints."""
