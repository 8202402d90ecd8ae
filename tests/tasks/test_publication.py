"""Runs in the bucket: published whole or not at all, listed from their manifests, promoted by one person at a time, browsed."""

import json
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, build_opener, urlopen

import numpy as np
import pytest

from gdpo.images import write_png
from tasks import __main__ as cli
from tasks import browse, conditional, publication
from tasks import store as store_module
from tasks.store import Conflict, Store
from tests import s3
from tests.tasks import fabricated
from tests.tasks.test_store import use

NOW = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
HOSTILE = '<script>alert("x")</script>'
SUMMARY = {**fabricated.SMALL, "files": [{"folder": "000-x"}]}
OUTS = ("models/gdpo", "reports/evaluate/sample", "reports/index.html")


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3.server() as url:
        s3.client(url).create_bucket(Bucket="gdpo-sr")
        use(monkeypatch, url)
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
    shutil.copy(root / "params.yaml", place)
    return place


def publish(place: Path, hours: int = 0, commit: str = "0123456789abcdef", outs: Sequence[str] = OUTS) -> str:
    when = NOW + timedelta(hours=hours)
    run = publication.run_id(when, commit)
    link = publication.publish(place, "s3://gdpo-sr", run, outs=outs, kind="train", commit=commit, when=when)
    return link.removeprefix("s3://gdpo-sr/runs/").removesuffix("/index.html")


def page(store: Store, key: str) -> str:
    return store.read(key).decode()


def test_a_run_is_its_report_its_model_and_a_manifest_of_both(address: str, finished: Path) -> None:
    run = publish(finished)
    assert run == "20261121T020000Z-01234567"
    store = Store.at("s3://gdpo-sr")
    assert page(store, f"runs/{run}/index.html") == "<title>the report</title>"
    assert store.read(f"runs/{run}/model/adapters.safetensors") == b"weights"
    manifest = publication.manifest_of(store, run)
    assert manifest["profile"] == "sample"
    assert manifest["kind"] == "train"
    assert "GDPO-SR beats NAOSD on the reward" in manifest["verdict"]
    assert set(manifest["files"]) == {
        "index.html", "evaluate/sample/summary.json", "evaluate/sample/per_image.parquet",
        "evaluate/sample/images/000-x/gdpo.png", "model/adapters.safetensors",
    }  # fmt: skip
    for name, file in manifest["files"].items():
        assert (
            s3.client(address).head_object(Bucket="gdpo-sr", Key=f"runs/{run}/{name}")["Metadata"]["sha256"] == file["sha256"]
        )


def test_the_list_has_the_newest_first_and_only_whole_runs(address: str, finished: Path) -> None:
    first, second = publish(finished), "20261122T020000Z-second"
    publication.publish(finished, "s3://gdpo-sr", second, outs=OUTS, kind="nightly", commit=HOSTILE, when=NOW)
    store = Store.at("s3://gdpo-sr")
    store.write("runs/20991231T000000Z-broken/index.html", b"no manifest")
    publication.list_runs(store)
    text = page(store, "runs/index.html")
    assert text.index(second) < text.index(first)
    assert "broken" not in text
    assert "profile sample" in text
    assert f'href="{first}/index.html"' in text
    assert f'src="{first}/thumbnail.webp"' in text
    assert HOSTILE[:12] not in text and "&lt;script&gt;al" in text


def test_a_name_that_leaves_the_folder_is_refused(address: str, finished: Path) -> None:
    with pytest.raises(ValueError, match="cannot name a run"):
        publication.publish(finished, "s3://gdpo-sr", "../models", outs=OUTS, kind="train", commit="c", when=NOW)


def test_what_is_no_output_of_the_pipeline_is_not_published(address: str, finished: Path, tmp_path: Path) -> None:
    """Last night's comparison, and the scores of a benchmark that the pipeline no longer has."""
    for name in ("against/sample.json", "evaluate/oldbench/per_image.parquet", "evaluate/sample.old/per_image.parquet"):
        path = finished / "reports" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"left over")
    run = publish(finished)
    store = Store.at("s3://gdpo-sr")
    assert [key for key in store.keys("runs/") if "against" in key or "old" in key] == []
    manifest = publication.promote("s3://gdpo-sr", run, NOW)
    assert {name.partition("/")[0] for name in manifest["files"]} == {"index.html", "evaluate", "model"}
    assert publication.bring_scores(store, manifest, tmp_path) == [tmp_path / "sample/per_image.parquet"]


