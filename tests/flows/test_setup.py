"""What `python -m flows.setup` is asked to make, as far as it shows without a server."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.automations import Automation
from ruamel.yaml import YAML

from flows.automations import (
    alert,
    mark_cancelled_if_not_ended,
    mark_crashed_if_never_started,
    mark_crashed_without_heartbeats,
)
from flows.setup import HEARTBEAT_S, setup

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]


WINDOW = timedelta(seconds=3 * HEARTBEAT_S)


def as_the_server_reads_it(automation: Automation) -> Any:
    # Importing the server takes seconds of every process that collects tests.
    from prefect.server.events.schemas.automations import EventTrigger as ServerTrigger

    return ServerTrigger.model_validate(automation.trigger.model_dump(mode="json"))


def test_a_run_is_given_nine_minutes_before_it_is_called_dead() -> None:
    """Prefect's heartbeat is 180 s; its documentation's 90 s kill healthy runs."""
    for make in (
        mark_crashed_without_heartbeats,
        mark_crashed_if_never_started,
        mark_cancelled_if_not_ended,
    ):
        assert as_the_server_reads_it(make(WINDOW)).within == timedelta(seconds=540)


def test_a_run_that_was_taken_must_begin() -> None:
    """From PENDING on it is watched; whatever state comes next ends the watch."""
    trigger = as_the_server_reads_it(mark_crashed_if_never_started(WINDOW))
    assert trigger.starts_after("prefect.flow-run.Pending")
    assert not trigger.starts_after("prefect.flow-run.Scheduled")
    for state in ("Running", "Crashed", "Cancelled", "Late", "AwaitingConcurrencySlot"):
        assert trigger.expects(f"prefect.flow-run.{state}")
    assert not trigger.expects("prefect.flow-run.Pending")


def test_a_run_that_was_cancelled_must_end() -> None:
    """A heartbeat is no end: the host may die after it, and then no Crashed is allowed."""
    trigger = as_the_server_reads_it(mark_cancelled_if_not_ended(WINDOW))
    assert trigger.starts_after("prefect.flow-run.Cancelling")
    assert not trigger.starts_after("prefect.flow-run.Running")
    for state in ("Cancelled", "Completed", "Crashed", "Failed"):
        assert trigger.expects(f"prefect.flow-run.{state}")
    assert not trigger.expects("prefect.flow-run.heartbeat")


def test_an_alert_is_of_what_went_wrong_and_nothing_else() -> None:
    trigger = as_the_server_reads_it(alert(uuid4()))
    told = ("Failed", "Crashed", "Late", "TimedOut")
    for state in (*told, "Completed", "Running", "Cancelled", "Scheduled"):
        assert trigger.expects(f"prefect.flow-run.{state}") == (state in told)


@pytest.mark.parametrize(
    "url", ["", "hooks.example.org", "ftp://x", "https://", "mailto:a@b", "mailtos://"]
)
def test_a_hook_that_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(
        ValueError, match="--notify must be the http or https address of a web hook, or mailtos://"
    ):
        setup(notify=url)


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
