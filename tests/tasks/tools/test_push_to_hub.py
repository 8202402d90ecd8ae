"""`gdpo-sr push-to-hub`: the folder that it uploads, and that a dry run stays offline."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard, constants

from gdpo import NAOSDPipeline
from gdpo.model.card import IDENTITIES
from gdpo.model.checkpoints import save_model
from tasks.__main__ import main
from tests.tasks import fabricated

LINE = ["push-to-hub", "gdpo", "owner/name", "--licence", "cc-by-sa-4.0"]


@pytest.fixture
def place(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the model folder gdpo/, of a base alone, and its evaluation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GDPO_DEBUG", raising=False)
    options: dict[str, Any] = {"t_add": 250, "t_diff": 100, "prompt": "sharp"}
    save_model(tmp_path / "gdpo", tiny_base, [], IDENTITIES["gdpo"], **options)
    scores = {"psnr_y": {"mean": 24.123456, "standard_error": 0.1}}
    models = {name: {**values, **scores} for name, values in fabricated.SMALL["models"].items()}
    metrics = {**fabricated.SMALL["metrics"], "psnr_y": {"higher_is_better": True}}
    summary = {**fabricated.SMALL, "models": models, "metrics": metrics}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def test_a_dry_run_writes_what_it_would_upload(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*LINE, "--evaluation", "summary.json", "--dry-run"]) == 0
    assert "nothing was uploaded" in capsys.readouterr().out
    data = ModelCard.load(place / "upload/name/README.md", ignore_metadata_errors=False).data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "cc-by-sa-4.0",
        "diffusers",
        "image-to-image",
    )
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("psnr_y", 24.1235)
    assert "24.123 ± 0.100" in (place / "upload/name/README.md").read_text()
    NAOSDPipeline.from_pretrained(place / "upload/name")


def test_without_an_evaluation_no_metric_is_stated(place: Path) -> None:
    assert main([*LINE, "--dry-run", "-o", "out"]) == 0
    assert ModelCard.load(place / "out/README.md").data.eval_results is None


def test_the_folder_is_uploaded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Api:
        def __init__(self, endpoint: str | None) -> None:
            assert endpoint == "http://127.0.0.1:1"

        def create_repo(self, name: str, **options: Any) -> None:
            calls.append((name, options, constants.HF_HUB_OFFLINE))

        def upload_folder(self, repo_id: str, folder_path: Path) -> None:
            calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert main([*LINE, "--private"]) == 0
    assert calls[0] == ("owner/name", {"private": True, "exist_ok": True}, False)
    assert calls[1][0] == "owner/name"
    assert {"README.md", "model_index.json", "pipeline.py", "unet"} <= set(calls[1][1])
    assert constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: "nothing"}, "nothing: no such model folder"),
        ({2: "name"}, "'name': not a name on the hub, which is OWNER/NAME"),
        ({5: "--evaluation=none.json"}, "none.json: no such file"),
        ({1: "other", 5: "--evaluation=summary.json"}, "summary.json: has no model 'other'"),
        ({5: "--output=gdpo"}, "gdpo: already exists"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(
    place: Path, capsys: pytest.CaptureFixture[str], change: dict[int, str], message: str
) -> None:
    (place / "other").symlink_to("gdpo")
    line = dict(enumerate([*LINE, "--dry-run"])) | change
    assert main([*line.values(), "--dry-run"]) == 1
    assert capsys.readouterr().err.startswith(f"gdpo-sr: {message}")
    assert not (place / "upload").exists()
