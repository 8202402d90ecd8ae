"""Runs in the bucket: published whole or not at all, listed from their manifests."""

import shutil
from pathlib import Path

import pytest

from tasks.publish import pages, promotion, publication, records
from tasks.store import conditional
from tasks.store import s3 as store_module
from tasks.store.errors import Conflict
from tasks.store.s3 import Store
from tests import s3
from tests.tasks.published import HOSTILE, NOW, OUTS, page, publish


def test_a_run_is_its_report_its_model_and_a_manifest_of_both(address: str, finished: Path) -> None:
    run = publish(finished)
    assert run == "20261121T020000Z-01234567"
    store = Store.at("s3://gdpo-sr")
    assert page(store, f"runs/{run}/index.html") == "<title>the report</title>"
    assert store.read(f"runs/{run}/model/adapters.safetensors") == b"weights"
    manifest = records.manifest_of(store, run)
    assert manifest["profile"] == "sample"
    assert manifest["kind"] == "train"
    assert "GDPO-SR is better than NAOSD" in manifest["verdict"]
    assert set(manifest["files"]) == {
        "index.html",
        "evaluate/sample/summary.json",
        "evaluate/sample/per_image.parquet",
        "evaluate/sample/images/000-x/gdpo.png",
        "model/adapters.safetensors",
    }
    for name, file in manifest["files"].items():
        assert (
            s3.client(address).head_object(Bucket="gdpo-sr", Key=f"runs/{run}/{name}")["Metadata"][
                "sha256"
            ]
            == file["sha256"]
        )


def test_the_list_has_the_newest_first_and_only_whole_runs(address: str, finished: Path) -> None:
    first, second = publish(finished), "20261122T020000Z-second"
    publication.publish(
        finished, "s3://gdpo-sr", second, outs=OUTS, kind="nightly", commit=HOSTILE, when=NOW
    )
    store = Store.at("s3://gdpo-sr")
    store.write("runs/20991231T000000Z-broken/index.html", b"no manifest")
    pages.list_runs(store)
    text = page(store, "runs/index.html")
    assert text.index(second) < text.index(first)
    assert "broken" not in text
    assert "profile sample" in text
    assert f'href="{first}/index.html"' in text
    assert f'src="{first}/thumbnail.webp"' in text
    assert HOSTILE[:12] not in text and "&lt;script&gt;al" in text


def test_a_name_that_leaves_the_folder_is_refused(address: str, finished: Path) -> None:
    with pytest.raises(ValueError, match="cannot name a run"):
        publication.publish(
            finished, "s3://gdpo-sr", "../models", outs=OUTS, kind="train", commit="c", when=NOW
        )


def test_what_is_no_output_of_the_pipeline_is_not_published(
    address: str, finished: Path, tmp_path: Path
) -> None:
    """Last night's comparison, and the scores of a benchmark that the pipeline no longer has."""
    for name in (
        "against/sample.json",
        "evaluate/oldbench/per_image.parquet",
        "evaluate/sample.old/per_image.parquet",
    ):
        path = finished / "reports" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"left over")
    run = publish(finished)
    store = Store.at("s3://gdpo-sr")
    assert [key for key in store.keys("runs/") if "against" in key or "old" in key] == []
    manifest = promotion.promote("s3://gdpo-sr", run, NOW)
    assert {name.partition("/")[0] for name in manifest["files"]} == {
        "index.html",
        "evaluate",
        "model",
    }
    assert promotion.download_scores(store, manifest, tmp_path) == [
        tmp_path / "sample/per_image.parquet"
    ]


def test_nothing_is_published_when_an_output_is_not_there(address: str, finished: Path) -> None:
    with pytest.raises(ValueError, match=r"^reports/pages: .*`dvc pull reports/pages`") as caught:
        publish(finished, outs=[*OUTS, "reports/pages"])
    assert "\n" not in str(caught.value)
    assert list(Store.at("s3://gdpo-sr").keys()) == []


def test_an_interrupted_upload_is_in_no_list(
    address: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "ATTEMPTS", 1)
    with s3.proxy(
        address, lambda method, path: 403 if method == "PUT" and "adapters" in path else None
    ) as url:
        s3.use(monkeypatch, url)
        with pytest.raises(OSError, match=r"adapters\.safetensors: the upload was interrupted"):
            publish(finished)
    s3.use(monkeypatch, address)
    assert records.manifests(Store.at("s3://gdpo-sr")) == []
    run = publish(finished)
    assert [manifest["run"] for manifest in records.manifests(Store.at("s3://gdpo-sr"))] == [run]


