"""Whether what a stage reads was made with the present code and parameters, on small repositories
of git and DVC.
"""

import shutil
from pathlib import Path

import pytest

from flows.dvc.graph import ancestors, check_inputs, graph, outdated, stages_of
from flows.dvc.run import StageFailed, run_dvc
from flows.evaluate import evaluated_systems
from flows.workplace import LockEntries, read_lock_entries, write_lock_entries
from tasks import commands
from tasks.systems import SYSTEMS

pytestmark = pytest.mark.processes

# No alphabet puts them into order. `all` reads a folder that is two stages' outputs, `part` a file
# in a stage's output.
DVC_YAML = """
stages:
  all: {cmd: "cat parts/* part > all", deps: [parts, part], outs: [all]}
  after:
    matrix: {run: [x, y]}
    cmd: mkdir -p parts; cp made parts/${item.run}; cat code.txt >> parts/${item.run}
    deps: [made, code.txt]
    outs: ["parts/${item.run}"]
  part: {cmd: cp folder/one part, deps: [folder/one], outs: [part]}
  made:
    cmd: cp params.yaml made; mkdir folder; cp made folder/one
    params: [number]
    outs: [made, folder]
"""


def test_a_system_is_its_stages_and_what_they_depend_on() -> None:
    edges: dict[str, set[str]] = {
        "degrade@00": set(),
        "degrade-evaluation": set(),
        "pretrain": {"degrade@00"},
        "vlcot-data@00": {"degrade@00"},
        "vlcot-evaluate@sample": {"vlcot-data@00", "degrade-evaluation"},
        "report": {"pretrain", "degrade-evaluation"},
        "another": set(),
    }
    first, second = stages_of(edges, "gdpo"), stages_of(edges, "vlcot")
    assert set(first) == {"degrade@00", "degrade-evaluation", "pretrain", "report", "another"}
    assert set(second) == edges.keys() - {"pretrain", "report", "another"}
    assert list(second) == [stage for stage in edges if stage in second]


def test_a_training_on_a_worker_runs_every_stage_of_realsr_r1() -> None:
    own = {name for name in commands.STAGES if name.startswith("vlcot-")}
    assert set(commands.trained_stages("vlcot")) == own
    assert set(commands.trained_stages("gdpo")) < commands.STAGES.keys() - own


def test_the_nightly_evaluation_judges_realsr_r1_when_the_lock_names_its_model(
    tmp_path: Path,
) -> None:
    assert evaluated_systems(tmp_path) == ["gdpo"]
    entries: LockEntries = {"vlcot-grpo@control": {"outs": [{"path": "models/vlcot/control"}]}}
    write_lock_entries(tmp_path, entries)
    assert evaluated_systems(tmp_path) == ["gdpo"]
    write_lock_entries(tmp_path, {"vlcot-grpo@vlcot": {"outs": [{"path": SYSTEMS["vlcot"].model}]}})
    assert evaluated_systems(tmp_path) == ["gdpo", "vlcot"]


STAGES = ["made", "after@x", "after@y", "part", "all"]


