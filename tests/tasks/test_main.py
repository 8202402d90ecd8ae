"""The command line: exit codes, one line per failure, signals. The stages here are fakes of three
lines.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from gdpo.hooks import Hooks, Stopped
from tasks import __main__ as cli
from tasks.run.recorder import Recorder

Run = Callable[..., None]


@pytest.fixture
def folder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the sample params.yaml."""
    shutil.copy(root / "tests/params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GDPO_DEBUG", raising=False)
    return tmp_path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Run], None]:
    """Put a function in the place of a stage."""

    def put(stage: str, run: Run) -> None:
        module = ModuleType("a_fake_stage")
        module.run = run
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.STAGES, stage, replace(cli.STAGES[stage], module=module.__name__))

    return put


def test_a_stage_gets_configuration_root_and_hooks(
    folder: Path, fake: Callable[[str, Run], None]
) -> None:
    seen = []
    fake(
        "select",
        lambda config, root, hooks: seen.append((config.select.count, root, hooks.should_stop())),
    )
    assert cli.main(["select", "--set", "select.count=7"]) == 0
    assert seen == [(7, folder, False)]


def test_finetune_gets_the_name_of_its_run(folder: Path, fake: Callable[[str, Run], None]) -> None:
    names = []
    fake("finetune", lambda config, root, hooks, name: names.append(name))
    assert cli.main(["finetune"]) == 0
    assert cli.main(["finetune", "--run", "control"]) == 0
    assert names == ["gdpo", "control"]


def test_degrade_gets_the_name_of_its_part_and_reports_live_in_a_folder_of_its_own(
    folder: Path, fake: Callable[[str, Run], None]
) -> None:
    names = []

    def run(config: object, root: Path, hooks: Hooks, *part: str) -> None:
        names.append(part)
        hooks.log(0, {"pairs": 1.0})

    fake("degrade", run)
    assert cli.main(["degrade"]) == 0
    assert cli.main(["degrade", "--part", "01"]) == 0
    assert names == [(), ("01",)]
    assert (folder / "work/degrade/01/metrics.jsonl").is_file()


