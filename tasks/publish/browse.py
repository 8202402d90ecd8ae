"""Browse the bucket: `gdpo-sr browse`, a read-only web server on this machine.

    /                       redirects to /runs/index.html
    /runs/..., /models/...  the object, with its content type; objects over 8 MB redirect to a link
                            that is signed for ten minutes

It answers only GET and HEAD, and only for these two folders. The credentials stay in this process.
"""

import argparse
import webbrowser
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tasks.arguments import DEFAULT_STORE, add_store, port
from tasks.paths import MODELS_PAGE, RUNS_PAGE
from tasks.store.s3 import Store, content_type

EXAMPLE = f"gdpo-sr browse --store {DEFAULT_STORE}"
LARGE = 8_000_000
LINK_S = 600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The bucket, the port, and whether to open a browser."""
    add_store(parser)
    parser.add_argument("--port", type=port, default=8484, help="default: 8484; 0 takes a free one")
    parser.add_argument("--open", action="store_true", help="open the page in the default browser")


def main(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    store = Store.at(args.store)
    store.size(RUNS_PAGE)  # report a missing bucket or list here instead of in the browser
    with server(store, args.port) as site:
        address = f"http://127.0.0.1:{site.server_port}/"
        print(f"{store.url()} at {address} (Ctrl-C ends)", flush=True)
        if args.open:
            webbrowser.open(address)
        try:
            site.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def server(store: Store, port: int) -> ThreadingHTTPServer:
    """The server, bound to this machine's loopback address; not started."""
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, store))


class Handler(BaseHTTPRequestHandler):
    """Handles one request."""

    def __init__(self, store: Store, *args: Any) -> None:
        self.store = store
        super().__init__(*args)

    def do_GET(self) -> None:
        """Send the object at the path, or redirect to a signed link."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Like GET, without the body."""
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        key = path.removeprefix("/")
        if key.rstrip("/") in ("", "runs", "models"):
            return self._redirect(f"/{MODELS_PAGE if key.startswith('models') else RUNS_PAGE}")
        # Keys are text to S3, but some servers walk them like paths.
        if not key.startswith(("runs/", "models/")) or {".", ".."} & set(key.split("/")):
            return self.send_error(HTTPStatus.NOT_FOUND, "only runs/ and models/ are shown")
        if key.endswith("/"):
            key += "index.html"
        try:
            size = self.store.size(key)
            if size > LARGE:
                return self._redirect(self.store.link(key, LINK_S))
            content = self.store.read(key)
        except ValueError:
            return self.send_error(HTTPStatus.NOT_FOUND, "there is no such object")
        except OSError:
            return self.send_error(HTTPStatus.BAD_GATEWAY, "the store does not answer")
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type(key))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _redirect(self, address: str) -> None:
        self.send_response(HTTPStatus.FOUND)
        self.send_header("Location", address)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the log would contain signed links."""
