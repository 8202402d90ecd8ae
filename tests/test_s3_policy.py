"""deploy/s3-policy-*.json against every request that the code makes: a proxy refuses what the
policy does not allow.
"""

import json
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest
import torch

from tasks.publish import promotion, records
from tasks.run.copies import Copies, forget
from tasks.store import s3 as store_module
from tasks.store.conditional import supports_cas
from tasks.store.s3 import Store
from tests import s3
from tests.deploy import strings
from tests.guide import shell
from tests.tasks.published import NOW, finished, publish  # noqa: F401 - finished is a fixture

pytestmark = pytest.mark.processes


def action(method: str, path: str) -> tuple[str, str]:
    """What S3 asks a policy for a request: (action, resource). KeyError for a request that is not
    known here.
    """
    url = urlsplit(path)
    bucket, _, key = url.path.lstrip("/").partition("/")
    query = parse_qs(url.query, keep_blank_values=True)
    if not key:
        kind = "location" if "location" in query else "delete" if "delete" in query else ""
        name = {
            ("GET", ""): "ListBucket",
            ("HEAD", ""): "ListBucket",
            ("GET", "location"): "GetBucketLocation",
        }[method, kind]
        return f"s3:{name}", f"arn:aws:s3:::{bucket}"
    multipart = "uploadId" in query
    name = {
        ("GET", False): "GetObject",
        ("HEAD", False): "GetObject",
        ("PUT", False): "PutObject",
        ("POST", False): "PutObject",
        ("DELETE", False): "DeleteObject",
        ("PUT", True): "PutObject",
        ("POST", True): "PutObject",
        ("DELETE", True): "AbortMultipartUpload",
        ("GET", True): "ListMultipartUploadParts",
    }[method, multipart]
    return f"s3:{name}", f"arn:aws:s3:::{bucket}/{key}"


def allows(policy: dict[str, Any], wanted: str, resource: str) -> bool:
    """Whether a policy of Allow statements allows an action."""
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        resources = (
            statement["Resource"]
            if isinstance(statement["Resource"], list)
            else [statement["Resource"]]
        )
        if wanted in statement["Action"] and any(
            fnmatchcase(resource, pattern) for pattern in resources
        ):
            return True
    return False


class Guarded:
    """An S3 server that lets pass what a policy allows; `seen` are the actions it was asked for."""

    def __init__(self, root: Path) -> None:
        self.root, self.seen, self.refused = root, set[str](), list[str]()
        self.become("worker")

    def become(self, who: str) -> None:
        self.policy = json.loads((self.root / f"deploy/s3-policy-{who}.json").read_text())

    def fault(self, method: str, path: str) -> int | None:
        name, resource = action(method, path)
        if allows(self.policy, name, resource):
            self.seen.add(f"{name} {resource.partition('/')[2].partition('/')[0]}".strip())
            return None
        self.refused.append(f"{name} {resource}")
        return 403


@pytest.fixture
def guarded(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    guard = Guarded(root)
    with s3.server() as url, s3.proxy(url, guard.fault) as address:
        s3.client(url).create_bucket(Bucket="gdpo-sr")
        s3.use(monkeypatch, address)
        yield guard
    store_module._client.cache_clear()


def test_a_worker_may_do_its_work_and_may_not_promote(
    guarded: Guarded,
    finished: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    store = Store.at("s3://gdpo-sr")
    # As the nightly asks, before the first promotion.
    assert records.promoted(store) == (
        [],
        None,
    )
    (finished / "models/gdpo/large.safetensors").write_bytes(bytes(9 << 20))  # goes up in parts
    run = publish(finished)
    key = f"results/lock/{uuid4()}.json"
    store.write(key, b"{}")
    assert store.read(key) == b"{}"
    # Where nothing is promoted yet, a publication offers the empty list of models, and goes on when
    # that is refused.
    assert set(guarded.refused) <= {"s3:PutObject arn:aws:s3:::gdpo-sr/models/index.html"}
    guarded.refused.clear()
    with pytest.raises(PermissionError):
        promotion.promote("s3://gdpo-sr", run, NOW)
    assert set(guarded.refused) == {"s3:PutObject arn:aws:s3:::gdpo-sr/models/latest.json"}
    assert {
        "s3:ListBucket",
        "s3:PutObject runs",
        "s3:GetObject results",
        "s3:GetObject models",
    } <= guarded.seen
    guarded.become("promoter")
    guarded.refused.clear()
    supports_cas.cache_clear()
    promotion.promote("s3://gdpo-sr", run, NOW)
    guarded.become("worker")
    known, _ = records.promoted(store)
    assert [
        path.read_bytes()
        for path in promotion.download_scores(
            store, records.manifest_of(store, known[0]["run"]), tmp_path
        )
    ]
    assert not guarded.refused


def test_a_worker_may_copy_checkpoints_and_delete_the_copies(
    guarded: Guarded, tmp_path: Path
) -> None:
    copying = Copies("s3://gdpo-sr/results/checkpoints", 0.0, tmp_path)
    for step in (2, 4):
        torch.save({"fingerprint": "inputs", "step": step}, tmp_path / "checkpoint.pt")
        with (tmp_path / "checkpoint.pt").open("rb") as file:
            copying._copy("inputs", step, file)
    (tmp_path / "checkpoint.pt").unlink()
    copying.fetch("inputs", 9, tmp_path / "checkpoint.pt")
    assert (tmp_path / "checkpoint.pt").is_file()
    forget(tmp_path)
    assert not guarded.refused
    assert "s3:DeleteObject results" in guarded.seen


def test_a_worker_may_push_and_pull_what_dvc_makes(
    guarded: Guarded, tmp_path: Path, repository: Path
) -> None:
    (repository / "dvc.yaml").write_text(
        "stages:\n  make:\n    cmd: seq 9 > made\n    outs: [made]\n"
    )
    (repository / "source").mkdir()
    (repository / "source/large").write_bytes(os.urandom(60 << 20))  # s3fs sends this in parts
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    shell(
        f"cd {repository} && dvc add -q source && dvc repro -q && dvc push -q --run-cache",
        tmp_path,
        **environment,
    )
    shell(
        f"cd {repository} && rm -r made source .dvc/cache && dvc pull -q --run-cache",
        tmp_path,
        **environment,
    )
    assert (repository / "made").read_text().startswith("1\n2\n")
    assert not guarded.refused
    assert {"s3:ListBucket", "s3:GetObject dvc", "s3:PutObject dvc"} <= guarded.seen


@pytest.mark.parametrize("who", ["worker", "promoter"])
def test_a_policy_names_its_actions(root: Path, who: str) -> None:
    policy = json.loads((root / f"deploy/s3-policy-{who}.json").read_text())
    assert not any(
        "*" in action for statement in policy["Statement"] for action in statement["Action"]
    )
    deletes = [
        text
        for statement in policy["Statement"]
        if "s3:DeleteObject" in statement["Action"]
        for text in strings(statement["Resource"])
    ]
    copies = ["arn:aws:s3:::gdpo-sr/results/checkpoints/*"] if who == "worker" else []
    assert deletes == [*copies, "arn:aws:s3:::gdpo-sr/.conditional-write-probe-*"]