def test_nothing_is_published_when_an_output_is_not_there(address: str, finished: Path) -> None:
    with pytest.raises(ValueError, match=r"^reports/pages: .*`dvc pull reports/pages`") as caught:
        publish(finished, outs=[*OUTS, "reports/pages"])
    assert "\n" not in str(caught.value)
    assert list(Store.at("s3://gdpo-sr").keys()) == []


def test_an_interrupted_upload_is_in_no_list(address: str, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "ATTEMPTS", 1)
    with s3.proxy(address, lambda method, path: 403 if method == "PUT" and "adapters" in path else None) as url:
        use(monkeypatch, url)
        with pytest.raises(OSError, match=r"adapters\.safetensors: the upload broke off"):
            publish(finished)
    use(monkeypatch, address)
    assert publication.manifests(Store.at("s3://gdpo-sr")) == []
    run = publish(finished)
    assert [manifest["run"] for manifest in publication.manifests(Store.at("s3://gdpo-sr"))] == [run]


def test_the_address_holds_no_credentials(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.at("s3://gdpo-sr/sr")
    assert publication.address(store, "runs/x/index.html") == "s3://gdpo-sr/sr/runs/x/index.html"
    monkeypatch.setenv("GDPO_GATEWAY", "https://results.example.org/sr/")
    assert publication.address(store, "runs/x/index.html") == "https://results.example.org/sr/runs/x/index.html"
    monkeypatch.setenv("GDPO_GATEWAY", f"https://me:{s3.SECRET}@results.example.org")
    with pytest.raises(ValueError, match="GDPO_GATEWAY: has a user or password") as caught:
        publication.address(store, "runs/x/index.html")
    assert s3.SECRET not in str(caught.value)


def writes(asked: list[tuple[str, str]]) -> list[str]:
    return [path for method, path in asked if method == "PUT"]


@pytest.mark.parametrize("ignored", ["nothing", "if-"])
@pytest.mark.parametrize("others", [0, 1])
def test_of_two_that_list_at_once_both_are_listed(
    address: str, finished: Path, monkeypatch: pytest.MonkeyPatch, ignored: str, others: int
) -> None:
    """Another run is published and listed when the list without it is on its way; before that, `others` were."""
    runs = [publish(finished, hours) for hours in range(others)]
    came: list[str] = []

    def fault(method: str, path: str) -> str:
        if method == "PUT" and path.endswith("/runs/index.html") and not came:
            came.append("now")
            came.append(publish(finished, hours=8))
        return f"ignore {ignored}"

    with s3.proxy(address, fault) as url:
        use(monkeypatch, url)
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
        use(monkeypatch, url)
        with pytest.raises(Conflict, match=r"s3://gdpo-sr/runs/index\.html: others wrote it"):
            publish(finished, hours=1)
    assert len(tries) == conditional.TRIES


@pytest.mark.parametrize("way", ["ignore nothing", "ignore if-", "refuse if-", "refuse if-match"])
def test_two_publications_of_one_name_are_two_runs(
    address: str, finished: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    with s3.proxy(address, lambda method, path: way) as url:
        use(monkeypatch, url)
        first = publish(finished)
        (finished / "models/gdpo/adapters.safetensors").write_bytes(b"other weights")
        second = publish(finished)
        assert second == f"{first}-2"
        assert publish(finished) == second  # the same again, as after a failure
    store = Store.at("s3://gdpo-sr")
    assert [manifest["run"] for manifest in publication.manifests(store)] == [second, first]
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
        use(monkeypatch, url)
        run = publish(finished)
    assert run == f"{came[1]}-2"
    store = Store.at("s3://gdpo-sr")
    assert store.read(f"runs/{run}/model/adapters.safetensors") == b"weights"
    assert store.read(f"runs/{came[1]}/model/adapters.safetensors") == b"other weights"


def test_an_interrupted_publication_goes_on_under_its_name(
    address: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3.proxy(address, lambda method, path: 403 if method == "PUT" and "manifest" in path else None) as url:
        use(monkeypatch, url)
        with pytest.raises(PermissionError, match=r"manifest\.json"):
            publish(finished)
    use(monkeypatch, address)
    assert publish(finished) == "20261121T020000Z-01234567"


def test_the_models_page_is_there_before_the_first_promotion(address: str, finished: Path) -> None:
    run = publish(finished)
    store = Store.at("s3://gdpo-sr")
    assert "No run has been promoted yet" in page(store, "models/index.html")
    publication.promote("s3://gdpo-sr", run, NOW)
    publish(finished, hours=1)
    assert run in page(store, "models/index.html")


def test_a_worker_that_may_not_write_models_publishes(address: str, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3.proxy(address, lambda method, path: 403 if method == "PUT" and "/models/" in path else None) as url:
        use(monkeypatch, url)
        run = publish(finished)
    store = Store.at("s3://gdpo-sr")
    assert run in page(store, "runs/index.html")
    assert store.tag("models/index.html") is None


def test_promotion_moves_the_pointer_and_lists_the_models(
    address: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [publish(finished), publish(finished, hours=1)]
    monkeypatch.chdir(tmp_path)
    for run in runs:
        assert cli.main(["promote", run]) == 0
    store = Store.at("s3://gdpo-sr")
    entries, _ = publication.promoted(store)
    assert [entry["run"] for entry in entries] == runs[::-1]
    assert json.loads(store.read("models/latest.json"))["run"] == runs[1]
    models, card = page(store, "models/index.html"), page(store, f"models/{runs[1]}.html")
    assert models.count('class="latest"') == 1
    assert models.index(runs[1]) < models.index("latest</span>") < models.index(runs[0])
    assert f'href="../runs/{runs[1]}/model/adapters.safetensors"' in card
    assert "GDPO-SR beats NAOSD" in card
    assert (tmp_path / "promoted/sample/per_image.parquet").read_bytes() == b"scores"
    assert "commit promoted/sample/per_image.parquet" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["/models/20261121T020000Z-01234567.html", "/models/index.html"])
def test_promoting_again_completes_what_is_missing_and_writes_nothing_else(
    address: str, finished: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    run = publish(finished)
    asked: list[tuple[str, str]] = []

    def fail(method: str, path: str) -> int | None:
        return 403 if method == "PUT" and path.endswith(missing) else None

    def note(method: str, path: str) -> None:
        asked.append((method, path))

    with s3.proxy(address, fail) as url:
        use(monkeypatch, url)
        with pytest.raises(PermissionError, match=re.escape(missing)):
            publication.promote("s3://gdpo-sr", run, NOW)
    store = Store.at("s3://gdpo-sr")
    with s3.proxy(address, note) as url:
        use(monkeypatch, url)
        for hours in (1, 2):
            assert publication.promote("s3://gdpo-sr", run, NOW + timedelta(hours=hours))["run"] == run
        assert len([path for path in writes(asked) if path.endswith(missing)]) == 1
        assert run in page(store, "models/index.html")
        assert "GDPO-SR beats NAOSD" in page(store, f"models/{run}.html")
        entries, _ = publication.promoted(store)
        assert [entry["promoted"] for entry in entries] == [NOW.isoformat(timespec="seconds")]
        asked.clear()
        publication.promote("s3://gdpo-sr", run, NOW + timedelta(hours=3))
    assert writes(asked) == []
    assert not [path for _, path in asked if "safetensors" in path]


def test_a_card_goes_with_the_run_that_is_promoted_meanwhile(
    address: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run is promoted and listed when the pages that call ours the latest are on their way."""
    runs = [publish(finished, hours) for hours in range(2)]
    came: list[str] = []

    def fault(method: str, path: str) -> None:
        if method == "PUT" and path.endswith(f"/models/{runs[0]}.html") and not came:
            came.append(path)
            publication.promote("s3://gdpo-sr", runs[1], NOW)

    with s3.proxy(address, fault) as url:
        use(monkeypatch, url)
        publication.promote("s3://gdpo-sr", runs[0], NOW)
    store = Store.at("s3://gdpo-sr")
    assert came
    assert 'class="latest"' not in page(store, f"models/{runs[0]}.html")
    assert 'class="latest"' in page(store, f"models/{runs[1]}.html")
    assert page(store, "models/index.html").index(runs[1]) < page(store, "models/index.html").index(runs[0])


@pytest.mark.parametrize("name", ["model/adapters.safetensors", "evaluate/sample/per_image.parquet"])
def test_a_file_that_is_not_the_published_one_is_not_promoted(
    address: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Written over with a SHA-256 of its own, or with none: the manifest's counts."""
    run = publish(finished)
    store = Store.at("s3://gdpo-sr")
    store.write(f"runs/{run}/{name}", b"another run's")
    assert cli.main(["promote", run]) == 1
    said = capsys.readouterr().err
    assert f"s3://gdpo-sr/runs/{run}/{name}: not the file that was published" in said
    assert said.count("\n") == 1
    assert publication.promoted(store) == ([], None)
    s3.client(address).put_object(Bucket="gdpo-sr", Key=f"runs/{run}/evaluate/sample/per_image.parquet", Body=b"other")
    with pytest.raises(ValueError, match=r"per_image\.parquet: not the file that was published"):
        publication.bring_scores(store, publication.manifest_of(store, run), tmp_path / "scores")
    assert not list(tmp_path.glob("scores/sample/*"))


def test_a_run_that_is_not_whole_is_not_promoted(address: str, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["promote", "20991231T000000Z-nothing"]) == 1
    assert "there is no whole run '20991231T000000Z-nothing'" in capsys.readouterr().err
    run = publish(finished)
    client = s3.client(address)
    client.put_object(
        Bucket="gdpo-sr", Key=f"runs/{run}/model/adapters.safetensors", Body=b"other", Metadata={"sha256": "0" * 64}
    )
    assert cli.main(["promote", run]) == 1
    assert "adapters.safetensors: damaged" in capsys.readouterr().err
    assert publication.promoted(Store.at("s3://gdpo-sr")) == ([], None)


def delete(store: Store, under: str) -> None:
    for key in list(store.keys(under)):
        store.delete(key)


def test_a_promoted_run_that_is_gone_is_said_to_be_and_stops_nothing(address: str, finished: Path) -> None:
    gone, run = publish(finished, commit="abcdef0123456789"), publish(finished, hours=1)
    publication.promote("s3://gdpo-sr", gone, NOW)
    store = Store.at("s3://gdpo-sr")
    delete(store, f"runs/{gone}/")
    delete(store, f"models/{gone}.html")
    publication.promote("s3://gdpo-sr", run, NOW)
    text = page(store, "models/index.html")
    first, second = re.findall(r"<li>.*?</li>", text, flags=re.DOTALL)
    assert f'href="{run}.html"' in first and 'class="latest"' in first
    assert gone in second and "abcdef012345" in second and NOW.isoformat(timespec="seconds") in second
    assert "gone" in second and "href" not in second and "src" not in second
    assert store.tag(f"models/{gone}.html") is None
    delete(store, "models/index.html")
    delete(store, f"runs/{run}/")  # now nothing that was promoted is there
    publish(finished, hours=2)
    assert page(store, "models/index.html").count("gone") == 2
    with pytest.raises(ValueError, match="there is no whole run"):
        publication.promote("s3://gdpo-sr", gone, NOW)


@pytest.mark.parametrize(
    "without", [("kind",), ("date",), ("commit",), ("profile",), ("verdict",), ("table",),
                ("kind", "date", "commit", "profile", "verdict", "table")],
    ids="-".join,
)  # fmt: skip
def test_a_run_of_another_version_is_listed_with_what_it_has(address: str, finished: Path, without: Sequence[str]) -> None:
    old, store = publish(finished, commit="abcdef0123456789"), Store.at("s3://gdpo-sr")
    manifest = publication.manifest_of(store, old)
    shown = {"commit": "abcdef012345", "profile": "profile sample", "verdict": "GDPO-SR beats NAOSD", "kind": "train ·"}
    left = {name: value for name, value in manifest.items() if name not in without}
    store.write(f"runs/{old}/manifest.json", json.dumps({**left, "newer": "field"}).encode())
    run = publish(finished, hours=1, commit="0" * 40)
    entry = re.findall(r"<li>.*?</li>", page(store, "runs/index.html"), flags=re.DOTALL)[1]
    assert f'href="{old}/index.html"' in entry and "5 files" in entry
    assert {name: text in entry for name, text in shown.items()} == {name: name not in without for name in shown}
    for promoted in (old, run):
        publication.promote("s3://gdpo-sr", promoted, NOW)
    assert f'href="{old}.html"' in page(store, "models/index.html")
    assert "adapters.safetensors" in page(store, f"models/{old}.html")
    for name in ("runs/index.html", "models/index.html", f"models/{old}.html"):
        assert "None" not in page(store, name) and "<code></code>" not in page(store, name)


@pytest.mark.parametrize(
    "content",
    [
        b"[]", b"[1]", b'"x"', b"7", b"null", b"{}", b"{", b"\xff", b'{"run": "RUN"}', b'{"files": {}}',
        b'{"run": "RUN", "files": []}', b'{"run": "RUN", "files": {"x": {}}}', b'{"run": "RUN", "files": {"x": 1}}',
        b'{"run": "another", "files": {}}', b'{"run": 1, "files": {}}',
    ],
)  # fmt: skip
def test_a_run_whose_manifest_lacks_what_every_reader_needs_is_in_no_list(address: str, finished: Path, content: bytes) -> None:
    store, broken = Store.at("s3://gdpo-sr"), "20991231T000000Z-broken"
    store.write(f"runs/{broken}/manifest.json", content.replace(b"RUN", broken.encode()))
    run = publish(finished)
    assert [manifest["run"] for manifest in publication.manifests(store)] == [run]
    assert broken not in page(store, "runs/index.html")
    with pytest.raises(ValueError, match="there is no whole run"):
        publication.promote("s3://gdpo-sr", broken, NOW)


def test_of_two_who_promote_at_once_one_is_told(address: str, finished: Path) -> None:
    runs = [publish(finished, hours=hours) for hours in range(4)]
    results: dict[str, Any] = {}
    start = threading.Barrier(len(runs))

    def attempt(run: str) -> None:
        start.wait()
        try:
            results[run] = publication.promote("s3://gdpo-sr", run, NOW)["run"]
        except Conflict as conflict:
            results[run] = conflict

    threads = [threading.Thread(target=attempt, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [run for run in runs if results[run] == run]
    entries, _ = publication.promoted(Store.at("s3://gdpo-sr"))
    assert sorted(entry["run"] for entry in entries) == sorted(won)  # nobody who was told "promoted" is missing
    assert won and all("somebody promoted another run just now" in str(results[run]) for run in runs if run not in won)


def status(url: str, data: bytes | None = None) -> int:
    with pytest.raises(HTTPError) as caught:
        urlopen(url, data)
    caught.value.close()
    return caught.value.code


class NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


def test_the_browser_serves_two_folders_and_nothing_else(address: str, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = publish(finished)
    store = Store.at("s3://gdpo-sr")
    store.write("dvc/secret", b"not shown")
    monkeypatch.setattr(browse, "LARGE", 20_000)
    store.write(f"runs/{run}/model/large.safetensors", bytes(20_001))
    with browse.server(store, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        with urlopen(base + "/") as answer:
            assert answer.url == f"{base}/runs/index.html"
            assert run in answer.read().decode()
        for short in ("runs", "models"):
            with urlopen(f"{base}/{short}") as answer:
                assert answer.url == f"{base}/{short}/index.html"
        with urlopen(f"{base}/runs/{run}/") as answer:
            assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
            assert answer.read() == b"<title>the report</title>"
        for path in ("/dvc/secret", "/runs/../dvc/secret", "/runs/%2e%2e/dvc/secret", "/runs/none/index.html"):
            assert status(base + path) == 404
        with pytest.raises(HTTPError, match="302") as caught:
            build_opener(NoRedirect).open(f"{base}/runs/{run}/model/large.safetensors")
        caught.value.close()
        link = caught.value.headers["Location"]
        assert re.match(rf"{address}/gdpo-sr/runs/{run}/model/large.safetensors\?.*X-Amz-Signature=", link)
        assert status(f"{base}/runs/{run}/index.html", data=b"written") == 501
        server.shutdown()
