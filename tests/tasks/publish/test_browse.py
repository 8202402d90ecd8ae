"""`gdpo-sr browse`: two folders of the bucket, read-only."""

import re
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, build_opener, urlopen

import pytest

from tasks.publish import browse
from tasks.store.s3 import Store
from tests import s3
from tests.tasks.published import publish


def status(url: str, data: bytes | None = None) -> int:
    with pytest.raises(HTTPError) as caught:
        urlopen(url, data)
    caught.value.close()
    return caught.value.code


class NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


def test_the_browser_serves_two_folders_and_nothing_else(
    address: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = publish(finished)
    store = Store.at("s3://gdpo-sr")
    store.write("dvc/secret", b"not shown")
    monkeypatch.setattr(browse, "LARGE", 20_000)
    store.write(f"runs/{run}/model/large.safetensors", bytes(20_001))
    with browse.server(store, 0) as server, s3.serving(server):
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
        for path in (
            "/dvc/secret",
            "/runs/../dvc/secret",
            "/runs/%2e%2e/dvc/secret",
            "/runs/none/index.html",
        ):
            assert status(base + path) == 404
        with pytest.raises(HTTPError, match="302") as caught:
            build_opener(NoRedirect).open(f"{base}/runs/{run}/model/large.safetensors")
        caught.value.close()
        link = caught.value.headers["Location"]
        assert re.match(
            rf"{address}/gdpo-sr/runs/{run}/model/large.safetensors\?.*X-Amz-Signature=", link
        )
        assert status(f"{base}/runs/{run}/index.html", data=b"written") == 501
