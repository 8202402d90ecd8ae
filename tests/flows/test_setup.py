"""What `python -m flows.setup` is asked to make, as far as it shows without a server."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.setup import HEARTBEAT_S, _crash_the_dead, setup

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]


def test_a_run_is_given_nine_minutes_before_it_is_called_dead() -> None:
    """Prefect's heartbeat is 180 s; its documentation's 90 s kill healthy runs."""
    automation = _crash_the_dead(timedelta(seconds=3 * HEARTBEAT_S))
    assert automation.trigger.within == timedelta(seconds=540)  # type: ignore[union-attr]


def test_without_a_server_nothing_is_set_up(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-m", "flows.setup"]
    env["PREFECT_HOME"] = str(tmp_path)
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and not result.stdout
    assert result.stderr.startswith("PREFECT_API_URL is not set") and result.stderr.count("\n") == 1


def test_a_store_that_is_no_bucket_is_refused() -> None:
    with pytest.raises(ValueError, match="--store must be s3://BUCKET, got s3://bucket/folder"):
        setup("s3://bucket/folder")


def test_one_at_a_time_is_the_queues_limit_and_no_lease() -> None:
    """A deployment's limit is a lease: a server that was restarted, or called the run crashed, has
    lost it, and Prefect ends the run. Or it drops the second run."""
    deployments = YAML(typ="safe").load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert not [deployment for deployment in deployments if "concurrency_limit" in deployment]
    queues = {
        deployment["name"]: deployment["work_pool"].get("work_queue_name")
        for deployment in deployments
    }
    assert {name: queue for name, queue in queues.items() if queue} == {
        "head": "pipeline",
        "nightly": "nightly",
    }
