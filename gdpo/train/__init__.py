"""Common parts of all training loops: the step loop with checkpoints, and data parallelism."""
