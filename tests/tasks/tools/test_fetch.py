"""The tool `fetch`: a folder, an S3 bucket (moto) and a hub (a server on this machine) as sources
of a tiny base model.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gdpo.model.sources import BASE_FILES
from tasks.store import s3 as store
from tasks.tools import fetch
from tests import s3, tiny
from tests.tasks.tools.fetching import (
    COMMIT,
    SCHEDULE,
    UNET,
    check_fetched,
    edit,
    failure,
    run,
    sha256,
)


def test_a_folder_after_one_that_is_not_there(
    fetching_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("elsewhere", "mirror") == 0
    out, err = capsys.readouterr()
    assert err == "gdpo-sr: note: elsewhere: no such folder\n"
    assert out.startswith("models/base: ") and out.endswith("bytes, from mirror\n")
    check_fetched(fetching_root, "mirror")
    assert run("elsewhere", more=("--json",)) == 0, "what is there is not fetched again"
    assert json.loads(capsys.readouterr().out)["source"] == "mirror"


def remove(name: str) -> Callable[[], None]:
    return lambda: Path("mirror", name).unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            edit(SCHEDULE, lambda c: c.update(prediction_type="v_prediction")),
            "scheduler/scheduler_config.json: prediction_type is 'v_prediction', NAOSD needs "
            "'epsilon' "
            "(an SD2.1-base model, not the 768-v one)",
        ),
        (
            edit(SCHEDULE, lambda c: c.pop("clip_sample")),
            "scheduler_config.json: clip_sample is True, NAOSD needs False",
        ),
        (
            remove(UNET),
            f"has unet/diffusion_pytorch_model.fp16.safetensors and no {UNET}; NAOSD is trained "
            "on fp32 weights",
        ),
        (
            remove("text_encoder/model.safetensors"),
            "has no text_encoder/model.safetensors; pickled weights are not read",
        ),
        (
            remove("tokenizer/tokenizer.json"),
            "has no tokenizer/vocab.json and tokenizer/merges.txt",
        ),
        (lambda: os.truncate(f"mirror/{UNET}", 5000), "unet: cannot be loaded"),
        (edit(UNET, lambda t: t.pop("conv_in.bias")), "unet: its weights lack conv_in.bias"),
        (
            edit(UNET, lambda t: t["conv_in.bias"].fill_(float("nan"))),
            "unet: conv_in.bias has values that are NaN",
        ),
    ],
)
def test_a_source_that_will_not_do_is_refused_with_its_reason(
    fetching_root: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[], None], says: str
) -> None:
    spoil()
    line = failure(capsys, "mirror")
    assert says in line and "no source of fetch.base works (mirror: " in line
    shutil.rmtree("mirror")
    tiny.write_base(Path("good"))
    assert run("mirror", "good") == 0, "nothing of the refused source stands in the way"


def test_a_hash_of_the_profile_must_be_met(
    fetching_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = f"fetch.hashes={json.dumps({UNET: '0' * 64})}"
    line = failure(capsys, "mirror", more=("--set", wanted))
    assert f"{UNET} has the SHA-256 {sha256(Path('mirror', UNET))}, not {'0' * 64}" in line
    good = f"fetch.hashes={json.dumps({UNET: sha256(Path('mirror', UNET))})}"
    assert run("mirror", more=("--set", good)) == 0


@pytest.mark.parametrize(
    "source",
    ["hf://owner/name", "hf://owner/name@main", "hf://name@" + COMMIT, "ftp://x/y", "s3://"],
)
def test_a_source_that_is_none_is_a_usage_error(
    fetching_root: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    assert run(source) == 2
    assert (
        "fetch.base.0: must be a folder, s3://bucket/prefix or hf://owner/name@"
        in capsys.readouterr().err
    )


def test_no_source_and_a_damaged_model_are_told(
    fetching_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is not there, and fetch.base names no source" in failure(capsys)
    assert run("mirror") == 0
    os.truncate(f"models/base/{UNET}", 100)
    assert run("mirror") == 1
    assert capsys.readouterr().err.rstrip().endswith("; move models/base away to fetch it again")


@pytest.fixture
def bucket(fetching_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The mirror in s3://weights/sd/base of a moto server."""
    with s3.server() as url:
        s3.use(monkeypatch, url)
        client = s3.client(url)
        client.create_bucket(Bucket="weights")
        for path in (fetching_root / "mirror").rglob("*"):
            if path.is_file():
                client.upload_file(
                    str(path), "weights", f"sd/base/{path.relative_to(fetching_root / 'mirror')}"
                )
        yield client
    store._client.cache_clear()


def test_an_s3_prefix(fetching_root: Path, bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("s3://weights/nothing", "s3://weights/sd/base") == 0
    assert "note: s3://weights/nothing: has no unet/config.json" in capsys.readouterr().err
    check_fetched(fetching_root, "s3://weights/sd/base")


def test_a_bucket_that_is_not_there(bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert "s3://nobody: there is no such object or bucket (NoSuchBucket)" in failure(
        capsys, "s3://nobody"
    )


def test_a_name_that_leads_out_of_the_folder_is_not_taken() -> None:
    outside = {
        "tokenizer/../../evil.json",
        "tokenizer/../unet/config.json",
        "tokenizer/sub/x.json",
        "tokenizer/a\\b.txt",
    }
    found = fetch._needed(
        {*BASE_FILES, "tokenizer/tokenizer.json", "tokenizer/merges.txt", *outside}
    )
    assert set(found) == {*BASE_FILES, "tokenizer/tokenizer.json", "tokenizer/merges.txt"}
