"""What a published run consists of: the outputs that are asked for, whole, and nothing beside or
behind them.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from gdpo.model.card import IDENTITIES, read_card
from gdpo.model.checkpoints import read_adapters, save_model
from gdpo.model.naosd import NAOSD
from tasks.publish import contents
from tests.tasks.published import OUTS, SUMMARY


@pytest.mark.parametrize(
    "out", ["params.yaml", "reports", "reports/../params.yaml", "models/gdpo2", "/etc/hosts", ""]
)
def test_no_other_path_is_part_of_a_run(finished: Path, out: str) -> None:
    with pytest.raises(ValueError, match="no output that a run consists of"):
        list(contents.files(finished, [*OUTS, out]))


def test_links_and_dot_files_stay_out(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "outside/sub").mkdir(parents=True)
    (tmp_path / "outside/secret").write_text("not shown")
    (tmp_path / "outside/sub/secret").write_text("not shown")
    whole = dict(contents.files(finished, OUTS))
    reports = finished / "reports"
    (reports / "evaluate/sample/.hidden").write_text("not shown")
    (reports / "evaluate/sample/file").symlink_to(tmp_path / "outside/secret")
    (reports / "evaluate/sample/folder").symlink_to(tmp_path / "outside")
    (reports / "linked").symlink_to(tmp_path / "outside")
    (reports / "page.html").symlink_to(tmp_path / "outside/secret")
    linked = ["reports/linked", "reports/linked/sub", "reports/page.html"]
    said: list[str] = []
    assert dict(contents.files(finished, [*OUTS, *linked], warn=said.append)) == whole
    (line,) = said
    shown = line.partition("left out: ")[2].partition(";")[0].split(", ")
    assert sorted(shown) == [
        "reports/evaluate/sample/file",
        "reports/evaluate/sample/folder",
        "reports/linked",
        "reports/page.html",
    ]
    assert set(whole) == {
        "index.html",
        "evaluate/sample/summary.json",
        "evaluate/sample/per_image.parquet",
        "evaluate/sample/images/000-x/gdpo.png",
        "model/adapters.safetensors",
    }


def cached(place: Path, path: Path) -> Path:
    """Move a file into DVC's cache and link to it, as `cache.type symlink` does."""
    name = hashlib.md5(path.read_bytes()).hexdigest()
    target = place / ".dvc/cache/files/md5" / name[:2] / name[2:]
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)
    path.symlink_to(target)
    return target


def test_links_into_the_cache_are_published_like_files(finished: Path) -> None:
    whole = {name: path.read_bytes() for name, path in contents.files(finished, OUTS)}
    targets = [cached(finished, path) for _, path in list(contents.files(finished, OUTS))]
    said: list[str] = []
    found = contents.files(finished, OUTS, warn=said.append)
    assert {n: path.read_bytes() for n, path in found} == whole and not said
    targets[0].write_bytes(b"flipped")
    with pytest.raises(ValueError, match="damaged in DVC's cache; remove "):
        list(contents.files(finished, OUTS))


def test_a_name_like_the_caches_is_no_permission(finished: Path, tmp_path: Path) -> None:
    target = tmp_path / "files/md5/00" / ("0" * 30)
    target.parent.mkdir(parents=True)
    target.write_text("not shown")
    (finished / "reports/evaluate/sample/file").symlink_to(target)
    with pytest.raises(ValueError, match=r"evaluate/sample/file: damaged in DVC's cache"):
        list(contents.files(finished, OUTS))


def test_the_thumbnail_is_of_our_model_whatever_its_name(finished: Path) -> None:
    place = finished / "reports/evaluate/sample"
    names = {"base": "naosd", "mine": "gdpo", "shuffled": "control"}
    cards = {name: IDENTITIES[run].model_dump() for name, run in names.items()}
    (place / "summary.json").write_text(json.dumps({**SUMMARY, "origin": {"models": cards}}))
    (place / "images/000-x/gdpo.png").rename(place / "images/000-x/mine.png")
    assert contents.thumbnail(finished)[8:12] == b"WEBP"


def test_a_published_model_works_without_its_base(
    finished: Path, root: Path, tmp_path: Path
) -> None:
    shutil.rmtree(finished / "models")
    shutil.copytree(root / "assets/tiny-sd", finished / "assets/tiny-sd")
    base, kept = finished / "assets/tiny-sd", read_adapters(root / "assets/tiny-sd/naosd")
    card = read_card(root / "assets/tiny-sd/naosd")
    identity = IDENTITIES["gdpo"]
    save_model(
        finished / "models/gdpo", base, kept, identity, t_add=250, t_diff=100, prompt=card.prompt
    )
    trained = NAOSD.from_pretrained(finished / "models/gdpo").unet.state_dict()
    model = contents.self_contained(finished, tmp_path / "scratch")
    for name, path in contents.files(finished, ["models/gdpo"], model):
        target = tmp_path / "elsewhere" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    shutil.rmtree(finished)
    loaded = NAOSD.from_pretrained(tmp_path / "elsewhere/model").unet.state_dict()
    assert all(torch.equal(trained[name], value) for name, value in loaded.items())
    again = NAOSD.from_pretrained(
        tmp_path / "elsewhere/model/adapters", base=root / "assets/tiny-sd"
    ).unet
    assert all(torch.equal(trained[name], value) for name, value in again.state_dict().items())
    with pytest.raises(ValueError, match=r"does not exist; give its folder by --base"):
        NAOSD.from_pretrained(tmp_path / "elsewhere/model/adapters")
