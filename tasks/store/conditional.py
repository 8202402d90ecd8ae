"""Compare-and-swap for objects that several processes write at once.

    swap            strict, for the pointer: fails on a server without conditional writes
    swap_or_look    for names: on such a server, compares the tag and then writes
    refresh         for lists: writes a page that is generated from the bucket's contents

A server has no conditional writes if it ignores the conditions or answers NotImplemented. A tag is
an object's ETag, from `Store.fetch` or `Store.tag`; None means that the object does not exist yet.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from uuid import uuid4

from tasks.store.errors import Conflict, NotSupported
from tasks.store.s3 import Store

TRIES = 8  # attempts to write a page while other processes write it too


def swap(store: Store, key: str, data: bytes, tag: str | None) -> None:
    """Write if the object still has `tag`.

    `Conflict` if another process wrote it first, unless it wrote the same bytes. ValueError on a
    server without conditional writes.
    """
    if not supports_cas(store):
        raise ValueError(
            f"{store.url()}: this server ignores conditional writes, so two promotions could "
            "overwrite each other; promote on "
            "a store that honours If-None-Match and If-Match (AWS S3 does)"
        )
    store.put_if(key, data, _condition(tag))


def swap_or_look(store: Store, key: str, data: bytes, tag: str | None) -> None:
    """Like `swap`; on a server without conditional writes, compare the tag and then write.

    There, another process can write between the two requests.
    """
    if supports_cas(store):
        store.put_if(key, data, _condition(tag))
    # Our own bytes count as success: a repeated request after a lost answer finds them there.
    elif store.tag(key) == tag or store.tag_if_holds(key, data):
        store.write(key, data)
    else:
        raise Conflict(f"{store.url(key)}: another process wrote it first")


def refresh(store: Store, key: str, make: Callable[[], bytes]) -> None:
    """Write the page that `make` generates from the bucket, unless the object already holds it.

    It does not replace a page that was written after it read the tag: it starts again, and raises
    `Conflict` after TRIES attempts. On a server without conditional writes it may replace such a
    page, so there it starts again after every write to check. A process that adds an object and
    then refreshes the page therefore finds its object listed, however many do so at once.
    """
    for _ in range(TRIES):
        tag = store.tag(key)  # read before `make` reads the bucket
        page = make()
        if store.tag_if_holds(key, page):
            return
        with suppress(Conflict):
            swap_or_look(store, key, page, tag)
            # Without conditional writes the next turn reads the bucket again: a page that was
            # written between our two requests has been replaced, and its objects are listed then.
            if supports_cas(store):
                return
    raise Conflict(
        f"{store.url(key)}: others wrote it {TRIES} times while it was generated; run the command "
        "again"
    )


@cache
def supports_cas(store: Store) -> bool:
    """Whether the server refuses writes whose If-None-Match or If-Match fails, and no others.

    Tested once per store. OSError if it refuses a write without a condition as well: then another
    header is the reason.
    """
    probe = f".conditional-write-probe-{uuid4().hex}"

    def refused(data: bytes, tag: str | None) -> bool:
        try:
            store.put_if(probe, data, _condition(tag))
        except Conflict:
            return True
        return False

    try:
        # Every write has different bytes, because `put_if` does not report a conflict if the object
        # already holds the same bytes.
        tag = store.put_if(probe, b"created", _condition(None))
        # Both directions are tested: a server that ignores conditions accepts all three writes, and
        # one that refuses every condition would make each promotion fail.
        return (
            refused(b"created again", None)
            and not refused(b"swapped", tag)
            and refused(b"swapped again", tag)
        )
    except NotSupported:
        store.write(probe, b"without a condition")
        return False
    finally:
        store.delete(probe)


def _condition(tag: str | None) -> dict[str, str]:
    return {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
