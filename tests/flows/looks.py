"""What the tests see of a fleet, in its bucket, on its server and in a clone, and what they change
there behind its back.
"""

import hashlib
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests import s3
from tests.flows.fleet import BUCKET, Fleet


@cache
def bucket(fleet: Fleet) -> Any:
    """An independent look at what lies there."""
    return s3.client(fleet.s3)


def objects(fleet: Fleet) -> list[str]:
    pages = bucket(fleet).get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def body(fleet: Fleet, key: str) -> bytes:
    return bytes(bucket(fleet).get_object(Bucket=BUCKET, Key=key)["Body"].read())


def artifacts(fleet: Fleet, run: str) -> dict[str, str]:
    found = fleet.post("artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
    return {row["key"] or row["type"]: str(row["data"]) + str(row["description"]) for row in found}


def published(fleet: Fleet, kind: str) -> list[str]:
    """The runs of a kind, by their manifests."""
    manifests = [
        json.loads(body(fleet, key)) for key in objects(fleet) if key.endswith("manifest.json")
    ]
    return sorted(manifest["run"] for manifest in manifests if manifest["kind"] == kind)


def steps_of(clone: Path) -> int:
    path = clone / "work/finetune/gdpo/metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def replayed(clone: Path) -> int:
    """Steps that the last training here took from a checkpoint: they, and the next, have no cost
    (tasks/run/recorder.py).
    """
    rows = [
        json.loads(line)
        for line in (clone / "work/finetune/gdpo/metrics.jsonl").read_text().splitlines()
    ]
    return sum("seconds" not in row for row in rows) - 1


def seconds_per_step(clone: Path) -> float:
    """Of the last training here; without its first step, which also validates."""
    lines = (clone / "work/finetune/gdpo/metrics.jsonl").read_text().splitlines()
    return median(json.loads(line)["seconds"] for line in lines[1:])


def tool(fleet: Fleet, clone: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tasks", *args],
        cwd=clone,
        env=fleet.env,
        capture_output=True,
        text=True,
        check=False,
    )


def promote_a_better_one(fleet: Fleet, run: str) -> None:
    """Give the promoted run's GDPO-SR 3 dB more than it had."""
    key = f"runs/{run}/evaluate/sample/per_image.parquet"
    table = pq.read_table(pa.BufferReader(body(fleet, key)))
    better = pc.if_else(
        pc.equal(table["model"], "gdpo"), pc.add(table["psnr_y"], 3.0), table["psnr_y"]
    )
    table = table.set_column(table.column_names.index("psnr_y"), "psnr_y", better)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data = sink.getvalue().to_pybytes()
    bucket(fleet).put_object(Bucket=BUCKET, Key=key, Body=data)
    place = f"runs/{run}/manifest.json"
    manifest = json.loads(body(fleet, place))
    manifest["files"]["evaluate/sample/per_image.parquet"] = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
    }
    bucket(fleet).put_object(Bucket=BUCKET, Key=place, Body=json.dumps(manifest).encode())
