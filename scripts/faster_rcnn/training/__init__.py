"""Training: schedules, the loop, its checkpoints and its log."""
