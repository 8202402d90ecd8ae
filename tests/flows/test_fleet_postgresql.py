"""A fleet whose Prefect server keeps its runs in PostgreSQL."""

from pathlib import Path

import pytest

from tests.flows.clones import outputs
from tests.flows.fleet import POSTGRESQL, Fleet
from tests.flows.processes import wait_for

pytestmark = [pytest.mark.orchestration, pytest.mark.timeout(2400)]


@pytest.mark.skipif(not POSTGRESQL, reason="PostgreSQL is not installed, or this is not root")
def test_a_server_with_postgresql_does_the_same(tmp_path: Path) -> None:
    with Fleet(tmp_path, postgresql=True) as fleet:
        place = fleet.worker("one", "cpu")
        run = fleet.start("gdpo-stage/cpu", stage="index")
        state = fleet.finished(run)
        assert state["type"] == "COMPLETED", state["message"]
        assert "data/photos" in outputs(place)
        wait_for(lambda: "Running stage 'index'" in fleet.logs(run), 60, "the stage's lines")
        nightly = fleet.get("deployments/name/gdpo-evaluate/nightly")["id"]
        wait_for(
            lambda: fleet.post("flow_runs/filter", deployments={"id": {"any_": [nightly]}}),
            300,
            "a scheduled nightly",
        )
        assert not list(tmp_path.rglob("prefect.db*"))
