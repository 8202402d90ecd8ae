"""A server with an empty bucket, for the tests of the store."""

from collections.abc import Iterator

import pytest

from tasks.store import s3 as module
from tests import s3


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with an empty bucket `runs`, which the environment points to."""
    with s3.server() as url:
        s3.client(url).create_bucket(Bucket="bucket")
        s3.use(monkeypatch, url)
        yield url
    module._client.cache_clear()
