"""Prefect flows and tasks: the only package that imports Prefect.

The flows decide where and when a stage runs; flows/dvc/run.py runs it.
"""

import os

# Set before anything imports prefect. On a slow machine a temporary server takes longer to start
# than Prefect's default of 20 s.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
