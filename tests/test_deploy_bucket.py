"""deploy/bucket.py: the lifecycle rules of the bucket, beside those of others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import s3

pytestmark = pytest.mark.processes


def bucket(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, root / "deploy/bucket.py", "s3://gdpo-sr"]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "AWS_MAX_ATTEMPTS": "1"}
    )


def test_a_bucket_keeps_the_lifecycle_rules_of_others(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = [
        {
            "ID": "old lock entries",
            "Status": "Enabled",
            "Filter": {"Prefix": "results/"},
            "Expiration": {"Days": 90},
        },
        {
            "ID": "off",
            "Status": "Disabled",
            "Filter": {"Prefix": "x/"},
            "NoncurrentVersionExpiration": {"NoncurrentDays": 7},
        },
    ]
    with s3.server() as url:
        s3.use(monkeypatch, url)
        client = s3.client(url)
        assert bucket(root).returncode == 0  # there are no rules yet
        ours, copies = client.get_bucket_lifecycle_configuration(Bucket="gdpo-sr")["Rules"]
        assert copies["Filter"] == {"Prefix": "results/checkpoints/"}
        assert copies["Expiration"] == {"Days": 30}
        stale = {**ours, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 9}}
        client.put_bucket_lifecycle_configuration(
            Bucket="gdpo-sr", LifecycleConfiguration={"Rules": [*theirs, stale]}
        )
        for _ in range(2):
            assert bucket(root).returncode == 0
            found = client.get_bucket_lifecycle_configuration(Bucket="gdpo-sr")["Rules"]
            assert sorted(found, key=lambda rule: str(rule["ID"])) == sorted(
                [*theirs, ours, copies], key=lambda rule: str(rule["ID"])
            )


def test_a_bucket_keeps_what_holds_for_all_its_rules(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server always has a smallest size of objects that move: a proxy tells whether it is
    written again.
    """
    with (
        s3.server() as url,
        s3.proxy(url, lambda method, path: "refuse x-amz-transition-default-minimum") as address,
    ):
        s3.use(monkeypatch, address)
        assert bucket(root).returncode == 0
        assert "NotImplemented" in bucket(root).stderr


def test_rules_that_cannot_be_read_are_not_replaced(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[str] = []

    def fault(method: str, path: str) -> int | None:
        requests.append(f"{method} {path}")
        return 403 if method == "GET" and "lifecycle" in path else None

    with s3.server() as url, s3.proxy(url, fault) as address:
        s3.use(monkeypatch, address)
        result = bucket(root)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert [
        request for request in requests if request.startswith("PUT") and "lifecycle" in request
    ] == []


@pytest.mark.parametrize("beginning", ["http://", ""])
def test_the_bucket_does_not_show_a_password_in_the_endpoint(
    root: Path, monkeypatch: pytest.MonkeyPatch, beginning: str
) -> None:
    s3.use(monkeypatch, f"{beginning}me:{s3.SECRET}@127.0.0.1:9")
    result = bucket(root)
    assert result.returncode == 1
    assert result.stderr.startswith("s3://gdpo-sr: ") and result.stderr.count("\n") == 1
    assert s3.SECRET not in result.stderr
