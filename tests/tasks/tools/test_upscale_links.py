"""`gdpo-sr upscale FOLDER` and `prior FOLDER`: photographs behind linked folders."""

from pathlib import Path

from tasks.tools import prior
from tasks.tools.upscale_jobs import jobs


def folder(place: Path) -> Path:
    """A photograph, a link to a folder with another, a loop and a link to nothing."""
    (place / "outside").mkdir()
    (place / "outside/b.png").write_bytes(b"b")
    photos = place / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(b"a")
    (photos / "more").symlink_to(place / "outside")
    (photos / "loop").symlink_to(photos)
    (photos / "gone.png").symlink_to("nowhere.png")
    return photos


def test_each_is_upscaled_once_and_a_broken_link_is_a_job_that_fails(tmp_path: Path) -> None:
    photos = folder(tmp_path)
    found = jobs([str(photos)], tmp_path / "out", None, ".png", "_x4")
    assert {job.photo: job.output for job in found} == {
        photos / "a.png": tmp_path / "out/a.png",
        photos / "gone.png": tmp_path / "out/gone.png",
        photos / "more/b.png": tmp_path / "out/more/b.png",
    }


def test_the_prior_learns_from_each_once(tmp_path: Path) -> None:
    parts = prior.split(folder(tmp_path))
    names = sorted(path.name for paths in parts.values() for path in paths)
    assert names == ["a.png", "b.png"]
