"""Writes only if nobody was first: conditions of the server, and servers without them."""

import hashlib
import threading

import pytest

from tasks.store.conditional import swap, swap_or_look
from tasks.store.errors import Conflict
from tasks.store.s3 import Store
from tests import s3


def test_only_the_first_creates_and_only_the_last_reader_replaces(address: str) -> None:
    store = Store.at("s3://bucket")
    swap(store, "pointer", b"one", None)
    with pytest.raises(Conflict, match="s3://bucket/pointer: another process wrote it first"):
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
        s3.use(monkeypatch, url)
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
        s3.use(monkeypatch, url)
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
        s3.use(monkeypatch, url)
        with pytest.raises(OSError, match="AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
            run(Store.at("s3://bucket"))
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        s3.use(monkeypatch, url)
        if act == "write":
            run(Store.at("s3://bucket"))
        with pytest.raises(OSError, match="AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"):
            Store.at("s3://bucket").read("name" if act == "write" else "none")
        monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
        s3.use(monkeypatch, url)
        run(Store.at("s3://bucket"))
        assert Store.at("s3://bucket").read("name") == b"one"


def test_the_server_is_tried_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def note(method: str, path: str) -> None:
        if method == "PUT":
            written.append(path)

    with s3.proxy(address, note) as url:
        s3.use(monkeypatch, url)
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
        s3.use(monkeypatch, url)
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
