"""Promotion against an S3 server: the pointer, the cards and lists of models, and runs that are
gone or of other versions.
"""

import json
import re
import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks import __main__ as cli
from tasks.publish import promotion, records
from tasks.store.errors import Conflict
from tasks.store.s3 import Store
from tests import s3
from tests.tasks.published import NOW, page, publish, writes


def test_the_models_page_is_there_before_the_first_promotion(address: str, finished: Path) -> None:
    run = publish(finished)
    store = Store.at("s3://gdpo-sr")
    assert "No run has been promoted yet" in page(store, "models/index.html")
    promotion.promote("s3://gdpo-sr", run, NOW)
    publish(finished, hours=1)
    assert run in page(store, "models/index.html")


def test_a_worker_that_may_not_write_models_publishes(
    address: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3.proxy(
        address, lambda method, path: 403 if method == "PUT" and "/models/" in path else None
    ) as url:
        s3.use(monkeypatch, url)
        run = publish(finished)
    store = Store.at("s3://gdpo-sr")
    assert run in page(store, "runs/index.html")
    assert store.tag("models/index.html") is None


def test_promotion_moves_the_pointer_and_lists_the_models(
    address: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = [publish(finished), publish(finished, hours=1)]
    monkeypatch.chdir(tmp_path)
    for run in runs:
        assert cli.main(["promote", run]) == 0
    store = Store.at("s3://gdpo-sr")
    entries, _ = records.promoted(store)
    assert [entry["run"] for entry in entries] == runs[::-1]
    assert json.loads(store.read("models/latest.json"))["run"] == runs[1]
    models, card = page(store, "models/index.html"), page(store, f"models/{runs[1]}.html")
    assert models.count('class="latest"') == 1
    assert models.index(runs[1]) < models.index("latest</span>") < models.index(runs[0])
    assert f'href="../runs/{runs[1]}/model/adapters.safetensors"' in card
    assert "GDPO-SR is better than NAOSD" in card
    assert (tmp_path / "promoted/sample/per_image.parquet").read_bytes() == b"scores"
    assert "commit promoted/sample/per_image.parquet" in capsys.readouterr().out


@pytest.mark.parametrize(
    "missing", ["/models/20261121T020000Z-01234567.html", "/models/index.html"]
)
def test_promoting_again_completes_what_is_missing_and_writes_nothing_else(
    address: str, finished: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    run = publish(finished)
    requests: list[tuple[str, str]] = []

    def fail(method: str, path: str) -> int | None:
        return 403 if method == "PUT" and path.endswith(missing) else None

    def note(method: str, path: str) -> None:
        requests.append((method, path))

    with s3.proxy(address, fail) as url:
        s3.use(monkeypatch, url)
        with pytest.raises(PermissionError, match=re.escape(missing)):
            promotion.promote("s3://gdpo-sr", run, NOW)
    store = Store.at("s3://gdpo-sr")
    with s3.proxy(address, note) as url:
        s3.use(monkeypatch, url)
        for hours in (1, 2):
            assert (
                promotion.promote("s3://gdpo-sr", run, NOW + timedelta(hours=hours))["run"] == run
            )
        assert len([path for path in writes(requests) if path.endswith(missing)]) == 1
        assert run in page(store, "models/index.html")
        assert "GDPO-SR is better than NAOSD" in page(store, f"models/{run}.html")
        entries, _ = records.promoted(store)
        assert [entry["promoted"] for entry in entries] == [NOW.isoformat(timespec="seconds")]
        requests.clear()
        promotion.promote("s3://gdpo-sr", run, NOW + timedelta(hours=3))
    assert writes(requests) == []
    assert not [path for _, path in requests if "safetensors" in path]


def test_a_card_goes_with_the_run_that_is_promoted_meanwhile(
    address: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run is promoted and listed when the pages that call ours the latest are on their
    way.
    """
    runs = [publish(finished, hours) for hours in range(2)]
    came: list[str] = []

    def fault(method: str, path: str) -> None:
        if method == "PUT" and path.endswith(f"/models/{runs[0]}.html") and not came:
            came.append(path)
            promotion.promote("s3://gdpo-sr", runs[1], NOW)

    with s3.proxy(address, fault) as url:
        s3.use(monkeypatch, url)
        promotion.promote("s3://gdpo-sr", runs[0], NOW)
    store = Store.at("s3://gdpo-sr")
    assert came
    assert 'class="latest"' not in page(store, f"models/{runs[0]}.html")
    assert 'class="latest"' in page(store, f"models/{runs[1]}.html")
    assert page(store, "models/index.html").index(runs[1]) < page(store, "models/index.html").index(
        runs[0]
    )


@pytest.mark.parametrize(
    "name", ["model/adapters.safetensors", "evaluate/sample/per_image.parquet"]
)
def test_a_file_that_is_not_the_published_one_is_not_promoted(
    address: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Written over with a SHA-256 of its own, or with none: the manifest's counts."""
    run = publish(finished)
    store = Store.at("s3://gdpo-sr")
    store.write(f"runs/{run}/{name}", b"another run's")
    assert cli.main(["promote", run]) == 1
    stderr = capsys.readouterr().err
    assert f"s3://gdpo-sr/runs/{run}/{name}: not the file that was published" in stderr
    assert stderr.count("\n") == 1
    assert records.promoted(store) == ([], None)
    s3.client(address).put_object(
        Bucket="gdpo-sr", Key=f"runs/{run}/evaluate/sample/per_image.parquet", Body=b"other"
    )
    with pytest.raises(ValueError, match=r"per_image\.parquet: not the file that was published"):
        promotion.download_scores(store, records.manifest_of(store, run), tmp_path / "scores")
    assert not list(tmp_path.glob("scores/sample/*"))


def test_a_run_that_is_not_whole_is_not_promoted(
    address: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["promote", "20991231T000000Z-nothing"]) == 1
    assert "no complete run named '20991231T000000Z-nothing'" in capsys.readouterr().err
    run = publish(finished)
    client = s3.client(address)
    client.put_object(
        Bucket="gdpo-sr",
        Key=f"runs/{run}/model/adapters.safetensors",
        Body=b"other",
        Metadata={"sha256": "0" * 64},
    )
    assert cli.main(["promote", run]) == 1
    assert "adapters.safetensors: damaged" in capsys.readouterr().err
    assert records.promoted(Store.at("s3://gdpo-sr")) == ([], None)


def delete(store: Store, under: str) -> None:
    for key in list(store.keys(under)):
        store.delete(key)


def test_a_promoted_run_that_is_gone_is_said_to_be_and_stops_nothing(
    address: str, finished: Path
) -> None:
    gone, run = publish(finished, commit="abcdef0123456789"), publish(finished, hours=1)
    promotion.promote("s3://gdpo-sr", gone, NOW)
    store = Store.at("s3://gdpo-sr")
    delete(store, f"runs/{gone}/")
    delete(store, f"models/{gone}.html")
    promotion.promote("s3://gdpo-sr", run, NOW)
    text = page(store, "models/index.html")
    first, second = re.findall(r"<li>.*?</li>", text, flags=re.DOTALL)
    assert f'href="{run}.html"' in first and 'class="latest"' in first
    assert (
        gone in second and "abcdef012345" in second and NOW.isoformat(timespec="seconds") in second
    )
    assert "gone" in second and "href" not in second and "src" not in second
    assert store.tag(f"models/{gone}.html") is None
    delete(store, "models/index.html")
    delete(store, f"runs/{run}/")  # now nothing that was promoted is there
    publish(finished, hours=2)
    assert page(store, "models/index.html").count("gone") == 2
    with pytest.raises(ValueError, match="no complete run named"):
        promotion.promote("s3://gdpo-sr", gone, NOW)


@pytest.mark.parametrize(
    "without",
    [
        ("kind",),
        ("date",),
        ("commit",),
        ("profile",),
        ("verdict",),
        ("table",),
        ("kind", "date", "commit", "profile", "verdict", "table"),
    ],
    ids="-".join,
)
def test_a_run_of_another_version_is_listed_with_what_it_has(
    address: str, finished: Path, without: Sequence[str]
) -> None:
    old, store = publish(finished, commit="abcdef0123456789"), Store.at("s3://gdpo-sr")
    manifest = records.manifest_of(store, old)
    shown = {
        "commit": "abcdef012345",
        "profile": "profile sample",
        "verdict": "GDPO-SR is better than NAOSD",
        "kind": "train ·",
    }
    left = {name: value for name, value in manifest.items() if name not in without}
    store.write(f"runs/{old}/manifest.json", json.dumps({**left, "newer": "field"}).encode())
    run = publish(finished, hours=1, commit="0" * 40)
    entry = re.findall(r"<li>.*?</li>", page(store, "runs/index.html"), flags=re.DOTALL)[1]
    assert f'href="{old}/index.html"' in entry and "5 files" in entry
    assert {name: text in entry for name, text in shown.items()} == {
        name: name not in without for name in shown
    }
    for promoted in (old, run):
        promotion.promote("s3://gdpo-sr", promoted, NOW)
    assert f'href="{old}.html"' in page(store, "models/index.html")
    assert "adapters.safetensors" in page(store, f"models/{old}.html")
    for name in ("runs/index.html", "models/index.html", f"models/{old}.html"):
        assert "None" not in page(store, name) and "<code></code>" not in page(store, name)


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"[1]",
        b'"x"',
        b"7",
        b"null",
        b"{}",
        b"{",
        b"\xff",
        b'{"run": "RUN"}',
        b'{"files": {}}',
        b'{"run": "RUN", "files": []}',
        b'{"run": "RUN", "files": {"x": {}}}',
        b'{"run": "RUN", "files": {"x": 1}}',
        b'{"run": "another", "files": {}}',
        b'{"run": 1, "files": {}}',
        b'{"run": "RUN", "files": {"x": {"sha256": "0", "bytes": -1}}}',
        b'{"run": "RUN", "files": {"x": {"sha256": "0", "bytes": NaN}}}',
        b"[" * 100_000,
    ],
)
def test_a_run_whose_manifest_lacks_what_every_reader_needs_is_in_no_list(
    address: str, finished: Path, content: bytes
) -> None:
    store, broken = Store.at("s3://gdpo-sr"), "20991231T000000Z-broken"
    store.write(f"runs/{broken}/manifest.json", content.replace(b"RUN", broken.encode()))
    run = publish(finished)
    assert [manifest["run"] for manifest in records.manifests(store)] == [run]
    assert broken not in page(store, "runs/index.html")
    with pytest.raises(ValueError, match="no complete run named"):
        promotion.promote("s3://gdpo-sr", broken, NOW)


def test_of_two_who_promote_at_once_one_is_told(address: str, finished: Path) -> None:
    runs = [publish(finished, hours=hours) for hours in range(4)]
    results: dict[str, Any] = {}
    start = threading.Barrier(len(runs))

    def attempt(run: str) -> None:
        start.wait()
        try:
            results[run] = promotion.promote("s3://gdpo-sr", run, NOW)["run"]
        except Conflict as conflict:
            results[run] = conflict

    threads = [threading.Thread(target=attempt, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [run for run in runs if results[run] == run]
    entries, _ = records.promoted(Store.at("s3://gdpo-sr"))
    # Every run whose promotion succeeded is listed.
    assert sorted(entry["run"] for entry in entries) == sorted(won)
    assert won and all(
        "another run was promoted at the same time" in str(results[run])
        for run in runs
        if run not in won
    )


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"promoted": 5}', b'{"promoted": [1]}', b"[" * 100_000]
)
def test_a_pointer_that_is_no_list_of_runs_is_named(address: str, content: bytes) -> None:
    store = Store.at("s3://gdpo-sr")
    store.write("models/latest.json", content)
    with pytest.raises(ValueError, match=r"latest\.json: not a list of promoted runs") as caught:
        records.promoted(store)
    assert "\n" not in str(caught.value)