def test_bad_parameters_exit_2_with_one_line(
    folder: Path, fake: Callable[[str, Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake("select", lambda *_: pytest.fail("the stage must not run"))
    assert cli.main(["select", "--set", "select.count=none"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "select.count: Input should be a valid integer (got 'none')" in error


@pytest.mark.parametrize(
    "argv",
    [
        *([], ["nothing"], ["select", "--nothing"], ["finetune", "--run", "both"]),
        *(["app", "--port", "99999"], ["app", "--port", "x"], ["browse", "--port", "-1"]),
    ],
)
def test_usage_errors_exit_2_with_one_line(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search("see `gdpo-sr.* --help`$", error)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a.png: broken,\n  take it out"), "gdpo-sr: a.png: broken, take it out\n"),
        (
            FileNotFoundError(2, "No such file or directory", "data/x"),
            "gdpo-sr: data/x: No such file or directory\n",
        ),
        (OSError("disk"), "gdpo-sr: disk\n"),
    ],
)
def test_failures_exit_1_with_one_line(
    folder: Path,
    fake: Callable[[str, Run], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    line: str,
) -> None:
    def run(*_: object) -> None:
        raise error

    fake("select", run)
    assert cli.main(["select"]) == 1
    assert capsys.readouterr().err == line
    monkeypatch.setenv("GDPO_DEBUG", "1")
    assert cli.main(["select"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_mistake_of_ours_keeps_its_traceback(
    folder: Path, fake: Callable[[str, Run], None]
) -> None:
    def run(*_: object) -> None:
        raise KeyError("ours")

    fake("select", run)
    with pytest.raises(KeyError):
        cli.main(["select"])


@pytest.mark.parametrize("stage", [name for name, stage in cli.STAGES.items() if stage.needs_gpu])
def test_a_stage_that_needs_a_gpu_exits_3_with_the_two_commands(
    folder: Path,
    fake: Callable[[str, Run], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    ran: list[str] = []
    fake(stage, lambda *_: ran.append(stage))
    monkeypatch.setattr(cli, "_gpus", lambda: 0)
    monkeypatch.setenv("DVC_STAGE", f"{stage}@one")
    assert cli.main([stage, "--set", "allow_cpu=false"]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert f"{stage}@one needs a GPU and there is none here" in lines[0]
    assert [line.strip() for line in lines[1:]] == [
        f"prefect deployment run gdpo-stage/a100 -p stage={stage}@one --watch",
        f"dvc repro --pull {stage}@one",
    ]
    assert not ran
    assert cli.main([stage]) == 0  # the sample profile allows the CPU
    monkeypatch.setattr(cli, "_gpus", lambda: 1)
    assert cli.main([stage, "--set", "allow_cpu=false"]) == 0
    assert ran == [stage, stage]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_the_stage_to_stop_and_exits_143(
    folder: Path,
    fake: Callable[[str, Run], None],
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    def run(config: object, root: Path, hooks: Hooks) -> None:
        assert not hooks.should_stop()
        os.kill(os.getpid(), number)
        assert hooks.should_stop()
        checkpoint = root / "work/pretrain/checkpoint.pt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        raise Stopped(12)

    before = signal.getsignal(number)
    fake("pretrain", run)
    assert cli.main(["pretrain"]) == 143
    line = (
        "gdpo-sr: stopped at step 12, checkpoint in work/pretrain/checkpoint.pt; the same "
        "command resumes\n"
    )
    assert capsys.readouterr().err == line
    assert signal.getsignal(number) == before


def test_a_stage_without_checkpoints_says_that_it_starts_again(
    folder: Path, fake: Callable[[str, Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object) -> None:
        raise Stopped(0)

    fake("degrade", run)
    assert cli.main(["degrade"]) == 143
    assert "nothing half-written is left; the same command starts again" in capsys.readouterr().err


def test_a_signal_before_the_stage_begins_stops_it(
    folder: Path, fake: Callable[[str, Run], None]
) -> None:
    flag = cli.StopFlag()
    fake("degrade", lambda *_: pytest.fail("the stage must not run"))
    with flag:
        os.kill(os.getpid(), signal.SIGTERM)
        assert cli._run_stage(cli.build_parser().parse_args(["degrade"]), flag, ["degrade"]) == 143


def test_a_second_ctrl_c_ends_at_once() -> None:
    with cli.StopFlag() as flag:
        os.kill(os.getpid(), signal.SIGINT)
        assert flag()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL


def test_help_is_quick_and_has_examples(root: Path) -> None:
    code = (
        "import sys\nfrom tasks.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    assert not {'torch', 'gdpo', 'ruamel.yaml', 'prefect'} & set(sys.modules), "
        "'heavy import'\n"
    )
    for argv in (["--help"], ["finetune", "--help"]):
        result = subprocess.run(
            [sys.executable, "-c", code, *argv], cwd=root, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        assert "example: gdpo-sr" in result.stdout


def test_the_help_of_no_command_imports_torch() -> None:
    code = (
        "import sys\nfrom tasks.__main__ import build_parser\nfrom tasks.commands import TOOLS\n"
        "for name in TOOLS:\n    build_parser(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_lists_every_command_once() -> None:
    text = cli.build_parser().format_help()
    for name, row in (cli.STAGES | cli.TOOLS).items():
        assert len(re.findall(rf"^  {name} +{re.escape(row.help)}$", text, re.MULTILINE)) == 1


@pytest.mark.parametrize("name", [*cli.STAGES, *cli.TOOLS])
def test_every_command_has_help_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    example = text.split("example: gdpo-sr ")[1].split()
    assert example[0] == name
    cli.build_parser(name).parse_args(example)


def test_live_metrics_are_whole_again_after_a_resume(tmp_path: Path) -> None:
    for rows in ([0, 1, 2], [0, 1, 2, 3]):  # the second loop replays its history
        with Recorder(tmp_path / "work/pretrain", "pretrain", 4) as recorder:
            for step in rows:
                recorder.log(step, {"step": float(step), "loss": 1.0 / (step + 1)})
            text = recorder.path.read_text()  # readable while it runs
            assert [json.loads(line)["step"] for line in text.splitlines()] == rows
    assert json.loads(text.splitlines()[1]) == {"step": 1, "of": 4, "loss": 0.5}


def test_without_values_there_is_no_file(tmp_path: Path) -> None:
    with Recorder(tmp_path / "work/degrade", "degrade"):
        pass
    assert not (tmp_path / "work").exists()


def test_progress_is_a_line_now_and_then_when_nobody_watches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.run.recorder.LINE_EVERY_S", 0.0)
    with Recorder(tmp_path, "pretrain", 4) as recorder:
        recorder.log(0, {"step": 0.0, "loss": 0.25})
    assert capsys.readouterr().err == "pretrain 1/4 loss 0.25\n"


def test_a_quick_stage_says_where_it_began_and_ended_when_nobody_watches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Recorder(tmp_path, "index") as recorder:
        for step in range(3):
            recorder.log(step, {"of": 3, "photographs": step + 1})
    assert capsys.readouterr().err == "index 1/3 photographs 1\nindex 3/3 photographs 3\n"


def test_a_stage_that_counts_its_steps_says_so_with_its_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.run.recorder.LINE_EVERY_S", 0.0)
    with Recorder(tmp_path, "evaluate sample") as recorder:
        recorder.log(0, {"of": 14, "psnr_y": 25.5})
    assert capsys.readouterr().err == "evaluate sample 1/14 psnr_y 25.5\n"


def test_summary_before_any_evaluation_names_the_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["summary"]) == 1
    assert capsys.readouterr().err == (
        "gdpo-sr: reports/evaluate/sample/summary.json: no such file yet; `dvc repro` writes it\n"
    )


def test_profile_command_rewrites_params(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "profiles").mkdir()
    (folder / "profiles/small.yaml").write_text("select: {count: 3}\n")
    assert cli.main(["profile", "small"]) == 0
    assert "count: 3" in (folder / "params.yaml").read_text()
    assert cli.main(["profile", "large"]) == 2
    assert "profiles/large.yaml: no such profile; there is " in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert re.fullmatch(r"gdpo-sr \d+\.\d+\.\d+\n", capsys.readouterr().out)
