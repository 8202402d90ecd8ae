"""Orchestration: the only place that knows Prefect. Decides where and when; flows/dvc/run.py runs a
stage.
"""

import os

# Before anything imports prefect. A temporary server takes longer than Prefect's 20 s to come up on
# a slow machine.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
