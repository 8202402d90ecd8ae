"""The code of a stage: its import closure, and the hash of what it computes."""

from pathlib import Path

import pytest

from tasks import params
from tasks.run import code

STAGE = "tasks.stages.one"
FILES = {
    "gdpo/__init__.py": "",
    "gdpo/shared.py": "VALUE = 1\n",
    "gdpo/other.py": "VALUE = 2\n",
    "gdpo/config/__init__.py": "class Config: ...\n",
    "tasks/__init__.py": "",
    "tasks/store/s3.py": "BUCKET = 1\n",
    "tasks/stages/one.py": (
        '"""Stage."""\n\nfrom gdpo import shared\nfrom gdpo.config import Config\n\n\n'
        "def run():\n    from tasks.store.s3 import BUCKET\n"
        "    return shared.VALUE, BUCKET, Config\n"
    ),
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one stage."""
    for path, text in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def test_the_closure_follows_imports_and_leaves_out_what_changes_no_byte(repository: Path) -> None:
    files = [path.relative_to(repository).as_posix() for path in code.closure(STAGE, repository)]
    assert files == ["gdpo/__init__.py", "gdpo/shared.py", "tasks/stages/one.py"]


@pytest.mark.parametrize(
    ("path", "text", "changed"),
    [
        ("gdpo/shared.py", "VALUE = 3\n", True),
        ("gdpo/shared.py", '"""A docstring."""\n\n# and a comment\nVALUE   =  1\n', False),
        ("gdpo/other.py", "VALUE = 3\n", False),
        ("gdpo/config/__init__.py", "class Config: key = 1\n", False),
        ("tasks/store/s3.py", "BUCKET = 2\n", False),
        ("tasks/stages/one.py", FILES["tasks/stages/one.py"].replace("return", "yield"), True),
    ],
)
def test_the_hash_is_one_of_what_the_code_does(
    repository: Path, path: str, text: str, changed: bool
) -> None:
    before = code.code_hash(STAGE, repository)
    (repository / path).write_text(text)
    assert (code.code_hash(STAGE, repository) != before) == changed


def test_a_docstring_alone_in_a_body_counts_as_an_empty_body(repository: Path) -> None:
    (repository / "gdpo/shared.py").write_text('VALUE = 1\n\n\ndef none():\n    """One."""\n')
    before = code.code_hash(STAGE, repository)
    (repository / "gdpo/shared.py").write_text('VALUE = 1\n\n\ndef none():\n    """Two."""\n')
    assert code.code_hash(STAGE, repository) == before


def test_writing_keeps_one_file_per_stage(repository: Path) -> None:
    (repository / "code").mkdir()
    (repository / "code/gone.sha256").write_text("0\n")
    code.write(repository)
    assert {path.name: path.read_text() for path in (repository / "code").iterdir()} == {
        "one.sha256": code.code_hash(STAGE, repository) + "\n"
    }


def test_a_module_that_is_not_there_is_named(repository: Path) -> None:
    with pytest.raises(ValueError, match=r"tasks\.stages\.two: no such module"):
        code.closure("tasks.stages.two", repository)


@pytest.mark.parametrize("stage", ["index", "degrade"])
def test_an_edit_of_the_training_loop_runs_no_stage_without_training_again(stage: str) -> None:
    files = {path.as_posix() for path in code.closure(f"tasks.stages.{stage}")}
    assert not any(file.endswith("gdpo/train/loop.py") for file in files)
    assert any(file.endswith("gdpo/hooks.py") for file in files)


def test_an_edit_evaluates_again_only_what_runs_it(root: Path) -> None:
    files = {
        name: {path.relative_to(root).as_posix() for path in code.closure(f"tasks.stages.{name}")}
        for name in ("evaluate", "vlcot_evaluate")
    }
    training = (
        "gdpo/vlcot/loop.py",
        "gdpo/vlcot/tokenizer_training.py",
        "gdpo/prior/train.py",
        "gdpo/pretrain/losses.py",
        "gdpo/train/loop.py",
        "gdpo/data/degrade.py",
    )
    assert not files["evaluate"] & set(training) and not files["vlcot_evaluate"] & set(training)
    assert not any(name.startswith("gdpo/vlcot/") for name in files["evaluate"])
    assert {"gdpo/vlcot/sampler.py", "gdpo/upscale/chains.py"} < files["vlcot_evaluate"]
    shared = {"gdpo/upscale/resolver.py", "gdpo/metrics/niqe.py"}
    assert shared < files["evaluate"] and shared < files["vlcot_evaluate"]


def test_a_section_that_dvc_yaml_names_is_stated_with_its_defaults(
    tmp_path: Path, root: Path
) -> None:
    """`make code`; whole stages: tests/test_add_a_stage.py."""
    for name in ("params.yaml", "tests/params.yaml", "profiles/paper.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        text = (root / "tests/params.yaml").read_text()
        (tmp_path / name).write_text(text[: text.index("\nablate:")])
    before = params.load(tmp_path / "params.yaml")
    (tmp_path / "dvc.yaml").write_text("stages: {a: {params: [seed, model.tagger, ablate]}}\n")
    code.state_sections(tmp_path)
    for name in ("params.yaml", "tests/params.yaml", "profiles/paper.yaml"):
        assert params.read(tmp_path / name)["ablate"] == before.ablate.model_dump(mode="json")
    assert params.load(tmp_path / "params.yaml") == before
    (tmp_path / "dvc.yaml").write_text("stages: {a: {params: [nonsense]}}\n")
    with pytest.raises(ValueError, match=r"^dvc\.yaml: params: nonsense is no section"):
        code.state_sections(tmp_path)
