"""Training: the loop, checkpoints, the record of a run, and estimates of its cost."""
