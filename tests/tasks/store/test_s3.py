"""The store, over HTTP against an S3 server: whole objects or none, checked reads, faults."""

import hashlib
import traceback
from pathlib import Path
from typing import Any

import boto3
import pytest

from tasks.store import s3 as module
from tasks.store.s3 import Store, content_type
from tests import s3


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


def test_not_allowed_is_told_from_away(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3.proxy(address, lambda method, path: 403) as url:
        s3.use(monkeypatch, url)
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
        s3.use(monkeypatch, url)
        store = Store.at("s3://bucket")
        store.write("x", content)
        assert store.read("x") == content
    assert left == {"GET": 0, "PUT": 0}


def test_a_store_that_stays_away_is_one_line_without_the_secret(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    with s3.proxy(address, lambda method, path: 503) as url:
        s3.use(monkeypatch, url)
        with pytest.raises(OSError, match=r"^s3://bucket/x: the store refused \(503\)") as caught:
            Store.at("s3://bucket").read("x")
    assert s3.SECRET not in str(caught.value)
    s3.use(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"^s3://bucket/x: the store cannot be reached"):
        Store.at("s3://bucket").write("x", b"")


@pytest.mark.parametrize("beginning", ["http://me:", "http://me:@", "http://me:/", "me:"])
def test_a_password_in_the_endpoint_is_not_shown(
    address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, beginning: str
) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    s3.use(monkeypatch, f"{beginning}{s3.SECRET}@127.0.0.1:9")
    (tmp_path / "file").write_bytes(b"")
    for ask in (
        lambda: Store.at("s3://bucket").read("x"),
        lambda: Store.at("s3://bucket").write("x", tmp_path / "file"),
        lambda: Store.at("s3://bucket").download("x", tmp_path / "back"),
    ):
        with pytest.raises((OSError, ValueError), match="AWS_ENDPOINT_URL") as caught:
            ask()
        assert "\n" not in str(caught.value)
        # What Prefect logs.
        assert s3.SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("there", [(), ("AWS_ACCESS_KEY_ID",)])
def test_credentials_that_are_not_there_are_asked_for(
    there: tuple[str, ...], address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"} - {*there}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    # The default session keeps the credentials of earlier tests.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
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
        s3.use(monkeypatch, url)
        with pytest.raises(OSError, match="s3://bucket/large: the upload was interrupted"):
            Store.at("s3://bucket").write("large", tmp_path / "large")
    s3.use(monkeypatch, address)
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
