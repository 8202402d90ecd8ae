"""The store, over HTTP against an S3 server: whole objects or none, checked reads, and writes only
if nobody was first.
"""

import hashlib
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tasks.store import s3 as module
from tasks.store.conditional import supports_cas, swap, swap_or_look
from tasks.store.errors import Conflict
from tasks.store.s3 import Store, content_type
from tests import s3


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with an empty bucket `runs`, which the environment points to."""
    with s3.server() as url:
        s3.client(url).create_bucket(Bucket="bucket")
        use(monkeypatch, url)
        yield url
    module._client.cache_clear()


def use(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name, value in s3.environment(url).items():
        monkeypatch.setenv(name, value)
    module._client.cache_clear()
    supports_cas.cache_clear()


def raw(url: str, key: str) -> Any:
    return s3.client(url).get_object(Bucket="bucket", Key=key)


def test_an_object_carries_type_and_hash_and_comes_back(address: str, tmp_path: Path) -> None:
    store = Store.at("s3://bucket/some/prefix")
    store.write("a/page.html", b"<p>")
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    store.write("w.safetensors", tmp_path / "w.safetensors")
    found = raw(address, "some/prefix/a/page.html")
    assert found["ContentType"] == "text/html; charset=utf-8"
    assert found["Metadata"] == {"sha256": hashlib.sha256(b"<p>").hexdigest()}
    assert store.read("a/page.html") == b"<p>"
    store.download("w.safetensors", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"weights"
    assert store.size("w.safetensors") == 7


def test_a_large_file_goes_in_parts(address: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * 40_000  # 10 MB: more than one part of 8 MiB
    (tmp_path / "large").write_bytes(content)
    store = Store.at("s3://bucket")
    store.write("large", tmp_path / "large")
    found = raw(address, "large")
    assert found["ETag"].strip('"').endswith("-2")
    assert found["Metadata"]["sha256"] == hashlib.sha256(content).hexdigest()
    store.download("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


def test_a_damaged_object_is_refused_and_leaves_no_file(address: str, tmp_path: Path) -> None:
    store = Store.at("s3://bucket")
    s3.client(address).put_object(
        Bucket="bucket", Key="x", Body=b"other", Metadata={"sha256": "0" * 64}
    )
    with pytest.raises(ValueError, match=r"s3://bucket/x: damaged, its SHA-256 is"):
        store.read("x")
    with pytest.raises(ValueError, match=r"s3://bucket/x: damaged"):
        store.download("x", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_more_keys_than_one_page_has(address: str) -> None:
    client = s3.client(address)
    for i in range(1005):
        client.put_object(Bucket="bucket", Key=f"many/{i:04d}/x", Body=b"")
    store = Store.at("s3://bucket/many")
    assert list(store.keys()) == [f"{i:04d}/x" for i in range(1005)]
    assert list(Store.at("s3://bucket").folders("many/")) == [f"{i:04d}" for i in range(1005)]


def test_only_the_first_creates_and_only_the_last_reader_replaces(address: str) -> None:
    store = Store.at("s3://bucket")
    swap(store, "pointer", b"one", None)
    with pytest.raises(Conflict, match="s3://bucket/pointer: somebody else wrote it first"):
        swap(store, "pointer", b"two", None)
    _, tag = store.fetch("pointer")
    swap(store, "pointer", b"three", tag)
    with pytest.raises(Conflict):
        swap(store, "pointer", b"four", tag)
    assert store.read("pointer") == b"three"
    assert list(store.keys()) == ["pointer"]  # the probe is gone


def test_of_many_at_once_one_wins(address: str) -> None:
    store = Store.at("s3://bucket")
    swap(store, "pointer", b"start", None)
    _, tag = store.fetch("pointer")
    won: list[int] = []

    def attempt(number: int) -> None:
        try:
            swap(store, "pointer", b"%d" % number, tag)
            won.append(number)
        except Conflict:
            pass

    threads = [threading.Thread(target=attempt, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("pointer") == b"%d" % won[0]


@pytest.mark.parametrize("header", ["if-", "if-match", "if-none-match"])
@pytest.mark.parametrize("way", ["ignore", "refuse"])
def test_a_server_without_conditions_moves_no_pointer(
    address: str, monkeypatch: pytest.MonkeyPatch, way: str, header: str
) -> None:
    with s3.proxy(address, lambda method, path: f"{way} {header}") as url:
        use(monkeypatch, url)
        store = Store.at("s3://bucket")
        for _ in range(2):
            with pytest.raises(
                ValueError,
                match="ignores conditional writes, so two promotions could overwrite each other",
            ):
                swap(store, "pointer", b"one", None)
        assert list(store.keys()) == []
        swap_or_look(store, "name", b"one", None)
        with pytest.raises(Conflict):
            swap_or_look(store, "name", b"two", None)
        assert store.read("name") == b"one"


def test_a_server_that_refuses_every_write_is_not_one_without_conditions(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3.proxy(
        address, lambda method, path: "refuse content-" if method == "PUT" else None
    ) as url:
        use(monkeypatch, url)
        with pytest.raises(
            OSError, match=r"^s3://bucket/\S+: the store refused \(NotImplemented\)"
        ):
            swap_or_look(Store.at("s3://bucket"), "name", b"one", None)


@pytest.mark.parametrize("act", ["write", "swap", "swap_or_look"])
def test_a_store_without_checksums_is_told_from_one_without_conditions(
    address: str, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """The message names the variable, and with it everything works."""

    def run(store: Store) -> None:
        if act == "write":
            store.write("name", b"one")
        else:
            {"swap": swap, "swap_or_look": swap_or_look}[act](store, "name", b"one", None)

    with s3.proxy(address, lambda method, path: "refuse x-amz-checksum-") as url:
        use(monkeypatch, url)
        with pytest.raises(OSError, match="AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
            run(Store.at("s3://bucket"))
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        use(monkeypatch, url)
        if act == "write":
            run(Store.at("s3://bucket"))
        with pytest.raises(OSError, match="AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"):
            Store.at("s3://bucket").read("name" if act == "write" else "none")
        monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
        use(monkeypatch, url)
        run(Store.at("s3://bucket"))
        assert Store.at("s3://bucket").read("name") == b"one"


def test_the_server_is_tried_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def note(method: str, path: str) -> None:
        if method == "PUT":
            written.append(path)

    with s3.proxy(address, note) as url:
        use(monkeypatch, url)
        store = Store.at("s3://bucket")
        for number in range(3):
            swap(store, "pointer", b"%d" % number, store.tag("pointer"))
    assert sum("probe" in path for path in written) == 4
    assert len(written) == 4 + 3


@pytest.mark.parametrize("lost", range(5))
def test_a_write_whose_answer_was_lost_is_ours(
    address: str, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    """Of the probe's four writes and ours, each in turn is done and not answered; the client writes
    it again.
    """
    seen: list[str] = []

    def fault(method: str, path: str) -> str | None:
        if method == "PUT":
            seen.append(path)
            return "cut" if len(seen) == lost + 1 else None
        return None

    with s3.proxy(address, fault) as url:
        use(monkeypatch, url)
        store = Store.at("s3://bucket")
        swap(store, "pointer", b"ours", None)
        assert len(seen) == 6  # one was repeated
        with pytest.raises(Conflict):
            swap(store, "pointer", b"theirs", None)
        assert store.read("pointer") == b"ours"


def test_the_same_bytes_without_our_hash_are_somebody_elses(address: str) -> None:
    s3.client(address).put_object(Bucket="bucket", Key="pointer", Body=b"same")
    with pytest.raises(Conflict):
        swap(Store.at("s3://bucket"), "pointer", b"same", None)


def test_a_tag_is_of_one_content(address: str) -> None:
    store = Store.at("s3://bucket")
    assert store.tag("x") is None and store.tag_if_holds("x", b"one") is None
    store.write("x", b"one")
    assert store.tag("x") == store.tag_if_holds("x", b"one") == store.fetch("x")[1]
    assert store.tag_if_holds("x", b"two") is None
    s3.client(address).put_object(
        Bucket="bucket",
        Key="x",
        Body=b"damaged",
        Metadata={"sha256": hashlib.sha256(b"two").hexdigest()},
    )
    assert store.tag_if_holds("x", b"two") is None


def test_not_allowed_is_told_from_away(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3.proxy(address, lambda method, path: 403) as url:
        use(monkeypatch, url)
        with pytest.raises(PermissionError, match=r"^s3://bucket/x: the store refused \(403\)"):
            Store.at("s3://bucket").write("x", b"")


@pytest.mark.parametrize("wrong", [503, 500, "cut"])
def test_faults_that_pass_are_not_noticed(
    address: str, monkeypatch: pytest.MonkeyPatch, wrong: int | str
) -> None:
    content = b"content " * 1000
    left = {"GET": 2, "PUT": 1}

    def fault(method: str, path: str) -> int | str | None:
        if not left.get(method):
            return None
        left[method] -= 1
        return wrong

    with s3.proxy(address, fault) as url:
        use(monkeypatch, url)
        store = Store.at("s3://bucket")
        store.write("x", content)
        assert store.read("x") == content
    assert left == {"GET": 0, "PUT": 0}


def test_a_store_that_stays_away_is_one_line_without_the_secret(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    with s3.proxy(address, lambda method, path: 503) as url:
        use(monkeypatch, url)
        with pytest.raises(OSError, match=r"^s3://bucket/x: the store refused \(503\)") as caught:
            Store.at("s3://bucket").read("x")
    assert s3.SECRET not in str(caught.value)
    use(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"^s3://bucket/x: the store cannot be reached"):
        Store.at("s3://bucket").write("x", b"")


@pytest.mark.parametrize("beginning", ["http://me:", "http://me:@", "http://me:/", "me:"])
def test_a_password_in_the_endpoint_is_not_shown(
    address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, beginning: str
) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    use(monkeypatch, f"{beginning}{s3.SECRET}@127.0.0.1:9")
    (tmp_path / "file").write_bytes(b"")
    for ask in (
        lambda: Store.at("s3://bucket").read("x"),
        lambda: Store.at("s3://bucket").write("x", tmp_path / "file"),
        lambda: Store.at("s3://bucket").download("x", tmp_path / "back"),
    ):
        with pytest.raises((OSError, ValueError), match="AWS_ENDPOINT_URL") as caught:
            ask()
        assert "\n" not in str(caught.value)
        assert s3.SECRET not in "".join(
            traceback.format_exception(caught.value)
        )  # what Prefect logs


@pytest.mark.parametrize("there", [(), ("AWS_ACCESS_KEY_ID",)])
def test_credentials_that_are_not_there_are_asked_for(
    there: tuple[str, ...], address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"} - {*there}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setattr(
        boto3, "DEFAULT_SESSION", None
    )  # it remembers the credentials of the tests before
    module._client.cache_clear()
    with pytest.raises(
        PermissionError, match=r"^s3://bucket[/x]*: set AWS_ACCESS_KEY_ID and AWS_SECRET"
    ):
        Store.at("s3://bucket").read("x")


def test_a_broken_upload_is_not_visible(
    address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "large").write_bytes(bytes(20_000_000))

    def second_part(method: str, path: str) -> int | None:
        return 403 if "partNumber=2" in path else None

    with s3.proxy(address, second_part) as url:
        use(monkeypatch, url)
        with pytest.raises(OSError, match="s3://bucket/large: the upload was interrupted"):
            Store.at("s3://bucket").write("large", tmp_path / "large")
    use(monkeypatch, address)
    assert list(Store.at("s3://bucket").keys()) == []


def test_missing_things_and_wrong_addresses(address: str) -> None:
    with pytest.raises(ValueError, match=r"s3://nowhere/x: there is no such object or bucket"):
        Store.at("s3://nowhere").read("x")
    with pytest.raises(ValueError, match="must look like s3://bucket/prefix"):
        Store.at("https://bucket/x")


def test_content_types() -> None:
    assert content_type("a.css") == "text/css; charset=utf-8"
    assert content_type("a.webp") == "image/webp"
    assert content_type("a.svg") == "image/svg+xml"
    assert content_type("a.json") == "application/json"
    assert content_type("a.unknown") == "application/octet-stream"


def test_keys_are_text(address: str) -> None:
    """A key with empty or dotted names comes back as it is; so does a prefix."""
    store = Store.at("s3://bucket/a/")
    for key in ("b//c.png", "/d.png", "folder.png/", " e .png"):
        store.write(key, key.encode())
    assert sorted(store.keys()) == sorted(["b//c.png", "/d.png", "folder.png/", " e .png"])
    assert (
        store.read("b//c.png") == b"b//c.png" and store.url("b//c.png") == "s3://bucket/a/b//c.png"
    )
    assert Store.at("s3://bucket/a//").read("d.png") == b"/d.png"
