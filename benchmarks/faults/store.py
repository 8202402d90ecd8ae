"""Faults of the bucket and of DVC's cache: publications, promotions, pushes and pulls.

A store of its own runs on this machine (tests/s3.py); a proxy before it answers 5xx, cuts answers
off, is slow, or says that it has stored what it has thrown away. After each fault the same thing is
done again without it; the bucket, or the outputs that were brought back, must be those of an
undisturbed run.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

from benchmarks.faults.stages import Outcome, Random, cut, flip
from benchmarks.faults.world import World
from benchmarks.record import REPO
from tasks.publish import promotion, publication, records
from tasks.store import s3 as store_module
from tasks.store.conditional import supports_cas
from tests import s3

BUCKET = "gdpo-sr"
NOW = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
OUTS = ("models/gdpo", "reports/evaluate/sample", "reports/index.html")
WRONG: dict[str, int | str] = {"5xx": 503, "cut": "cut", "slow": "slow", "lying": "lie"}
MODEL = "models/gdpo"


def _use(url: str) -> None:
    os.environ.update(s3.environment(url))
    store_module._client.cache_clear()
    supports_cas.cache_clear()


def _fault(kind: str, rng: Random) -> s3.Fault:
    """It strikes every third request or so; a liar lies about every fourth PUT."""

    def fault(method: str, path: str) -> int | str | None:
        if rng.random() > 0.3 or (kind == "lying" and method != "PUT"):
            return None
        if kind == "slow":
            time.sleep(0.3)
            return None
        return WRONG[kind]

    return fault


def _contents(url: str) -> dict[str, str]:
    """SHA-256 of every object by its key."""
    client = s3.client(url)
    found = client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
    return {
        entry["Key"]: sha256(
            client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
        ).hexdigest()
        for entry in found
    }


@contextmanager
def _store() -> Iterator[str]:
    with s3.server() as url:
        s3.client(url).create_bucket(Bucket=BUCKET)
        yield url


def _publish(root: Path, hours: int = 0) -> str:
    when = NOW + timedelta(hours=hours)
    run = publication.run_id(when, "0123456789")
    publication.publish(
        root, f"s3://{BUCKET}", run, outs=OUTS, kind="train", commit="0123456789", when=when
    )
    return run


def _promote(run: str) -> None:
    promotion.promote(f"s3://{BUCKET}", run, NOW)


def published(world: World, kind: str, rng: Random) -> Outcome:
    """A publication and a promotion through a store that misbehaves, then again without."""
    outcome = Outcome(0)
    with _store() as url:
        _use(url)
        _promote(_publish(world.finished))
        wanted = _contents(url)
    with _store() as url:
        with s3.proxy(url, _fault(kind, rng)) as bad:
            _use(bad)
            try:
                _promote(_publish(world.finished))
            except (OSError, ValueError) as error:
                outcome.code, outcome.message = 1, str(error)
        _use(url)
        found = _contents(url)
        if outcome.code == 0 and found != wanted:
            outcome.problems.append(f"it said done, and {_odd(found, wanted)} differ")
        _promote(_publish(world.finished))
        if (found := _contents(url)) != wanted:
            outcome.problems.append(f"after the repetition {_odd(found, wanted)} differ")
    return outcome


def _odd(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    return sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))[
        :4
    ]


def two_promoters(world: World, kind: str, rng: Random) -> Outcome:
    """Two people promote two runs at once: one wins, or both in turn, and the pointer is whole."""
    results: dict[str, str] = {}
    with _store() as url:
        _use(url)
        runs = [_publish(world.finished, hours) for hours in (0, 1)]

        def promote(run: str) -> None:
            try:
                _promote(run)
                results[run] = "done"
            except (OSError, ValueError) as error:
                results[run] = str(error)

        threads = [threading.Thread(target=promote, args=(run,)) for run in runs]
        for thread in threads:
            thread.start()
            time.sleep(float(rng.uniform(0, 0.02)))
        for thread in threads:
            thread.join()
        entries, _ = records.promoted(store_module.Store.at(f"s3://{BUCKET}"))
        done = [run for run in runs if results[run] == "done"]
        outcome = Outcome(len(done), "; ".join(text for text in results.values() if text != "done"))
        if not done or {entry["run"] for entry in entries} != set(done):
            outcome.problems.append(f"{results}, and the pointer has {entries}")
    return outcome


def object_damaged(world: World, kind: str, rng: Random) -> Outcome:
    """A published file of the model is damaged in the bucket: it is not promoted."""
    with _store() as url:
        _use(url)
        run = _publish(world.finished)
        wanted = _contents(url)
        keys = [key for key in wanted if "/model/" in key and not key.endswith(".html")]
        key = keys[int(rng.integers(len(keys)))]
        client = s3.client(url)
        answer = client.get_object(Bucket=BUCKET, Key=key)
        scratch = world.folder / "object"
        scratch.write_bytes(answer["Body"].read())
        (flip if kind == "flipped" else cut)(scratch, rng)
        client.put_object(
            Bucket=BUCKET, Key=key, Body=scratch.read_bytes(), Metadata=answer["Metadata"]
        )
        outcome = Outcome(1)
        try:
            _promote(run)
            outcome.code = 0
            outcome.problems.append(f"{key} is damaged and was promoted")
        except (OSError, ValueError) as error:
            outcome.message = str(error)
        _publish(world.finished)
        if (found := _contents(url)) != wanted:
            outcome.problems.append(f"published again, {_odd(found, wanted)} differ")
    return outcome


# DVC: a small clone whose outputs are in the cache and in the bucket.


def _dvc(root: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def clone(world: World) -> Path:
    """A repository of the finished root with its model in DVC's cache (made once)."""
    root = world.folder / "clone"
    if root.exists():
        return root
    root.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    assert _dvc(root, "init", "-q")[0] == 0
    shutil.copy(REPO / ".dvc/config", root / ".dvc/config")
    shutil.copytree(world.finished / MODEL, root / MODEL)
    code, text = _dvc(root, "add", "-q", MODEL)
    assert code == 0, text
    return root