def test_the_address_holds_no_credentials(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.at("s3://gdpo-sr/sr")
    assert publication.address(store, "runs/x/index.html") == "s3://gdpo-sr/sr/runs/x/index.html"
    monkeypatch.setenv("GDPO_GATEWAY", "https://results.example.org/sr/")
    assert (
        publication.address(store, "runs/x/index.html")
        == "https://results.example.org/sr/runs/x/index.html"
    )
    monkeypatch.setenv("GDPO_GATEWAY", f"https://me:{s3.SECRET}@results.example.org")
    with pytest.raises(ValueError, match="GDPO_GATEWAY: has a user or password") as caught:
        publication.address(store, "runs/x/index.html")
    assert s3.SECRET not in str(caught.value)


@pytest.mark.parametrize("ignored", ["nothing", "if-"])
@pytest.mark.parametrize("others", [0, 1])
def test_of_two_that_list_at_once_both_are_listed(
    address: str, finished: Path, monkeypatch: pytest.MonkeyPatch, ignored: str, others: int
) -> None:
    """Another run is published and listed when the list without it is on its way; before that,
    `others` were.
    """
    runs = [publish(finished, hours) for hours in range(others)]
    came: list[str] = []

    def fault(method: str, path: str) -> str:
        if method == "PUT" and path.endswith("/runs/index.html") and not came:
            came.append("now")
            came.append(publish(finished, hours=8))
        return f"ignore {ignored}"

    with s3.proxy(address, fault) as url:
        s3.use(monkeypatch, url)
        runs.append(publish(finished, hours=4))
    text = page(Store.at("s3://gdpo-sr"), "runs/index.html")
    assert [run for run in (*runs, came[1]) if run not in text] == []


def test_a_list_that_others_write_all_the_time_is_given_up(
    address: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(finished)
    tries: list[str] = []

    def refuse(method: str, path: str) -> int | None:
        if method == "PUT" and path.endswith("/runs/index.html"):
            tries.append(path)
            return 412
        return None

    with s3.proxy(address, refuse) as url:
        s3.use(monkeypatch, url)
        with pytest.raises(Conflict, match=r"s3://gdpo-sr/runs/index\.html: others wrote it"):
            publish(finished, hours=1)
    assert len(tries) == conditional.TRIES


@pytest.mark.parametrize("way", ["ignore nothing", "ignore if-", "refuse if-", "refuse if-match"])
def test_two_publications_of_one_name_are_two_runs(
    address: str, finished: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    with s3.proxy(address, lambda method, path: way) as url:
        s3.use(monkeypatch, url)
        first = publish(finished)
        (finished / "models/gdpo/adapters.safetensors").write_bytes(b"other weights")
        second = publish(finished)
        assert second == f"{first}-2"
        assert publish(finished) == second  # the same again, as after a failure
    store = Store.at("s3://gdpo-sr")
    assert [manifest["run"] for manifest in records.manifests(store)] == [second, first]
    assert store.read(f"runs/{first}/model/adapters.safetensors") == b"weights"
    assert store.read(f"runs/{second}/model/adapters.safetensors") == b"other weights"


def test_a_name_is_claimed_before_anything_is_written_below_it(
    address: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another publication takes the name when our first write is on its way."""
    other = finished.parent / "other"
    shutil.copytree(finished, other)
    (other / "models/gdpo/adapters.safetensors").write_bytes(b"other weights")
    came: list[str] = []

    def fault(method: str, path: str) -> None:
        if method == "PUT" and "/runs/" in path and not came:
            came.append("now")
            came.append(publish(other))

    with s3.proxy(address, fault) as url:
        s3.use(monkeypatch, url)
        run = publish(finished)
    assert run == f"{came[1]}-2"
    store = Store.at("s3://gdpo-sr")
    assert store.read(f"runs/{run}/model/adapters.safetensors") == b"weights"
    assert store.read(f"runs/{came[1]}/model/adapters.safetensors") == b"other weights"


def test_an_interrupted_publication_goes_on_under_its_name(
    address: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3.proxy(
        address, lambda method, path: 403 if method == "PUT" and "manifest" in path else None
    ) as url:
        s3.use(monkeypatch, url)
        with pytest.raises(PermissionError, match=r"manifest\.json"):
            publish(finished)
    s3.use(monkeypatch, address)
    assert publish(finished) == "20261121T020000Z-01234567"


def loses(name: str) -> s3.Fault:
    """A store that answers as if it had stored the objects of this name."""
    return lambda method, path: "lie" if method == "PUT" and path.endswith(name) else None


@pytest.mark.parametrize("lost", ["/model/adapters.safetensors", "/manifest.json"])
def test_a_file_that_the_store_took_and_lost_is_named_and_the_run_is_not_listed(
    address: str, finished: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    with s3.proxy(address, loses(lost)) as url:
        s3.use(monkeypatch, url)
        with pytest.raises(OSError, match=rf"{lost}: the store took it without an error"):
            publish(finished)
    s3.use(monkeypatch, address)
    assert records.manifests(Store.at("s3://gdpo-sr")) == []
    run = publish(finished)
    assert records.manifest_of(Store.at("s3://gdpo-sr"), run)["files"]


def test_a_pointer_that_the_store_took_and_lost_is_no_promotion(
    address: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = publish(finished)
    with s3.proxy(address, loses("/models/latest.json")) as url:
        s3.use(monkeypatch, url)
        with pytest.raises(OSError, match=r"models/latest\.json: the store took it"):
            promotion.promote("s3://gdpo-sr", run, NOW)
    s3.use(monkeypatch, address)
    assert records.promoted(Store.at("s3://gdpo-sr")) == ([], None)
    assert promotion.promote("s3://gdpo-sr", run, NOW)["run"] == run
