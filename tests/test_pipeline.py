"""dvc.yaml against the code: commands, code hashes, parameters, outputs."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from gdpo.config import Config
from tasks.run.code import closure, code_hash

ROOT = Path(__file__).parents[1]
ALONE = "model.tagger"
# Where a stage may run, how the base model gets here, who is told about steps, and a tool's own:
# none changes an output.
OUTSIDE = {"allow_cpu", "fetch", "track", "ablate"}
SECTIONS = [name for name in Config.model_fields if name not in OUTSIDE]


def dvc_yaml() -> dict[str, Any]:
    """The stages as written, matrix not expanded."""
    stages: dict[str, Any] = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]
    return stages


def sections(file: Path) -> list[str]:
    """The sections a stage reads: `config.<section>` in every module of its closure that knows the
    whole `Config`.
    """
    read: set[str] = set()
    for path in closure(f"tasks.stages.{file.stem}"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        imported = [
            node
            for node in nodes
            if isinstance(node, ast.ImportFrom) and node.module == "gdpo.config"
        ]
        if "Config" in [alias.name for node in imported for alias in node.names]:
            below = {id(node.value): node.attr for node in nodes if isinstance(node, ast.Attribute)}
            for node in nodes:
                if (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "config"
                ):
                    key = f"{node.attr}.{below.get(id(node))}"
                    read.add(key if key == ALONE else node.attr)
    section = ALONE.partition(".")[0]
    alone = ALONE in read and section not in read
    return [
        ALONE if alone and name == section else name
        for name in SECTIONS
        if name in read or (alone and name == section)
    ]


def command(stage: dict[str, Any]) -> str:
    """The name of our command that a stage runs; several stages may share one."""
    return str(stage["cmd"].split()[3])


def stage_file(stage: dict[str, Any]) -> Path:
    """The module of a stage."""
    return ROOT / "tasks" / "stages" / f"{command(stage)}.py"


def is_code(dep: str) -> bool:
    """Whether a dependency is the hash of a stage's code."""
    return dep.startswith("code/")


def filled(stage: dict[str, Any], paths: list[str]) -> list[str]:
    """Paths of a stage for all values of its matrix, which may lie in params.yaml."""
    for key, values in stage.get("matrix", {}).items():
        if isinstance(values, str):
            section, _, name = values.strip("${}").partition(".")
            values = YAML(typ="safe", pure=True).load(ROOT / "tests/params.yaml")[section][name]
        paths = [path.replace(f"${{item.{key}}}", value) for path in paths for value in values]
    return list(dict.fromkeys(paths))


def outs(stage: dict[str, Any]) -> list[str]:
    """The outputs of a stage, matrix values filled in."""
    return filled(stage, stage["outs"])


STAGES = dvc_yaml()


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_runs_its_own_command(name: str) -> None:
    from tasks.commands import STAGES as commands

    ours = command(STAGES[name])
    assert STAGES[name]["cmd"].split("--")[0].split() == ["python", "-m", "tasks", ours]
    assert name.partition("-")[0] == ours
    assert commands[ours].module == f"tasks.stages.{ours}"
    assert stage_file(STAGES[name]).is_file()


def test_every_stage_command_is_in_dvc_yaml() -> None:
    from tasks.commands import STAGES as commands

    assert list(commands) == list(dict.fromkeys(command(stage) for stage in STAGES.values()))


@pytest.mark.parametrize("name", STAGES)
def test_the_code_dependency_is_the_hash_of_what_the_stage_imports(name: str) -> None:
    path = f"code/{command(STAGES[name])}.sha256"
    assert [dep for dep in STAGES[name]["deps"] if is_code(dep)] == [path]
    expected = code_hash(f"tasks.stages.{command(STAGES[name])}")
    assert (ROOT / path).read_text() == f"{expected}\n", f"{path} is not up to date; run: make code"


def test_params_yaml_states_every_key(sample_config: Any) -> None:
    """DVC compares the values in params.yaml; a default that is not there could change unseen."""

    def missing(values: dict[str, Any], stated: dict[str, Any], at: str = "") -> list[str]:
        names = []
        for key, value in values.items():
            if key not in stated:
                names.append(f"{at}{key}")
            elif isinstance(value, dict) and isinstance(stated[key], dict):
                names += missing(value, stated[key], f"{at}{key}.")
        return names

    stated = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    values = {name: sample_config.model_dump()[name] for name in SECTIONS}
    assert not missing(values, stated)


def test_dvc_yaml_fits_on_a_page() -> None:
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 150


@pytest.mark.parametrize("name", STAGES)
def test_parameters_are_the_sections_the_stage_reads(name: str) -> None:
    assert STAGES[name].get("params", []) == sections(stage_file(STAGES[name]))


@pytest.mark.parametrize("name", STAGES)
def test_paths_a_stage_names_are_its_dependencies_or_outputs(name: str) -> None:
    stage = STAGES[name]
    literals = {
        node.value.rstrip("/")
        for node in ast.walk(ast.parse(stage_file(stage).read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.fullmatch(r"(data|models|reports|assets)/[\w./-]+", node.value)
    }
    same = [other for other in STAGES.values() if command(other) == command(stage)]
    known = [
        path
        for other in same
        for path in filled(other, other["deps"]) + outs(other)
        if not is_code(path)
    ]
    known += [
        str(Path(path).parent) for path in known if "${" not in path
    ]  # a stage may name the folder of its outputs
    odd = [
        path
        for path in literals
        if not any(path == place or path.startswith(place + "/") for place in known)
    ]
    assert not odd, f"{name} names {odd}: neither in its deps nor in its outs"


def test_every_data_dependency_is_an_output_or_a_tracked_file() -> None:
    made = [out for stage in STAGES.values() for out in outs(stage)]
    for name, stage in STAGES.items():
        for dep in filled(stage, stage["deps"]):
            known = dep in made or any(out.startswith(dep + "/") for out in made)
            known = (
                known
                or dep.startswith("${model.base}")
                or (ROOT / dep).exists()
                or dep.startswith("assets/")
            )
            assert known or any(dep.startswith(out + "/") for out in made), (
                f"{name}: nothing makes {dep}"
            )


def test_outputs_are_disjoint_and_outside_work() -> None:
    everything = [Path(out) for stage in STAGES.values() for out in outs(stage)]
    for out in everything:
        assert out.parts[0] in ("data", "models", "reports")
        assert not [other for other in everything if other != out and out in other.parents]
    assert len(set(everything)) == len(everything)


def test_the_committed_ledger_knows_no_output_that_is_not_made() -> None:
    """DVC keeps the entries of stages that were renamed, and whoever pulls what the ledger names
    would stop there.
    """
    lock = YAML(typ="safe").load((ROOT / "dvc.lock").read_text())["stages"]
    locked = {out["path"] for entry in lock.values() for out in entry["outs"]}
    made = {out for stage in STAGES.values() for out in outs(stage)}
    assert locked == made