@pytest.fixture(scope="module")
def template(initialised: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which everything ran once; its DVC cache holds the outputs."""
    folder = shutil.copytree(initialised, tmp_path_factory.mktemp("template"), dirs_exist_ok=True)
    (folder / "code.txt").write_text("code\n")
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "params.yaml").write_text("number: 1\n")
    run_dvc(["repro"], folder, lambda line: None)
    return folder


@pytest.fixture
def repository(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return shutil.copytree(template, tmp_path, dirs_exist_ok=True)


def test_stages_come_after_what_they_depend_on(repository: Path) -> None:
    edges = graph(repository)
    order = list(edges)
    assert edges == {
        "made": set(),
        "after@x": {"made"},
        "after@y": {"made"},
        "part": {"made"},
        "all": {*STAGES} - {"made", "all"},
    }
    assert (
        order.index("made") < min(order.index("after@x"), order.index("after@y"))
        and order[-1] == "all"
    )


def test_a_training_that_makes_its_rollouts_reads_the_pairs_as_well(repository: Path) -> None:
    (repository / "dvc.yaml").write_text("""
stages:
  finetune: {matrix: {run: [gdpo, control]}, cmd: "true", deps: [rollouts], outs: ["${item.run}"]}
  rollout: {cmd: "true", deps: [selected, "01"], outs: [rollouts]}
  select: {cmd: "true", deps: ["01"], outs: [selected]}
  degrade: {matrix: {part: ["01"]}, cmd: "true", outs: ["${item.part}"]}
""")
    rest = {"degrade@01": set(), "select": {"degrade@01"}, "rollout": {"degrade@01", "select"}}
    for rollouts, reads in (
        ("cached", {"rollout"}),
        ("online", {"rollout", "degrade@01", "select"}),
    ):
        (repository / "params.yaml").write_text(f"finetune: {{rollouts: {rollouts}}}\n")
        edges = graph(repository)
        assert edges == {**rest, "finetune@gdpo": reads, "finetune@control": reads}
        assert set(list(edges)[-2:]) == {"finetune@gdpo", "finetune@control"}


def test_what_a_stage_is_made_from() -> None:
    edges: dict[str, set[str]] = {"a": set(), "b": {"a"}, "c": set(), "d": {"b"}, "e": {"c"}}
    assert ancestors(edges, ["d"]) == ["a", "b", "d"]
    assert ancestors(edges, ["e", "b"]) == ["a", "b", "c", "e"]
    assert ancestors(edges, []) == []


def test_absent_data_does_not_count_but_parameters_and_code_do(repository: Path) -> None:
    assert outdated([], repository) == {}
    assert outdated(STAGES, repository) == {}
    for made in ("made", "part", "all"):
        (repository / made).unlink()
    shutil.rmtree(repository / "folder")
    assert outdated(STAGES, repository) == {}
    (repository / "params.yaml").write_text("number: 2\n")
    assert outdated(STAGES, repository) == {"made": "number has changed since it ran"}
    (repository / "params.yaml").write_text("number: 1\n")
    (repository / "code.txt").write_text("other code\n")
    assert outdated(STAGES, repository) == dict.fromkeys(
        ["after@x", "after@y"], "code.txt has changed since it ran"
    )
    (repository / "code.txt").write_text("code\n")
    yaml = (repository / "dvc.yaml").read_text()
    (repository / "dvc.yaml").write_text(
        yaml.replace("cp folder/one part", "cat folder/one > part")
    )
    assert outdated(STAGES, repository) == {"part": "command has changed since it ran"}
    (repository / "dvc.yaml").write_text(
        yaml.replace("deps: [folder/one]", "deps: [folder/one, made]")
    )
    assert outdated(STAGES, repository) == {"part": "made has changed since it ran"}


def test_a_stage_that_never_ran_counts(repository: Path) -> None:
    (repository / "dvc.lock").unlink()
    assert outdated(STAGES, repository) == dict.fromkeys(STAGES, "it has never run")


def test_a_clone_with_an_older_pipelines_data_and_the_newer_lock_is_not_refused(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """`dvc pull --force` comes next, and brings what dvc.lock names."""
    newer = shutil.copytree(repository, tmp_path_factory.mktemp("newer"), dirs_exist_ok=True)
    (newer / "params.yaml").write_text("number: 2\n")
    run_dvc(["repro"], newer, lambda line: None)

    shutil.copy(newer / "params.yaml", repository)
    write_lock_entries(repository, read_lock_entries(newer))
    assert (repository / "made").read_text() == "number: 1\n"
    edges = graph(repository)
    assert check_inputs("training", ["all"], edges, repository) == ["after@x", "after@y", "part"]

    shutil.copytree(newer / ".dvc/cache", repository / ".dvc/cache", dirs_exist_ok=True)
    run_dvc(["pull", "--force", "after@x", "after@y", "part"], repository, lambda line: None)
    assert (repository / "part").read_text() == "number: 2\n"


def test_inputs_made_with_other_parameters_are_refused(repository: Path) -> None:
    edges = graph(repository)
    (repository / "params.yaml").write_text("number: 2\n")
    with pytest.raises(
        StageFailed,
        match="training reads the outputs of stage made, "
        "but number has changed since it ran; run: prefect",
    ):
        check_inputs("training", ["after@x", "after@y"], edges, repository)


def test_a_lock_in_which_a_stage_read_what_nobody_made_is_refused(repository: Path) -> None:
    """The maker ran again, and the stage that reads it did not; a part of a folder and a folder of
    parts have no hash there.
    """
    (repository / "params.yaml").write_text("number: 2\n")
    run_dvc(["repro", "--single-item", "made"], repository, lambda line: None)
    assert outdated(STAGES, repository) == dict.fromkeys(
        ["after@x", "after@y"], "made has changed since it ran"
    )
    with pytest.raises(StageFailed, match="of stage after@x, but made has changed since it ran"):
        check_inputs("training", ["all"], graph(repository), repository)
