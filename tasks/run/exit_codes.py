"""The exit codes of `gdpo-sr` and `python -m tasks`; 0 is success."""

FAILED = 1
USAGE = 2  # wrong usage or parameters
NEEDS_GPU = 3  # the stage needs a GPU, or more GPUs than this machine has
REGRESSED = 4  # `evaluate --against`: worse than the other run
# As shells report a process that a signal ended: 128 + 2 (SIGINT), 128 + 15 (SIGTERM).
INTERRUPTED = 130  # a tool was stopped by Ctrl-C
STOPPED = 143  # a stage was stopped after a checkpoint; the same command resumes
