"""Training: the record of a run, the schedules, the loop, its checkpoints and its log."""
