"""The stages of RealSR-R1 on tiny inputs: what they write and survive, and their models in use."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from gdpo.hooks import Hooks, Stopped
from gdpo.images import write_png
from gdpo.upscale.protocol import Settings
from gdpo.upscale.resolver import load_super_resolver, load_super_resolvers
from gdpo.vlcot.folder import load_model
from tasks.__main__ import main
from tasks.app.work import Request, upscaled
from tasks.files.scores import SCORES
from tasks.stages import (
    vlcot_coldstart,
    vlcot_data,
    vlcot_report,
)
from tests import tiny
from tests.tasks.vlcot_root import MADE, STAGES, settings


@pytest.fixture
def finished(vlcot_finished: Path) -> Path:
    """A root after all stages; not to be written to."""
    return vlcot_finished


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "root", symlinks=True))


def made(root: Path, stage: str) -> dict[str, bytes]:
    return tiny.tree(root / MADE[stage][0])


def test_the_stages_leave_models_histories_and_an_evaluation(finished: Path) -> None:
    names = {
        str(path.relative_to(finished / "models/vlcot"))
        for path in (finished / "models/vlcot").rglob("*")
        if path.is_file()
    }
    tokenizer = {
        "codebook.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    own = {"model.json", "trunk.safetensors", *(f"tokenizer/{name}" for name in tokenizer)}
    assert names == {
        *(f"tokenizer/{name}" for name in tokenizer),
        *(f"{model}/{name}" for model in ("coldstart", "vlcot", "control") for name in own),
    }
    for place in ("tokenizer", "coldstart", "grpo/vlcot", "grpo/control"):
        lines = (finished / f"reports/vlcot/{place}/metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [0, 1, 2], place
    summary = json.loads((finished / MADE["evaluate"][0] / "summary.json").read_text())
    assert {"bicubic", "coldstart", "vlcot", "control"} <= set(summary["models"])
    table = pq.read_table(finished / MADE["evaluate"][0] / SCORES)
    assert set(table["model"].to_pylist()) == {"bicubic", "coldstart", "vlcot", "control"}
    assert not (finished / "work").exists() or not list((finished / "work").rglob("*.pt"))


def test_the_chains_hold_tokens_and_words_of_every_pair(finished: Path) -> None:
    table = pq.read_table(finished / "data/vlcot/00/00000.parquet")
    assert sorted(table["id"].to_pylist()) == [f"pair{i}" for i in range(5)]
    row = table.to_pylist()[0]
    assert len(row["terms"]) == 5 and row["terms"][0].endswith(" blur")
    assert row["middle"].startswith(row["rough"]) and row["final"].startswith(row["middle"])
    model = load_model(finished / "models/vlcot/coldstart")
    text = "".join(model.vocabulary.text.pieces(row["answer"]))
    assert f"<degradation> {', '.join(row['terms'])}".replace(",", "") in text.replace(",", "")


def test_the_control_and_the_model_differ_from_their_start(finished: Path) -> None:
    weights = {
        name: load_file(finished / f"models/vlcot/{name}/trunk.safetensors")["lm_head.weight"]
        for name in ("coldstart", "vlcot", "control")
    }
    assert not torch.equal(weights["coldstart"], weights["vlcot"])
    assert not torch.equal(weights["control"], weights["vlcot"])


@pytest.mark.parametrize("stage", MADE)
def test_a_stopped_stage_resumes_to_the_same_bytes(
    root: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vlcot_data, "CHUNK", 2)
    place, work = MADE[stage]
    before = made(root, stage)
    shutil.rmtree(root / place)
    with pytest.raises(Stopped):
        STAGES[stage](settings(), root, Hooks(should_stop=lambda: True))
    assert not (root / place).exists()
    assert any(path.is_file() for path in (root / work).rglob("*"))
    seen: list[int] = []
    STAGES[stage](settings(), root, Hooks(log=lambda step, _: seen.append(step)))
    assert made(root, stage) == before
    assert not any(path.is_file() for path in (root / work).rglob("*"))
    assert seen == sorted(seen)


def test_another_setting_starts_anew(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Stopped):
        vlcot_coldstart.run(settings(), root, Hooks(should_stop=lambda: True))
    vlcot_coldstart.run(settings(coldstart={"lr": 2e-3}), root, Hooks())
    assert "coldstart.lr (0.001, now 0.002)" in caplog.text


def test_a_picture_of_any_size_is_upscaled_with_its_chain_of_thought(finished: Path) -> None:
    model = load_super_resolver(finished / "models/vlcot/vlcot")
    assert (model.identity.kind, model.identity.role, model.scale) == ("vlcot", "reward", 4.0)
    photo = tiny.pair(3).lr
    small = model.photo(photo[:3, :5], seed=1)
    assert small.image.shape == (12, 20, 3) and small.image.dtype == np.uint8
    assert [line.split(":")[0] for line in small.text.splitlines()] == [
        "degradation",
        "rough_understand",
        "middle_understand",
        "final_understand",
    ]
    done: list[tuple[int, int]] = []
    large = np.tile(photo, (2, 2, 1)).astype(np.uint16) * 257
    found = model.photo(large, seed=1, on_tile=lambda *at: done.append(at))
    assert found.image.shape == (64, 64, 3) and found.image.dtype == np.uint16
    assert done == [(i + 1, 9) for i in range(9)] and "tile 9 of 9" in found.text
    again = model.photo(large, seed=1)
    assert np.array_equal(found.image, again.image) and found.text == again.text
    assert not np.array_equal(found.image, model.photo(large, seed=2).image)


def test_the_page_shows_chains_words_and_curves(finished: Path) -> None:
    text = (finished / "reports/vlcot/index.html").read_text()
    sources = set(re.findall(r'(?:src|href)="(assets/[^"]+)"', text))
    names = {path.name for path in map(Path, sources)}
    for number in ("00", "01"):
        own = {f"{number}-{name}-{i}.png" for name in ("coldstart", "vlcot") for i in range(3)}
        assert {f"{number}-lr.png", f"{number}-hr.png"} | own <= names
    assert {name for name in names if name.startswith("grpo-")}
    assert all((finished / "reports/vlcot" / source).is_file() for source in sources)
    assert "RealSR-R1 cold start" in text and text.count("<h4>") == 4
    # Tables turn into lists on a phone, or scroll: none makes the page wider than its screen.
    assert text.count('<table class="cells">') == text.count("<table") == 3
    assert text.count('<div class="scroll"') == 3
    assert "RealSR-R1 cold start minus bicubic: " in text


def test_the_page_has_the_same_bytes_again(root: Path) -> None:
    before = tiny.tree(root / "reports/vlcot")
    vlcot_report.run(settings(), root, Hooks())
    assert tiny.tree(root / "reports/vlcot") == before
    (root / "reports/vlcot/coldstart/metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"reports/vlcot/coldstart/metrics.jsonl: missing"):
        vlcot_report.run(settings(), root, Hooks())
    assert tiny.tree(root / "reports/vlcot")["vlcot/index.html"] == before["vlcot/index.html"]


def test_what_a_model_of_this_kind_does_not_take_is_named(finished: Path) -> None:
    for given in (Settings(words="a lion"), Settings(t_add=100)):
        model = load_super_resolver(finished / "models/vlcot/vlcot", settings=given)
        with pytest.raises(ValueError, match="a model of kind vlcot takes none"):
            model.photo(tiny.pair(0).lr)
    with pytest.raises(ValueError, match=r"base: .* is of kind vlcot and has no base"):
        load_super_resolver(finished / "models/vlcot/vlcot", base=finished / "base")


def test_models_of_both_systems_run_side_by_side(finished: Path) -> None:
    folders = {"vlcot": finished / "models/vlcot/vlcot", "base": finished / "base"}
    models = load_super_resolvers(folders, device="cpu", settings=Settings())
    assert {name: model.identity.kind for name, model in models.items()} == {
        "vlcot": "vlcot",
        "base": "naosd",
    }
    enlarged = torch.rand(1, 3, 40, 36, generator=torch.Generator().manual_seed(0))
    for model in models.values():
        images = model.batch(enlarged.expand(2, -1, -1, -1), [(0, "a"), (0, "b")])
        assert images.shape == (2, 3, 40, 36) and not torch.equal(images[0], images[1])


def test_the_command_line_upscales_and_explains(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_png(tmp_path / "a.png", tiny.pair(1).lr)
    model = ["--model", str(finished / "models/vlcot/vlcot"), "--overwrite"]
    assert main(["upscale", str(tmp_path / "a.png"), *model, "--explain"]) == 0
    first, *chain = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path / 'a_x4.png'}: 32x32 in ")
    assert [line.split(":")[0] for line in chain] == [
        "  degradation",
        "  rough_understand",
        "  middle_understand",
        "  final_understand",
    ]
    assert main(["upscale", str(tmp_path / "a.png"), *model, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["chain"]
    assert told.splitlines() == [line.strip() for line in chain]


def test_the_page_shows_the_chain_of_thought(finished: Path, tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", tiny.pair(1).lr)
    request = Request(
        photos=[tmp_path / "a.png"],
        model=finished / "models/vlcot/vlcot",
        device="cpu",
        scale=4.0,
        t_add=250,  # of no meaning to this model
        color_fix="wavelet",
        seed=0,
        count=1,
    )
    (made,) = upscaled(request, tmp_path, lambda *_: None, lambda: False, lambda _: None)
    assert made.record["kind"] == "vlcot" and made.record["t_add"] is None
    chain = made.record["text"].splitlines()
    assert chain[0].startswith("degradation: ") and chain[-1].startswith("final_understand: ")
