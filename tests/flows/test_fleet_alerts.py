"""The automations of a real server, without workers: a run that never begins, and alerts."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest

from tests.flows.fleet import Fleet
from tests.flows.processes import wait_for

pytestmark = [pytest.mark.orchestration, pytest.mark.timeout(1200)]


@contextmanager
def sink() -> Iterator[tuple[str, list[str]]]:
    """A web hook on this machine: its address, and the texts that it got."""
    texts: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            texts.append(json.loads(body)["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", texts
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def mailbox() -> Iterator[tuple[str, list[str]]]:
    """An SMTP server on this machine: its address in Apprise's form, and the mails received."""
    mails: list[str] = []

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            while line := self.rfile.readline():
                word = line[:4].upper().strip()
                if word == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    mails.append(self._mail())
                self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 good\r\n")

        def _mail(self) -> str:
            lines = iter(self.rfile.readline, b".\r\n")
            message = message_from_bytes(b"".join(lines), policy=policy.default)
            body = message.get_body(("html", "plain"))
            return f"{message['To']}: {message['Subject']}\n{body.get_content() if body else ''}"

    server = ThreadingTCPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        place = f"127.0.0.1:{server.server_address[1]}"
        yield f"mailto://{place}?from=fleet@example.org&to=me@example.org", mails
    finally:
        server.shutdown()
        server.server_close()


def any_has(texts: list[str], word: str) -> bool:
    return any(word in text for text in texts)


def notify(fleet: Fleet, url: str) -> None:
    command = [sys.executable, "-m", "flows.setup", "--notify", url]
    subprocess.run(command, cwd=fleet.source, env=fleet.environment(fleet.source), check=True)


def fail(fleet: Fleet, stage: str) -> str:
    """A failed run; its name."""
    run = fleet.start("gdpo-stage/a100", stage=stage)
    state = {"type": "FAILED", "message": "by the test"}
    fleet.post(f"flow_runs/{run}/set_state", state=state, force=True)
    return str(fleet.get(f"flow_runs/{run}")["name"])


def test_failed_crashed_and_late_runs_are_told_to_a_hook_and_by_mail(tmp_path: Path) -> None:
    """The crashed one: its worker took it and never began it. Another such run is cancelled."""
    with sink() as (url, texts), mailbox() as (address, mails), Fleet(tmp_path) as fleet:
        notify(fleet, url)
        unbegun = fleet.start("gdpo-stage/a100", stage="pretrain")
        fleet.post(f"flow_runs/{unbegun}/set_state", state={"type": "PENDING"}, force=True)
        cancelled = fleet.start("gdpo-stage/a100", stage="select")
        fleet.post(f"flow_runs/{cancelled}/set_state", state={"type": "PENDING"}, force=True)
        fleet.cancel(cancelled)
        assert fleet.state(cancelled)["type"] == "CANCELLING"
        fleet.start("gdpo-stage/a100", stage="rollout@00")  # no worker takes it
        fail(fleet, "select")
        for word in ("by the test", "Late", "Crashed"):
            wait_for(partial(any_has, texts, word), 300, word)
        assert fleet.state(unbegun)["message"] == "its worker took the run and did not start it"
        assert fleet.finished(cancelled, 300)["type"] == "CANCELLED"
        assert fleet.state(cancelled)["message"] == "its worker did not end the run"
        assert all(text.startswith("gdpo-stage ") for text in texts)

        notify(fleet, address)  # instead of the hook
        name = fail(fleet, "index")
        wait_for(partial(any_has, mails, "by the test"), 300, "the mail")
        (mail,) = [mail for mail in mails if "by the test" in mail]
        assert mail.startswith(f"me@example.org: gdpo-stage {name}: Failed"), mail
        assert not any_has(texts, name)
        blocks = json.dumps(fleet.post("block_documents/filter", include_secrets=False))
        assert url not in blocks and address not in blocks
