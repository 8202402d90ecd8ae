"""The photographs of several sources, in folders and in S3, and the lists that find them again."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gdpo.config import Photographs
from gdpo.data.scan import examine
from gdpo.hooks import Hooks
from gdpo.images import encode_png, write_png
from tasks.files.photographs import listed, read_list, write_list
from tasks.stages import degrade, index
from tasks.store import s3 as module
from tests import s3
from tests.tasks.photos import config, photo, rows, write


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server whose `bucket` holds faces/00000.png .. 00011.png and a text, listed five keys at a
    time.
    """
    with s3.server() as url:
        for name, value in s3.environment(url).items():
            monkeypatch.setenv(name, value)
        module._client.cache_clear()
        client = s3.client(url)
        client.create_bucket(Bucket="bucket")
        for i in range(12):
            client.put_object(
                Bucket="bucket",
                Key=f"faces/{i // 5}/{i:05d}.png",
                Body=encode_png(photo(i, 48, 48)),
            )
        client.put_object(Bucket="bucket", Key="faces/readme.txt", Body=b"no photograph")
        yield url
    module._client.cache_clear()


def sources(*found: dict[str, object]) -> list[Photographs]:
    return [Photographs.model_validate(one) for one in found]


def test_names_of_several_sources(tmp_path: Path) -> None:
    """The first source's names are plain; a further one's start with its folder, so a third changes
    none of them.
    """
    for name in ("LSDIR/x.png", "data/FFHQ/x.png", "data/FFHQ/y.png", "data/FFHQ/z.png"):
        write_png(tmp_path / name, photo(0))
    two = sources({"path": "LSDIR"}, {"path": "data/FFHQ/", "first": 2, "resize": 32})
    found = listed(two, "train", tmp_path)
    assert [(p.name, p.resize) for p in found] == [("FFHQ__x", 32), ("FFHQ__y", 32), ("x", None)]
    assert found[0].load().shape == (32, 43, 3)
    more = listed([*two, *sources({"path": "scikit-image"})], "train", tmp_path)
    assert {p.name for p in found} < {p.name for p in more} and "scikit-image__ihc" in {
        p.name for p in more
    }
    with pytest.raises(
        ValueError,
        match=r"degrade\.train: the paths of all sources but the first must end in different",
    ):
        listed(sources({"path": "a"}, {"path": "b/x"}, {"path": "c/x"}), "train", tmp_path)
    with pytest.raises(ValueError, match=r"nowhere: no such folder \(degrade\.train\)"):
        listed(sources({"path": "LSDIR"}, {"path": "nowhere"}), "train", tmp_path)


def test_a_list_finds_its_photographs_again(tmp_path: Path) -> None:
    """Without a path of this machine in it: the folder may be moved with the repository."""
    for root in ("here", "there"):
        write_png(tmp_path / root / "photos/x.png", photo(0))
    both = sources({"path": "photos"}, {"path": "scikit-image", "first": 1, "resize": 40})
    findings = [examine(p, 8) for p in listed(both, "train", tmp_path / "here")]
    write_list(tmp_path / "list.parquet", findings, tmp_path / "here")
    assert str(tmp_path).encode() not in (tmp_path / "list.parquet").read_bytes()
    entries = read_list(tmp_path / "list.parquet", tmp_path / "there")
    assert [entry.photo.name for entry in entries] == ["scikit-image__astronaut", "x"]
    assert entries[0].pixels().shape == (40, 40, 3)
    np.testing.assert_array_equal(entries[1].pixels(), photo(0))


def test_photographs_in_s3(bucket: str, tmp_path: Path) -> None:
    """Listed in pages, read by key, the first by name; the same pairs as from a folder of the same
    files.
    """
    faces = {"path": "s3://bucket/faces", "first": 3}
    found = listed(sources(faces), "train", tmp_path)
    assert [(p.name, p.path) for p in found] == [
        (f"0__{i:05d}", f"s3://bucket/faces/0/{i:05d}.png") for i in range(3)
    ]
    assert len(listed(sources({"path": "s3://bucket/faces"}), "train", tmp_path)) == 12
    write(tmp_path)
    for i in range(3):
        write_png(tmp_path / f"faces/0/{i:05d}.png", photo(i, 48, 48))
    made = []
    for source in (faces, {"path": "faces"}):
        settings = config(train=[source])
        index.run(settings, tmp_path, Hooks())
        degrade.run(settings, tmp_path, Hooks(), "00")
        made.append(rows(tmp_path / "data/shards/train"))
    assert made[0] == made[1] and len(made[0]) == 12


def test_what_is_wrong_with_s3_is_one_line_with_the_url(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ValueError, match=r"^s3://bucket/none \(degrade\.train\): no photograph here"
    ):
        listed(sources({"path": "s3://bucket/none"}), "train", tmp_path)
    with pytest.raises(ValueError, match=r"^s3://nobody/x: "):
        listed(sources({"path": "s3://nobody/x"}), "train", tmp_path)
    (found, *_) = listed(sources({"path": "s3://bucket/faces"}), "train", tmp_path)
    s3.client(bucket).delete_object(Bucket="bucket", Key="faces/0/00000.png")
    finding = examine(found, 8)
    assert (finding.reason, finding.detail[:32]) == (
        "unreadable",
        "s3://bucket/faces/0/00000.png: t",
    )


def test_the_report_does_not_depend_on_where_the_repository_lies(tmp_path: Path) -> None:
    """It is an output: no path of this machine, no address in memory."""
    reports = []
    for name in ("here", "there"):
        root = write(tmp_path / name)
        (root / "photos/train/broken.png").write_bytes(b"no image")
        index.run(config(max_failures=0.5), root, Hooks())
        reports.append((root / "reports/photographs/report.json").read_text())
    assert (
        reports[0] == reports[1]
        and "photos/train/broken.png: not a readable photograph (not an image" in reports[0]
    )
