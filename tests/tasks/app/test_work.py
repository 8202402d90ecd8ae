"""What the page does with uploads: results, records, limits, one bad file among good ones."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gdpo.model.card import IDENTITIES, Card
from gdpo.pictures.read import read_picture
from gdpo.upscale import resolver
from tasks.app import models
from tasks.app.examples import PHOTOS, write_examples
from tasks.app.models import local_models
from tasks.app.work import MOST_PHOTOS, Cancelled, Request, Result, best, upscaled
from tests.gdpo.upscale.fake_model import FakeModel


def card(folder: Path, **values: Any) -> Path:
    """A model folder; its network is a fake."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"t_add": 250, "t_diff": 100, "prompt": "sharp", "adapters": []} | values
    identity = IDENTITIES["gdpo"].model_dump()
    Card(**identity, format=1, base="..", base_sha256={}, **settings).write(folder)
    return folder


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeModel]:
    fake = FakeModel()
    monkeypatch.setattr(
        resolver, "load_models", lambda folders, *_: dict.fromkeys(folders, lambda: fake)
    )
    models._loaded.cache_clear()
    yield fake
    models._loaded.cache_clear()


@pytest.fixture
def request_(network: FakeModel, tmp_path: Path) -> Request:
    """One photograph of 16x12 pixels with a maker in its EXIF."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[271] = "a maker"
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif, dpi=(72, 72))
    return Request(
        photos=[tmp_path / "photo.jpg"],
        model=card(tmp_path / "model"),
        device="cpu",
        scale=4.0,
        t_add=100,
        color_fix="none",
        seed=5,
        count=1,
    )


def run(request: Request, folder: Path, **how: Any) -> tuple[list[Result], list[str], list[float]]:
    """The results, what was said about bad files, and the shares that were reported."""
    folder.mkdir()
    said: list[str] = []
    shares: list[float] = []
    made = upscaled(
        request,
        folder,
        lambda share, name: shares.append(share),
        how.get("is_cancelled", lambda: False),
        said.append,
    )
    return list(made), said, shares


def test_a_result_keeps_the_photographs_metadata_and_says_how_it_was_made(
    request_: Request, network: FakeModel, tmp_path: Path
) -> None:
    (made,), said, shares = run(request_, tmp_path / "out")
    assert made.file.name == "photo_x4_seed5.png" and made.enlarged.name == "photo_bicubic.png"
    with Image.open(made.file) as result, Image.open(made.enlarged) as enlarged:
        assert result.size == enlarged.size == (64, 48)
        assert result.getexif()[271] == "a maker"
        assert result.info["dpi"] == pytest.approx((72, 72), abs=0.1)
    record = made.record
    assert (record["photograph"], record["model"], record["seed"]) == ("photo.jpg", "GDPO-SR", 5)
    assert (record["t_add"], record["text"], record["kind"]) == (100, "sharp", "naosd")
    assert (record["width"], record["height"]) == (64, 48)
    assert network.seen_t_add == 100
    assert said == [] and shares[0] == 0 and shares[-1] == 1 and shares == sorted(shares)


def test_the_best_of_each_photograph_is_found(request_: Request, tmp_path: Path) -> None:
    other = tmp_path / "b.png"
    Image.linear_gradient("L").convert("RGB").resize((16, 16)).save(other)
    request = replace(request_, photos=[*request_.photos, other], count=3)
    made, _, _ = run(request, tmp_path / "out")
    records = [one.record for one in made]
    assert [(one["number"], one["seed"]) for one in records] == [
        (number, seed) for number in (0, 1) for seed in (5, 6, 7)
    ]
    lowest = [min(range(i, i + 3), key=lambda place: records[place]["niqe"]) for i in (0, 3)]
    assert best(records) == lowest
    assert len({one.file.read_bytes() for one in made}) == 6


def test_a_result_too_small_for_the_score_has_none(request_: Request, tmp_path: Path) -> None:
    made, _, _ = run(replace(request_, scale=1.0, count=2), tmp_path / "out")
    assert [one.record["niqe"] for one in made] == [None, None]
    assert best([one.record for one in made]) == [0]


def test_a_bad_file_is_told_and_the_others_are_done(request_: Request, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    request = replace(request_, photos=[bad, *request_.photos])
    made, said, _ = run(request, tmp_path / "out")
    assert [one.record["photograph"] for one in made] == ["photo.jpg"]
    assert said == ["bad.png: not a readable photograph (not an image of a known kind)"]
    with pytest.raises(ValueError, match=r"^bad\.png: not a readable photograph"):
        run(replace(request_, photos=[bad]), tmp_path / "again")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"photos": []}, "no photograph"),
        ({"photos": [Path("a.png")] * (MOST_PHOTOS + 1)}, f"at most {MOST_PHOTOS} at once"),
        ({"seed": -1}, "seed must be a whole number from 0 up, got -1"),
        ({"scale": 400.0}, r"photo\.jpg: the result would have 6400x4800 pixels.*at most 16"),
    ],
)
def test_limits_are_said(
    request_: Request, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        run(replace(request_, **change), tmp_path / "out")


def test_cancelling_keeps_what_is_ready(request_: Request, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    ready: list[Result] = []
    with pytest.raises(Cancelled):
        for made in upscaled(
            replace(request_, count=3),
            tmp_path / "out",
            lambda share, name: None,
            lambda: len(ready) == 1,
            lambda line: None,
        ):
            ready.append(made)
    assert len(ready) == 1 and ready[0].file.is_file()


def test_a_model_without_noise_gets_no_strength(
    request_: Request, network: FakeModel, tmp_path: Path
) -> None:
    plain = replace(request_, model=card(tmp_path / "plain", t_add=None))
    (made,), _, _ = run(plain, tmp_path / "out")
    assert network.seen_t_add is None and made.record["t_add"] is None


def test_models_of_the_folder_come_before_the_one_that_ships(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("control", "gdpo", "vlcot/broken"):
        card(tmp_path / "models" / name)
    (tmp_path / "models/vlcot/broken/model.json").write_text("{")
    found = local_models(tmp_path)
    assert list(found) == [
        "GDPO-SR (models/gdpo)",
        "GDPO-SR (models/control)",
        "NAOSD (ships with gdpo-sr)",
    ]
    assert found["GDPO-SR (models/gdpo)"] == tmp_path / "models/gdpo"
    error = capsys.readouterr().err
    assert error.startswith("gdpo-sr: left out: ") and "models/vlcot/broken" in error
    assert list(local_models(tmp_path / "none")) == ["NAOSD (ships with gdpo-sr)"]


def test_examples_are_small_and_always_the_same(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first, second = write_examples(tmp_path / "a"), write_examples(tmp_path / "b")
    assert [path.stem for path in first] == list(PHOTOS)
    for one, other in zip(first, second, strict=True):
        assert read_picture(one).rgb.shape == (96, 96, 3)
        assert one.read_bytes() == other.read_bytes()
