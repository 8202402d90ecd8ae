"""What the flows of a worker do in which order, and what they refuse; DVC, S3 and Prefect's engine
are stood for.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from flows import evaluate, stage, train
from flows.dvc.run import StageFailed
from tasks.publish import publication

pytestmark = pytest.mark.processes

GRAPH = {"rollout": set[str](), "finetune@gdpo": {"rollout"}, "evaluate@sample": {"finetune@gdpo"}}
NOW = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the flows did, in their words: "pull rollout"."""
    did: list[str] = []

    def stand_in(name: str) -> Callable[..., Any]:
        def call(*args: Any, **_: Any) -> Any:
            names = [arg for arg in args if isinstance(arg, str)]
            did.append(" ".join([name, *names]))
            return (
                GRAPH
                if name == "graph"
                else ["rollout"]
                if name == "check_inputs"
                else {names[0]: {}}
                if names
                else {}
            )

        return call

    for module in (train, stage, evaluate):
        for name in (
            "check_commit",
            "commit_of",
            "graph",
            "take_pipelines_ledger",
            "take_ledger",
            "check_inputs",
            "pull",
            "repro",
            "push",
            "publish",
            "leave_ledger",
            "write_ledger",
            "read_ledger",
            "restore_ledger",
            "promoted_scores",
            "evaluation_of",
            "note_evaluation",
        ):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, stand_in(name))
    monkeypatch.setattr(stage, "read_ledger", lambda root: {"finetune@gdpo": {}})
    return did


def test_a_training_begins_with_the_pipelines_ledger_and_leaves_its_own_before_it_is_published(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "the-run")
    train.train.fn()
    short = [entry.split(" ")[0] for entry in done]
    assert short[short.index("graph") :] == [
        "graph",
        "take_pipelines_ledger",
        "check_inputs",
        "pull",
        "repro",
        "push",
        "repro",
        "push",
        "leave_ledger",
        "publish",
    ]
    assert (
        "leave_ledger the-run" in done
        and "repro finetune@gdpo" in done
        and "repro rollout" not in done
    )


def test_a_stage_by_hand_is_checked_and_one_of_a_pipeline_brings_its_ledger(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.run_stage.fn("finetune@gdpo", ledger={})
    assert "write_ledger" in done and "take_pipelines_ledger" not in done
    done.clear()
    stage.run_stage.fn("finetune@gdpo")
    assert done[2:4] == ["take_pipelines_ledger", "check_inputs stage finetune@gdpo"]

    def refuse(*_: object) -> None:
        raise StageFailed(
            "stage finetune@gdpo reads what stage rollout makes, but it was run with another "
            "rollout.group"
        )

    done.clear()
    monkeypatch.setattr(stage, "check_inputs", refuse)
    with pytest.raises(StageFailed, match=r"another rollout\.group"):
        stage.run_stage.fn("finetune@gdpo")
    assert not [entry for entry in done if entry.startswith(("pull", "repro", "push"))]


def run(days: float, *, scheduled: bool = True, count: int = 1) -> Any:
    """The context of a flow run that was due `days` ago."""
    due = NOW - timedelta(days=days)
    return SimpleNamespace(
        flow_run=SimpleNamespace(auto_scheduled=scheduled, run_count=count, expected_start_time=due)
    )


def test_a_night_that_the_next_one_overtook_is_skipped(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate.is_late(run(1.1), NOW)
    assert not evaluate.is_late(run(0.9), NOW)
    assert not evaluate.is_late(run(2, scheduled=False), NOW)  # somebody asked for it
    assert not evaluate.is_late(
        run(2, count=2), NOW
    )  # it failed, and somebody wants to see it again
    assert not evaluate.is_late(None, NOW)
    monkeypatch.setattr(evaluate, "is_late", lambda context, now: True)
    state = evaluate.evaluate.fn()
    assert (
        state is not None and state.is_completed() and "skipped" in str(state.message) and not done
    )


def test_the_automation_asks_twice_and_is_served_once(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(who: str, count: int = 1) -> Any:
        return SimpleNamespace(
            flow_run=SimpleNamespace(created_by=SimpleNamespace(type=who), run_count=count)
        )

    assert evaluate.by_automation(asked("AUTOMATION"))
    assert not evaluate.by_automation(asked("USER")) and not evaluate.by_automation(
        asked("AUTOMATION", count=2)
    )
    assert not evaluate.by_automation(
        SimpleNamespace(flow_run=SimpleNamespace(created_by=None, run_count=1))
    )  # type: ignore[arg-type]

    training = UUID(int=7)
    monkeypatch.setattr(evaluate, "by_automation", lambda context: True)
    monkeypatch.setattr(
        evaluate, "evaluation_of", lambda run: f"s3://gdpo-sr/runs/{run}/index.html"
    )
    state = evaluate.evaluate.fn(training)
    assert (
        state is not None
        and state.is_completed()
        and f"runs/{training}/index.html" in str(state.message)
        and not done
    )
    monkeypatch.setattr(evaluate, "evaluation_of", lambda run: None)
    assert evaluate.evaluate.fn(training) is None
    assert [entry.split(" ")[0] for entry in done][-3:] == [
        "publish",
        "note_evaluation",
        "promoted_scores",
    ]
    monkeypatch.setattr(
        evaluate, "by_automation", lambda context: False
    )  # a person gets what he asks for
    monkeypatch.setattr(evaluate, "evaluation_of", lambda run: "there")
    done.clear()
    assert evaluate.evaluate.fn(training) is None and "publish" in done


def test_only_benchmarks_that_are_run_here_are_compared(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    places = [Path("work/promoted") / name / "per_image.parquet" for name in ("other", "sample")]
    monkeypatch.setattr(evaluate, "store_url", lambda: "s3://gdpo-sr")
    monkeypatch.setattr(evaluate, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(publication, "promoted", lambda store: ([{"run": "the-run"}], "tag"))
    monkeypatch.setattr(publication, "manifest_of", lambda store, name: {"run": name})
    monkeypatch.setattr(publication, "bring_scores", lambda store, manifest, folder: places)
    monkeypatch.setattr(evaluate.Store, "at", lambda url: None)
    assert evaluate.promoted_scores.fn(root) == {"sample": places[1]}
    assert "other is not in evaluate.benchmarks: not compared with run the-run" in caplog.text
