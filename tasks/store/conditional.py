"""Objects that several write at once: replaced only by who has seen what it replaces.

    swap            strict: for the pointer; refused on a server without conditional writes
    swap_or_look    there, a look and a write instead: for names
    refresh         a page that is made from what lies in the bucket: for lists

A server is without conditional writes if it ignores the conditions, and if it answers them with
NotImplemented. Tags are those of `Store.fetch` and `Store.tag`; None stands for "there is none
yet".
"""

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from uuid import uuid4

from tasks.store.s3 import Conflict, NotSupported, Store

TRIES = 8  # of a list, before it is left to the others who write it


def swap(store: Store, key: str, data: bytes, tag: str | None) -> None:
    """Write if the object still has `tag`.

    `Conflict` if somebody was first, unless with the same bytes. ValueError on a server without
    conditional writes.
    """
    if not supports_cas(store):
        raise ValueError(
            f"{store.url()}: this server ignores conditional writes, so two promotions could "
            "overwrite each other; promote on "
            "a store that honours If-None-Match and If-Match (AWS S3 does)"
        )
    store.put_if(key, data, _condition(tag))


def swap_or_look(store: Store, key: str, data: bytes, tag: str | None) -> None:
    """`swap`; on a server without conditional writes, a look and then a write: somebody may come
    between the two.
    """
    if supports_cas(store):
        store.put_if(key, data, _condition(tag))
    elif store.tag(key) == tag or store.tag_if_holds(key, data):
        store.write(key, data)
    else:
        raise Conflict(f"{store.url(key)}: somebody else wrote it first")


def refresh(store: Store, key: str, make: Callable[[], bytes]) -> None:
    """Write the page that `make` makes from what lies in the bucket; nothing if that page is there.

    It never replaces a page that was written after it began to look: then it looks again, and
    `Conflict` if that happens TRIES times. On a server without conditional writes it may replace
    one, and looks again after every write instead. So who puts something into the bucket and then
    refreshes the page finds it there, however many do so at once.
    """
    for _ in range(TRIES):
        tag = store.tag(key)  # before what the page is made from
        page = make()
        if store.tag_if_holds(key, page):
            return
        with suppress(Conflict):
            swap_or_look(store, key, page, tag)
            if supports_cas(store):
                return
    raise Conflict(
        f"{store.url(key)}: others wrote it {TRIES} times while it was made; run the same again"
    )


@cache
def supports_cas(store: Store) -> bool:
    """Whether the server refuses writes whose If-None-Match or If-Match fails, and no others: tried
    once per store.
    """
    probe = f".conditional-write-probe-{uuid4().hex}"

    def refused(data: bytes, tag: str | None) -> bool:
        try:
            store.put_if(probe, data, _condition(tag))
        except Conflict:
            return True
        return False

    try:
        # Every write has other bytes: the same again would be no conflict.
        tag = store.put_if(probe, b"created", _condition(None))
        return (
            refused(b"created again", None)
            and not refused(b"swapped", tag)
            and refused(b"swapped again", tag)
        )
    except NotSupported:
        return False
    finally:
        store.delete(probe)


def _condition(tag: str | None) -> dict[str, str]:
    return {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
