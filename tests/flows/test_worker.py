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
from tasks.publish import promotion, records

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
            "fetch_pipeline_lock_entries",
            "fetch_lock_entries",
            "check_inputs",
            "pull",
            "repro",
            "push",
            "publish",
            "store_lock_entries",
            "write_lock_entries",
            "read_lock_entries",
            "restore_committed_lock",
            "promoted_scores",
            "evaluation_of",
            "note_evaluation",
        ):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, stand_in(name))
    monkeypatch.setattr(stage, "read_lock_entries", lambda root: {"finetune@gdpo": {}})
    return did


def test_a_training_fetches_the_pipelines_lock_entries_and_stores_its_own_before_publishing(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "the-run")
    train.train.fn()
    short = [entry.split(" ")[0] for entry in done]
    assert short[short.index("graph") :] == [
        "graph",
        "fetch_pipeline_lock_entries",
        "check_inputs",
        "pull",
        "repro",
        "push",
        "repro",
        "push",
        "store_lock_entries",
        "publish",
    ]
    assert (
        "store_lock_entries the-run" in done
        and "repro finetune@gdpo" in done
        and "repro rollout" not in done
    )


def test_a_stage_by_hand_is_checked_and_one_of_a_pipeline_brings_its_lock_entries(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.run_stage.fn("finetune@gdpo", lock_entries={"rollout": {}})
    assert "write_lock_entries" in done and "fetch_pipeline_lock_entries" not in done
    assert "graph" not in done  # the pipeline has read it
    done.clear()
    stage.run_stage.fn("finetune@gdpo")
    assert done[2:4] == ["fetch_pipeline_lock_entries", "check_inputs stage finetune@gdpo"]

    def refuse(*_: object) -> None:
        raise StageFailed(
            "stage finetune@gdpo reads the outputs of stage rollout, but "
            "rollout.group has changed since it ran"
        )

    done.clear()
    monkeypatch.setattr(stage, "check_inputs", refuse)
    with pytest.raises(StageFailed, match=r"rollout\.group has changed"):
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
    # It failed, and somebody wants to see it again.
    assert not evaluate.is_late(run(2, count=2), NOW)
    assert not evaluate.is_late(None, NOW)
    monkeypatch.setattr(evaluate, "is_late", lambda context, now: True)
    state = evaluate.evaluate.fn()
    assert (
        state is not None and state.is_completed() and "skipped" in str(state.message) and not done
    )


def test_the_automation_asks_twice_and_is_served_once(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_created_by(who: str, count: int = 1) -> Any:
        return SimpleNamespace(
            flow_run=SimpleNamespace(created_by=SimpleNamespace(type=who), run_count=count)
        )

    assert evaluate.by_automation(run_created_by("AUTOMATION"))
    assert not evaluate.by_automation(run_created_by("USER")) and not evaluate.by_automation(
        run_created_by("AUTOMATION", count=2)
    )
    assert not evaluate.by_automation(
        SimpleNamespace(flow_run=SimpleNamespace(created_by=None, run_count=1))
    )

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
    # A run that a person started is not skipped.
    monkeypatch.setattr(evaluate, "by_automation", lambda context: False)
    monkeypatch.setattr(evaluate, "evaluation_of", lambda run: "there")
    done.clear()
    assert evaluate.evaluate.fn(training) is None and "publish" in done


def test_only_benchmarks_that_are_run_here_are_compared(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    places = [Path("work/promoted") / name / "per_image.parquet" for name in ("other", "sample")]
    monkeypatch.setattr(evaluate, "store_url", lambda: "s3://gdpo-sr")
    monkeypatch.setattr(evaluate, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(records, "promoted", lambda store, system: ([{"run": "the-run"}], "tag"))
    monkeypatch.setattr(records, "manifest_of", lambda store, name: {"run": name})
    monkeypatch.setattr(promotion, "download_scores", lambda store, manifest, folder: places)
    monkeypatch.setattr(evaluate.Store, "at", lambda url: None)
    assert evaluate.promoted_scores.fn(root) == {"sample": places[1]}
    assert "other is not in evaluate.benchmarks: not compared with run the-run" in caplog.text


TRAINED_BOTH = {
    "finetune@gdpo": {"outs": [{"path": "models/gdpo"}]},
    "vlcot-grpo@vlcot": {"outs": [{"path": "models/vlcot/vlcot"}]},
}


def test_every_night_judges_realsr_r1_too_where_it_was_trained(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {**GRAPH, "vlcot-evaluate@sample": {"rollout"}, "vlcot-report": {"rollout"}}
    monkeypatch.setattr(evaluate, "graph", lambda root: both)
    evaluate.evaluate.fn()
    assert "repro evaluate@sample" in done and not [entry for entry in done if "vlcot" in entry]

    monkeypatch.setattr(evaluate, "read_lock_entries", lambda root: TRAINED_BOTH)
    published: list[str] = []
    monkeypatch.setattr(
        evaluate, "publish", lambda root, *, share, kind, system: published.append(system)
    )
    done.clear()
    evaluate.evaluate.fn()
    assert published == ["gdpo", "vlcot"]
    ran = [entry for entry in done if entry.startswith(("repro", "promoted_scores"))]
    assert ran == [
        "repro evaluate@sample",
        "promoted_scores",
        "repro vlcot-evaluate@sample",
        "repro vlcot-report",
        "promoted_scores",
    ]
    # After a training of GDPO-SR only its models are new.
    done.clear()
    evaluate.evaluate.fn(UUID(int=7))
    assert published == ["gdpo", "vlcot", "gdpo"]


def test_a_system_that_cannot_be_judged_does_not_hide_that_the_other_is_worse(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "read_lock_entries", lambda root: TRAINED_BOTH)

    def judged(system: str, edges: object, after: object) -> list[str]:
        if system == "vlcot":
            raise StageFailed("vlcot-data has never run")
        return ["sample regressed: niqe"]

    monkeypatch.setattr(evaluate, "regressions", judged)
    with pytest.raises(StageFailed) as caught:
        evaluate.evaluate.fn()
    assert str(caught.value) == "sample regressed: niqe\nvlcot-data has never run"
