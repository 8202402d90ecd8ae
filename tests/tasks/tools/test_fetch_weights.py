"""`gdpo-sr fetch --metrics`: weights of metrics from a folder, an address, a hub that is away."""

import hashlib
import json
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from gdpo.metrics.score import files, missing
from tasks import __main__ as cli
from tasks.tools import fetch_weights
from tests import s3
from tests.gdpo.metrics import weights
from tests.tasks.tools.fetching import COMMIT

ALEX = "pyiqa/LPIPS_v0.1_alex-df73285e.pth"


@pytest.fixture
def place(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with parameters; fabricated LPIPS weights in mirror/, named after their hashes."""
    (tmp_path / "params.yaml").write_bytes((root / "tests/params.yaml").read_bytes())
    for folder in ("pyiqa", "checkpoints"):
        (tmp_path / "mirror" / folder).mkdir(parents=True)
    weights.lpips(tmp_path / "mirror")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(fetch_weights, "_check_hash", lambda name, digest: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*sources: str, names: tuple[str, ...] = ("lpips_alex",)) -> int:
    return cli.main(["fetch", "--set", f"fetch.weights={json.dumps(sources)}", "--metrics", *names])


def test_the_next_source_is_asked_when_one_is_away(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hub whose host answers nothing is reported in one line, without a traceback."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        away = f"hf://owner/name@{COMMIT}"
        assert set(missing(["lpips_alex"])) == {"lpips_alex"}
        assert run(away, "mirror") == 0
    out, err = capsys.readouterr()
    (note,) = err.splitlines()
    assert note.startswith(f"gdpo-sr: note: {away}: ")
    assert out.count("from mirror") == 2 and "CC BY-NC-SA 4.0" in out
    assert missing(["lpips_alex"]) == {}
    for file in files("lpips_alex"):
        record = json.loads(file.with_name(f"{file.name}.source").read_text())
        assert record["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert record["source"] == "mirror"
    assert run("mirror") == 0
    assert capsys.readouterr().out.count("already exists") == 2


def test_what_no_source_has_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "mirror" / ALEX).unlink()
    assert run("nothing", "mirror") == 1
    note, last = capsys.readouterr().err.splitlines()
    assert note == "gdpo-sr: note: nothing: no such folder"
    assert "no source of fetch.weights has LPIPS_v0.1_alex-df73285e.pth (chaofengc/" in last
    assert [path.is_file() for path in files("lpips_alex")] == [False, True]


def test_a_file_with_another_hash_than_its_name_says_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(place)
    monkeypatch.setenv("TORCH_HOME", str(place / "torch"))
    assert run("mirror") == 1
    assert "has the SHA-256" in capsys.readouterr().err
    assert not list((place / "torch").rglob("*.pth"))


def test_without_names_all_that_the_parameters_need(place: Path) -> None:
    from tasks import params

    config = params.load(place / "params.yaml", "paper")
    assert set(fetch_weights.needed(config, [])) > {ALEX, "checkpoints/vgg16-397923af.pth"}
    assert fetch_weights.needed(params.load(place / "params.yaml"), []) == {}
    assert run("mirror", names=()) == 0


def test_an_address_is_read_to_the_end(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Served over plain HTTP here: only the scheme is exchanged."""

    class Answer(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            found = next((place / "mirror").rglob(self.path.removeprefix("/models/")), None)
            self.send_response(200 if found else 404)
            content = found.read_bytes() if found else b""
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    true = fetch_weights.urllib.request.urlopen
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(
        fetch_weights.urllib.request,
        "urlopen",
        lambda url, timeout: true(url.replace("https://files.example", address), timeout=timeout),
    )
    with server, s3.serving(server):
        assert run("https://files.example/models") == 0
    for file in files("lpips_alex"):
        torch.load(file, weights_only=True)
