"""dvc.yaml against the code: commands, code hashes, parameters, outputs."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from gdpo.config import Config
from tasks import paths
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


def module(stage: dict[str, Any]) -> str:
    """The name of a stage's module below tasks/stages."""
    return command(stage).replace("-", "_")


def stage_file(stage: dict[str, Any]) -> Path:
    """The module of a stage."""
    return ROOT / "tasks" / "stages" / f"{module(stage)}.py"


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
    from tasks.commands import command_of

    ours = command(STAGES[name])
    assert STAGES[name]["cmd"].split("--")[0].split() == ["python", "-m", "tasks", ours]
    assert command_of(name) == ours
    assert commands[ours].module == f"tasks.stages.{module(STAGES[name])}"
    assert stage_file(STAGES[name]).is_file()


def test_a_row_says_what_its_stages_write() -> None:
    from tasks.commands import STAGES as commands

    for name, row in commands.items():
        ours = [stage for stage in STAGES.values() if command(stage) == name]
        written = {re.sub(r"\$\{item\.\w+\}", "{}", out) for stage in ours for out in stage["outs"]}
        # The held-out part has a stage of its own in dvc.yaml, because its shards lie elsewhere.
        held_out = {path.format("evaluation") for path in row.writes} - {*row.writes}
        assert written - held_out == {*row.writes}, name


def test_every_stage_command_is_in_dvc_yaml() -> None:
    from tasks.commands import STAGES as commands

    assert list(commands) == list(dict.fromkeys(command(stage) for stage in STAGES.values()))


@pytest.mark.parametrize("name", STAGES)
def test_the_code_dependency_is_the_hash_of_what_the_stage_imports(name: str) -> None:
    path = f"code/{module(STAGES[name])}.sha256"
    assert [dep for dep in STAGES[name]["deps"] if is_code(dep)] == [path]
    expected = code_hash(f"tasks.stages.{module(STAGES[name])}")
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
            elif isinstance(value, list) and isinstance(stated[key], list):
                for index, (item, entry) in enumerate(zip(value, stated[key], strict=False)):
                    if isinstance(item, dict) and isinstance(entry, dict):
                        names += missing(item, entry, f"{at}{key}.{index}.")
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
    nodes = list(ast.walk(ast.parse(stage_file(stage).read_text())))
    named = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    constants = [
        getattr(paths, n.attr)
        for n in nodes
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "paths"
        if n.attr.isupper()
    ]
    named += [value for value in constants if isinstance(value, str)]  # others: names of runs
    pattern = r"(data|models|reports|assets)/[\w./-]+"
    literals = {text.rstrip("/") for text in named if re.fullmatch(pattern, text)}
    same = [other for other in STAGES.values() if command(other) == command(stage)]
    known = [
        path
        for other in same
        for path in filled(other, other["deps"]) + outs(other)
        if not is_code(path)
    ]
    # A stage may name the folder of its outputs.
    known += [str(Path(path).parent) for path in known if "${" not in path]
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
                or dep in ("${model.base}", "${pretrain.init}", "${vlcot.init}")
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


def test_the_committed_lock_names_no_output_that_is_not_made() -> None:
    """DVC keeps the entries of stages that were renamed, and whoever pulls what dvc.lock names
    would stop there. The second system's stages may have no entry: `make demo` does not run them.
    """
    from tasks.commands import STAGES as commands

    lock = YAML(typ="safe").load((ROOT / "dvc.lock").read_text())["stages"]
    locked = {out["path"] for entry in lock.values() for out in entry["outs"]}
    made = {out for stage in STAGES.values() for out in outs(stage)}
    first = [stage for stage in STAGES.values() if commands[command(stage)].system == "gdpo"]
    assert {out for stage in first for out in outs(stage)} <= locked <= made


def test_the_committed_lock_has_the_dependencies_and_keys_of_its_stages() -> None:
    """A stage that reads another file or key than its lock entry states would run again in every
    fresh clone, and `dvc repro --pull` would fetch nothing.
    """
    keys = {name: set(section) for name, section in _test_parameters().items()}
    lock = YAML(typ="safe").load((ROOT / "dvc.lock").read_text())["stages"]
    for name, entry in lock.items():
        stage = STAGES[name.partition("@")[0]]
        values = entry["params"]["params.yaml"]
        assert set(values) == set(stage["params"]), name
        for section, content in values.items():
            assert not isinstance(content, dict) or set(content) == keys[section], (name, section)
        patterns = [_pattern(dep, values) for dep in stage["deps"]]
        locked = [dep["path"] for dep in entry["deps"]]
        for path in locked:
            assert any(re.fullmatch(pattern, path) for pattern in patterns), (name, path)
        for pattern in patterns:
            assert any(re.fullmatch(pattern, path) for path in locked), (name, pattern)


def _pattern(dep: str, values: dict[str, Any]) -> str:
    """A dependency of dvc.yaml as a regular expression: ${section.key} by the lock entry's value
    where it has one, a matrix item or another value by anything.
    """

    def text(part: str) -> str:
        section, _, key = part.strip("${}").partition(".")
        if not part.startswith("$"):
            return re.escape(part)
        return re.escape(values[section][key]) if section in values else ".+"

    return "".join(map(text, re.split(r"(\$\{[^}]*\})", dep)))


def _test_parameters() -> dict[str, Any]:
    """tests/params.yaml: it has every key, like params.yaml, which may hold any profile."""
    parameters = YAML(typ="safe", pure=True).load(ROOT / "tests/params.yaml")
    return {name: value for name, value in parameters.items() if isinstance(value, dict)}