def transferred(world: World, kind: str, rng: Random) -> Outcome:
    """`dvc push` and `dvc pull` through a store that misbehaves; then again without."""
    root, outcome = world.folder / "trials/dvc", Outcome(0)
    shutil.copytree(clone(world), root)
    with _store() as url:
        with s3.proxy(url, _fault(kind, rng)) as bad:
            _use(bad)
            pushed, text = _dvc(root, "push", "-q")
        _use(url)
        again, more = _dvc(root, "push", "-q")
        if again:
            outcome.problems.append(f"pushing again: {more[-200:]}")
        for place in (root / ".dvc/cache", root / MODEL):
            shutil.rmtree(place)
        with s3.proxy(url, _fault(kind, rng)) as bad:
            _use(bad)
            pulled, text = _dvc(root, "pull", "-q")
        outcome.code, outcome.message = f"{pushed}, {pulled}", " ".join(text.split())[:200]
        if pulled == 0:
            outcome.problems += _model_differs(world, root)
        _use(url)
        if _dvc(root, "pull", "-q")[0]:
            outcome.problems.append("pulling again failed")
        outcome.problems += _model_differs(world, root)
    return outcome


def remote_damaged(world: World, kind: str, rng: Random) -> Outcome:
    """An object of DVC's remote is damaged: what is pulled is right or is refused."""
    root = world.folder / "trials/dvc"
    shutil.copytree(clone(world), root)
    with _store() as url:
        _use(url)
        _dvc(root, "push", "-q")
        client, scratch = s3.client(url), world.folder / "object"
        keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET)["Contents"]]
        key = keys[int(rng.integers(len(keys)))]
        scratch.write_bytes(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())
        (flip if kind == "flipped" else cut)(scratch, rng)
        client.put_object(Bucket=BUCKET, Key=key, Body=scratch.read_bytes())
        for place in (root / ".dvc/cache", root / MODEL):
            shutil.rmtree(place)
        code, text = _dvc(root, "pull", "-q")
        outcome = Outcome(code, " ".join(text.split())[:200])
        if code == 0:
            outcome.problems += _model_differs(world, root)
    return outcome


def cache_damaged(world: World, kind: str, rng: Random) -> Outcome:
    """A file of DVC's cache is damaged and checked out: no command uses the model."""
    root = world.copy("cache", "evaluate@sample")
    place = world.folder / "trials/dvc"
    shutil.copytree(clone(world), place)
    weights = [
        path
        for path in sorted((place / ".dvc/cache").rglob("*"))
        if path.is_file() and path.suffix != ".dir"
    ]
    sums = {sha256(path.read_bytes()).hexdigest(): path for path in weights}
    victim = sums[world.hashes[f"{MODEL}/gdpo.safetensors"]]
    (flip if kind == "flipped" else cut)(victim, rng)
    victim.chmod(0o444)
    shutil.rmtree(place / MODEL)
    checked, text = _dvc(place, "checkout", "-q")
    if not (place / MODEL / "gdpo.safetensors").is_file():
        return Outcome(checked, " ".join(text.split())[:200])  # DVC noticed
    shutil.rmtree(root / MODEL)
    shutil.copytree(place / MODEL, root / MODEL)
    code = world.run(root, "evaluate@sample")
    message = (root / "stderr.txt").read_text()
    outcome = Outcome(code, message.splitlines()[-1] if message else "")
    if code != 1 or "gdpo.safetensors" not in message:
        outcome.problems.append(f"a damaged model was evaluated: exit {code}")
    return outcome


def _model_differs(world: World, root: Path) -> list[str]:
    return [
        f"{name} is of other bytes"
        for name, wanted in world.hashes.items()
        if name.startswith(f"{MODEL}/")
        and (
            not (root / name).is_file() or sha256((root / name).read_bytes()).hexdigest() != wanted
        )
    ]


Trial = Callable[[World, str, Random], Outcome]
KINDS: dict[str, tuple[Trial, tuple[str, ...]]] = {
    "published": (published, tuple(WRONG)),
    "two_promoters": (two_promoters, ("",)),
    "object_damaged": (object_damaged, ("flipped", "cut")),
    "transferred": (transferred, tuple(WRONG)),
    "remote_damaged": (remote_damaged, ("flipped", "cut")),
    "cache_damaged": (cache_damaged, ("flipped", "cut")),
}
