"""Each system has a promoted run of its own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gdpo.evaluate.models import EvaluatedModels
from gdpo.images import write_png
from gdpo.vlcot.folder import IDENTITIES as VLCOT
from tasks import __main__ as cli
from tasks.publish import promotion, records
from tasks.store.s3 import Store
from tests.tasks.published import NOW, SUMMARY, page, publish

VLCOT_OUTS = (
    "models/vlcot/vlcot",
    "reports/vlcot/evaluate/sample",
    "reports/vlcot/index.html",
)


@pytest.fixture
def both(finished: Path, root: Path) -> Path:
    """The clone with a finished RealSR-R1, whose model is the one that ships."""
    images = finished / "reports/vlcot/evaluate/sample/images/000-x"
    images.mkdir(parents=True)
    write_png(images / "vlcot.png", np.full((64, 96, 3), 200, np.uint8))
    renamed = {"naosd": "coldstart", "gdpo": "vlcot", "control": "control"}
    text = json.dumps(SUMMARY)
    for old, new in renamed.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    summary = json.loads(text)
    summary["origin"] = {"models": EvaluatedModels(VLCOT).to_origin()}
    (images.parents[1] / "summary.json").write_text(json.dumps(summary))
    (images.parents[1] / "per_image.parquet").write_bytes(b"scores of RealSR-R1")
    (finished / "reports/vlcot/index.html").write_text("<title>RealSR-R1</title>")
    shutil.copytree(root / "assets/tiny-vlcot", finished / "models/vlcot/vlcot")
    return finished


def test_each_system_has_its_own_promoted_run(
    address: str, both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish(both)
    second = publish(both, hours=1, outs=VLCOT_OUTS, system="vlcot")
    monkeypatch.chdir(tmp_path)
    for run in (first, second):
        assert cli.main(["promote", run]) == 0
    store = Store.at("s3://gdpo-sr")
    for system, run in (("gdpo", first), ("vlcot", second)):
        assert [entry["run"] for entry in records.promoted(store, system)[0]] == [run]
    assert json.loads(store.read("models/vlcot/latest.json"))["run"] == second
    names = set(records.manifest_of(store, second)["files"])
    assert {"index.html", "evaluate/sample/per_image.parquet", "model/trunk.safetensors"} <= names
    assert not [name for name in names if "vlcot" in name and not name.endswith("vlcot.png")]
    kept = {
        place: (tmp_path / place).read_bytes()
        for place in (
            "promoted/sample/per_image.parquet",
            "promoted/vlcot/sample/per_image.parquet",
        )
    }
    assert list(kept.values()) == [b"scores", b"scores of RealSR-R1"]
    models, card = page(store, "models/index.html"), page(store, f"models/{second}.html")
    assert models.count('class="latest"') == 2 and 'class="latest"' in card
    assert "RealSR-R1 is better than RealSR-R1 cold start" in card and "--explain" in card
    # The next promotion of one leaves that of the other.
    third = publish(both, hours=2, outs=VLCOT_OUTS, system="vlcot")
    promotion.promote("s3://gdpo-sr", third, NOW)
    assert [entry["run"] for entry in records.promoted(store, "vlcot")[0]] == [third, second]
    assert [entry["run"] for entry in records.promoted(store)[0]] == [first]


def test_an_output_of_one_system_is_no_part_of_the_others_run(address: str, both: Path) -> None:
    with pytest.raises(ValueError, match="those lie below reports/vlcot/, or are models/vlcot"):
        publish(both, outs=[*VLCOT_OUTS, "models/gdpo"], system="vlcot")
    with pytest.raises(ValueError, match=r"reports/vlcot/index.html: no report to publish; `dvc"):
        publish(both, outs=VLCOT_OUTS[:2], system="vlcot")


def test_a_run_of_a_system_that_is_unknown_is_not_promoted(address: str, finished: Path) -> None:
    run = publish(finished)
    store = Store.at("s3://gdpo-sr")
    manifest = {**records.manifest_of(store, run), "system": "another"}
    store.write(f"runs/{run}/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(ValueError, match=f"runs/{run}: of a system 'another' that is unknown"):
        promotion.promote("s3://gdpo-sr", run, NOW)
