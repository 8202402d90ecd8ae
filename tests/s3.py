"""An S3 server on this machine (moto, over HTTP), and a proxy before it that misbehaves on
demand.
"""

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from hashlib import md5
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tasks.store import s3 as store
from tasks.store.conditional import supports_cas

SECRET = "a-secret-that-must-not-be-shown"
EMPTY: Mapping[str, str] = {}
KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": SECRET, "region_name": "us-east-1"}


def environment(url: str) -> dict[str, str]:
    """What a process needs to use the server."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def use(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let the store of this process use the server; its client repeats requests without a pause."""
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda seconds: None))
    for name, value in environment(url).items():
        monkeypatch.setenv(name, value)
    store._client.cache_clear()
    supports_cas.cache_clear()


@contextmanager
def server() -> Iterator[str]:
    """An empty server; its address. It is never stopped: that takes half a second, and the buckets
    are those of the process in any case.
    """
    urlopen(Request(f"{_moto()}/moto-api/reset", method="POST")).close()
    yield _moto()


@cache
def _moto() -> str:
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    return f"http://{host}:{port}"


@cache
def client(url: str) -> Any:
    """A plain boto3 client of the server: the independent look at what lies there."""
    return boto3.client("s3", endpoint_url=url, **KEYS)


# What a fault does with a request: None lets it pass; a number is answered as that status; "cut"
# sends half of the answer and closes, of a PUT's nothing: it is stored and nobody hears of it;
# "ignore NAME" strips the headers that begin with NAME, and "refuse NAME" answers NotImplemented to
# a request that has one: two ways of not knowing conditional writes ("ignore if-"). "lie" answers a
# PUT as if it had been stored.
Fault = Callable[[str, str], int | str | None]


@contextmanager
def proxy(target: str, fault: Fault) -> Iterator[str]:
    """A proxy before `target` on a port of its own; `fault(method, path)` says what goes wrong."""
    place = urlsplit(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            wrong = fault(self.command, self.path)
            if isinstance(wrong, int):
                return self._refuse(wrong)
            headers = dict(self.headers)
            if wrong == "lie" and self.command == "PUT":
                return self._refuse(200, headers={"ETag": f'"{md5(body).hexdigest()}"'})
            what, _, beginning = str(wrong).partition(" ")
            named = [name for name in headers if beginning and name.lower().startswith(beginning)]
            if what == "refuse" and named:
                return self._refuse(501, b"<Error><Code>NotImplemented</Code></Error>")
            if what == "ignore":
                headers = {name: value for name, value in headers.items() if name not in named}
            assert place.hostname
            connection = HTTPConnection(place.hostname, place.port)
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            if wrong == "cut" and self.command == "PUT":
                return self._close()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = (
                answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            )
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            if wrong == "cut":
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                self._close()
            elif self.command != "HEAD":
                self.wfile.write(content)

        def _refuse(
            self, status: int, content: bytes = b"", headers: Mapping[str, str] = EMPTY
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _close(self) -> None:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, serving(server):
        yield f"http://127.0.0.1:{server.server_port}"


@contextmanager
def serving(server: BaseServer) -> Iterator[None]:
    """Let a server answer from a thread of its own; it ends at once, and not in half a second."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
