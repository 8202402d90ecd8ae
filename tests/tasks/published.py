"""A bucket, and a clone with something to publish in it: for the tests of publication, promotion
and the pages.

from tests.tasks.published import address, finished, publish      # noqa: F401 - two are fixtures
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from gdpo.images import write_png
from tasks.publish import publication
from tasks.store import s3 as store_module
from tasks.store.s3 import Store
from tests import s3
from tests.tasks import fabricated

NOW = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
HOSTILE = '<script>alert("x")</script>'
SUMMARY = {**fabricated.SMALL, "files": [{"folder": "000-x"}]}
OUTS = ("models/gdpo", "reports/evaluate/sample", "reports/index.html")


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3.server() as url:
        s3.client(url).create_bucket(Bucket="gdpo-sr")
        s3.use(monkeypatch, url)
        yield url
    store_module._client.cache_clear()


@pytest.fixture
def finished(root: Path, tmp_path: Path) -> Path:
    """What a finished pipeline leaves, as far as a publication reads it."""
    place = tmp_path / "clone"
    images = place / "reports/evaluate/sample/images/000-x"
    images.mkdir(parents=True)
    write_png(images / "gdpo.png", np.full((64, 96, 3), 90, np.uint8))
    (place / "reports/evaluate/sample/summary.json").write_text(json.dumps(SUMMARY))
    (place / "reports/evaluate/sample/per_image.parquet").write_bytes(b"scores")
    (place / "reports/index.html").write_text("<title>the report</title>")
    (place / "models/gdpo").mkdir(parents=True)
    (place / "models/gdpo/adapters.safetensors").write_bytes(b"weights")
    shutil.copytree(root / "profiles", place / "profiles")
    shutil.copy(root / "tests/params.yaml", place)
    return place


def publish(
    place: Path,
    hours: int = 0,
    commit: str = "0123456789abcdef",
    outs: Sequence[str] = OUTS,
    system: str = "gdpo",
) -> str:
    when = NOW + timedelta(hours=hours)
    run = publication.run_id(when, commit)
    link = publication.publish(
        place,
        "s3://gdpo-sr",
        run,
        outs=outs,
        kind="train",
        commit=commit,
        when=when,
        system=system,
    )
    return link.removeprefix("s3://gdpo-sr/runs/").removesuffix("/index.html")


def page(store: Store, key: str) -> str:
    return store.read(key).decode()


def writes(requests: list[tuple[str, str]]) -> list[str]:
    return [path for method, path in requests if method == "PUT"]
