"""The tool `fetch`: a folder, an S3 bucket (moto) and a hub (a server on this machine) as sources
of a tiny base model.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from gdpo.model.base import base_hashes
from gdpo.model.card import Card
from gdpo.model.naosd import NAOSD
from gdpo.model.sources import BASE_FILES
from tasks import __main__ as cli
from tasks.store import s3 as store
from tasks.tools import fetch
from tests import tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNET, SCHEDULE = "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"


@pytest.fixture
def place(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_base: Path) -> Path:
    """A working folder with the sample's parameters, and the tiny base in mirror/ beside what
    nobody needs.
    """
    text = (
        (root / "tests/params.yaml")
        .read_text()
        .replace("base: assets/tiny-sd", "base: models/base")
    )
    (tmp_path / "params.yaml").write_text(text)
    shutil.copytree(tiny_base, tmp_path / "mirror")
    for name in (
        "README.md",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.bin",
    ):
        (tmp_path / "mirror" / name).write_bytes(b"not needed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GDPO_DEBUG", raising=False)
    return tmp_path


def run(*sources: str, more: tuple[str, ...] = ()) -> int:
    return cli.main(["fetch", "--set", f"fetch.base={json.dumps(sources)}", *more])


def failure(capsys: pytest.CaptureFixture[str], *sources: str, more: tuple[str, ...] = ()) -> str:
    """What a run that must fail says in its last line; nothing is at model.base then."""
    assert run(*sources, more=more) == 1
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("gdpo-sr: ") for line in lines)
    assert not Path("models/base").exists()
    return lines[-1]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_fetched(place: Path, source: str) -> None:
    got = {
        str(path.relative_to("models/base"))
        for path in Path("models/base").rglob("*")
        if path.is_file()
    }
    assert UNET in got and SCHEDULE in got
    assert not [
        name
        for name in got
        if name.endswith((".bin", ".md", ".part")) or "fp16" in name or ".hub" in name
    ]
    NAOSD.from_base(Path("models/base"))
    record = json.loads(Path("models/base.source.json").read_text())
    assert record["source"] == source and record["files"].keys() == got
    for name, file in record["files"].items():
        assert file == {
            "size": (place / "mirror" / name).stat().st_size,
            "sha256": sha256(place / "mirror" / name),
        }
    assert not list(Path("work/fetch").iterdir())


def test_a_folder_after_one_that_is_not_there(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("elsewhere", "mirror") == 0
    out, err = capsys.readouterr()
    assert err == "gdpo-sr: note: elsewhere: no such folder\n"
    assert out.startswith("models/base: ") and out.endswith("bytes, from mirror\n")
    check_fetched(place, "mirror")
    assert run("elsewhere", more=("--json",)) == 0, "what is there is not fetched again"
    assert json.loads(capsys.readouterr().out)["source"] == "mirror"


def edit(name: str, change: Callable[[Any], None]) -> Callable[[], None]:
    def apply() -> None:
        path = Path("mirror", name)
        content = load_file(path) if name.endswith("safetensors") else json.loads(path.read_text())
        change(content)
        if name.endswith("safetensors"):
            save_file(content, path, metadata={"format": "pt"})
        else:
            path.write_text(json.dumps(content))

    return apply


def remove(name: str) -> Callable[[], None]:
    return lambda: Path("mirror", name).unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            edit(SCHEDULE, lambda c: c.update(prediction_type="v_prediction")),
            "scheduler/scheduler_config.json: prediction_type is 'v_prediction', NAOSD needs "
            "'epsilon' "
            "(an SD2.1-base model, not the 768-v one)",
        ),
        (
            edit(SCHEDULE, lambda c: c.pop("clip_sample")),
            "scheduler_config.json: clip_sample is True, NAOSD needs False",
        ),
        (
            remove(UNET),
            f"has unet/diffusion_pytorch_model.fp16.safetensors and no {UNET}; NAOSD is trained "
            "on fp32 weights",
        ),
        (
            remove("text_encoder/model.safetensors"),
            "has no text_encoder/model.safetensors; pickled weights are not read",
        ),
        (
            remove("tokenizer/tokenizer.json"),
            "has no tokenizer/vocab.json and tokenizer/merges.txt",
        ),
        (lambda: os.truncate(f"mirror/{UNET}", 5000), "unet: cannot be loaded"),
        (edit(UNET, lambda t: t.pop("conv_in.bias")), "unet: its weights lack conv_in.bias"),
        (
            edit(UNET, lambda t: t["conv_in.bias"].fill_(float("nan"))),
            "unet: conv_in.bias has values that are NaN",
        ),
    ],
)
def test_a_source_that_will_not_do_is_refused_with_its_reason(
    place: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[], None], says: str
) -> None:
    spoil()
    line = failure(capsys, "mirror")
    assert says in line and "no source of fetch.base works (mirror: " in line
    shutil.rmtree("mirror")
    tiny.write_base(Path("good"))
    assert run("mirror", "good") == 0, "nothing of the refused source stands in the way"


def test_a_hash_of_the_profile_must_be_met(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = f"fetch.hashes={json.dumps({UNET: '0' * 64})}"
    line = failure(capsys, "mirror", more=("--set", wanted))
    assert f"{UNET} has the SHA-256 {sha256(Path('mirror', UNET))}, not {'0' * 64}" in line
    good = f"fetch.hashes={json.dumps({UNET: sha256(Path('mirror', UNET))})}"
    assert run("mirror", more=("--set", good)) == 0


@pytest.mark.parametrize(
    "source",
    ["hf://owner/name", "hf://owner/name@main", "hf://name@" + COMMIT, "ftp://x/y", "s3://"],
)
def test_a_source_that_is_none_is_a_usage_error(
    place: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    assert run(source) == 2
    assert (
        "fetch.base.0: must be a folder, s3://bucket/prefix or hf://owner/name@"
        in capsys.readouterr().err
    )


def test_no_source_and_a_damaged_model_are_told(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is not there, and fetch.base names no source" in failure(capsys)
    assert run("mirror") == 0
    os.truncate(f"models/base/{UNET}", 100)
    assert run("mirror") == 1
    assert capsys.readouterr().err.rstrip().endswith("; move models/base away to fetch it again")


@pytest.fixture
def bucket(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The mirror in s3://weights/sd/base of a moto server."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    store._client.cache_clear()
    client = boto3.client("s3")
    client.create_bucket(Bucket="weights")
    for path in (place / "mirror").rglob("*"):
        if path.is_file():
            client.upload_file(
                str(path), "weights", f"sd/base/{path.relative_to(place / 'mirror')}"
            )
    yield client
    server.stop()
    store._client.cache_clear()


def test_an_s3_prefix(place: Path, bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("s3://weights/nothing", "s3://weights/sd/base") == 0
    assert "note: s3://weights/nothing: has no unet/config.json" in capsys.readouterr().err
    check_fetched(place, "s3://weights/sd/base")


def test_a_bucket_that_is_not_there(bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert "s3://nobody: there is no such object or bucket (NoSuchBucket)" in failure(
        capsys, "s3://nobody"
    )


class Hub(ThreadingHTTPServer):
    """What the hub's library asks for: the list of files, a HEAD and a GET per file. Notes every
    GET of a file.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.served, self.broken = folder, [], set()


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        start = f"/owner/name/resolve/{COMMIT}/"
        if path == f"/api/models/owner/name/tree/{COMMIT}":
            self.send(json.dumps(self.tree()).encode(), {"Content-Type": "application/json"}, body)
        elif path.startswith(start) and (self.server.folder / path.removeprefix(start)).is_file():
            name = path.removeprefix(start)
            content = (self.server.folder / name).read_bytes()
            if body:
                self.server.served.append(name)
                if name in self.server.broken:
                    self.send_error(503)
                    return
            etag = hashlib.sha256(content).hexdigest()
            self.send(content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body)
        else:
            self.send_error(404)

    def tree(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [{"type": "directory", "oid": "0", "path": "unet"}]
        for path in sorted(self.server.folder.rglob("*")):
            if path.is_file():
                size = path.stat().st_size
                row = {
                    "type": "file",
                    "oid": "0",
                    "size": size,
                    "path": str(path.relative_to(self.server.folder)),
                }
                if path.suffix == ".safetensors":
                    row["lfs"] = {"oid": sha256(path), "size": size, "pointerSize": 100}
                rows.append(row)
        return rows

    def send(self, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def hub(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(place / "mirror")
    thread = Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_at_a_commit_although_everything_else_is_offline(place: Path, hub: Hub) -> None:
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE, "as tests/conftest.py and the command line have it"
    source = f"hf://owner/name@{COMMIT}"
    assert run(source) == 0
    check_fetched(place, source)
    assert len(hub.served) == len(set(hub.served)) and not [
        name for name in hub.served if "fp16" in name or ".bin" in name
    ]
    assert constants.HF_HUB_OFFLINE


def test_the_base_that_a_model_names_by_its_place_on_the_hub(
    place: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "cache"))
    card = Card(
        kind="naosd",
        label="NAOSD",
        role="baseline",
        format=1,
        base=f"hf://owner/name@{COMMIT}",
        base_sha256=base_hashes(place / "mirror"),
        t_add=50,
        t_diff=100,
        prompt="sharp",
        adapters=[],
    )
    folder = place / "model"
    folder.mkdir()
    card.write(folder)
    missing = "is not in the hub's cache here; `gdpo-sr fetch --model .*` brings it"
    with pytest.raises(ValueError, match=missing):
        NAOSD.from_pretrained(folder)
    assert cli.main(["fetch", "--model", "model"]) == 0
    assert Path(capsys.readouterr().out.strip()).is_relative_to(place / "cache")
    assert not any("fp16" in name or ".bin" in name for name in hub.served)
    assert NAOSD.from_pretrained(folder).t_add == 50
    card.model_copy(update={"base_sha256": {}}).write(folder)
    with pytest.raises(
        ValueError, match=r"trained on another base model than .* \(SHA-256 differs"
    ):
        NAOSD.from_pretrained(folder)
    for base in ("hf://name@main", "hf://owner/name"):
        card.model_copy(update={"base": base}).write(folder)
        with pytest.raises(ValueError, match="which is not hf://owner/name@revision"):
            NAOSD.from_pretrained(folder)


def test_a_commit_that_is_not_there(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert "404" in failure(capsys, "hf://owner/name@" + "f" * 40)


def test_a_v_prediction_base_is_refused_before_its_weights_are_fetched(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(SCHEDULE, lambda c: c.update(prediction_type="v_prediction"))()
    assert "prediction_type is 'v_prediction'" in failure(capsys, f"hf://owner/name@{COMMIT}")
    assert hub.served == [SCHEDULE]


def test_what_arrived_before_a_failure_is_not_fetched_again(
    place: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # the library waits between its attempts
    source = f"hf://owner/name@{COMMIT}"
    hub.broken.add("vae/diffusion_pytorch_model.safetensors")
    assert "503" in failure(capsys, source)
    assert UNET in hub.served
    hub.broken.clear()
    hub.served.clear()
    assert run(source) == 0
    assert hub.served == ["vae/diffusion_pytorch_model.safetensors"]
    check_fetched(place, source)


def test_a_file_that_is_not_what_the_hub_lists_is_refused(
    place: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Answer.tree

    def other(self: Answer) -> list[dict[str, Any]]:
        return [
            {**row, **({"lfs": {**row["lfs"], "oid": "1" * 64}} if "lfs" in row else {})}
            for row in honest(self)
        ]

    monkeypatch.setattr(Answer, "tree", other)
    assert f"not {'1' * 64}" in failure(capsys, f"hf://owner/name@{COMMIT}")


def test_nothing_else_goes_online() -> None:
    """The only module that switches the hub's library on is that of this tool's sources."""
    root = Path(fetch.__file__).parents[2]
    modules = [
        path for package in ("gdpo", "tasks", "flows") for path in (root / package).rglob("*.py")
    ]
    assert [path.name for path in modules if "HF_HUB_OFFLINE =" in path.read_text()] == [
        "sources.py"
    ]


def test_a_name_that_leads_out_of_the_folder_is_not_taken() -> None:
    outside = {
        "tokenizer/../../evil.json",
        "tokenizer/../unet/config.json",
        "tokenizer/sub/x.json",
        "tokenizer/a\\b.txt",
    }
    found = fetch._needed(
        {*BASE_FILES, "tokenizer/tokenizer.json", "tokenizer/merges.txt", *outside}
    )
    assert set(found) == {*BASE_FILES, "tokenizer/tokenizer.json", "tokenizer/merges.txt"}
