"""The exit codes of `gdpo-sr` and `python -m tasks`, as `__main__` documents them."""

FAILED, USAGE = 1, 2
NEEDS_GPU = 3
REGRESSED = 4  # `evaluate --against`
INTERRUPTED = 130  # a tool, by Ctrl-C
STOPPED = 143  # a stage, by SIGTERM or SIGINT, after a checkpoint
