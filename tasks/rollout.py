"""Stage `rollout`, one part of it: G scored candidates per selected patch by the frozen NAOSD -> data/rollouts/<part>.

    python -m tasks rollout --part 00     one part, on any worker; without --part all of them, one after another

The pairs of one forward pass are a chunk. Finished chunks are kept in work/rollout/<part>/chunks until the part is whole:
after a stop or a kill the same command goes on with the next. tasks/rollout_files.py says which chunks a part has and what
its file holds. A pair whose scores are not finite gives no group; it is named on stderr, in the file and in the Data Docs.
"""

import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gdpo.config import Config
from gdpo.data.shards import Pair
from gdpo.model.checkpoints import load_model
from gdpo.model.naosd import NAOSD
from gdpo.model.sampling import base_dtype
from gdpo.preference.group import Group, Skipped, schema, to_row
from gdpo.preference.rollout import rollout
from gdpo.rewards.metrics import check_available, versions
from gdpo.training import Hooks, Stopped, written_aside
from tasks.checks import check_rollouts
from tasks.rollout_files import Selected, header, plan, ranks
from tasks.runs import device, fingerprint

ROW_GROUP = 64  # rows at least


def run(config: Config, root: Path, hooks: Hooks, part: str | None = None) -> None:
    """Make the groups of one part, or of all, one after another.

    Raises `Stopped` after a chunk. ValueError naming the key, file, metric or patch on bad input, or if no pair of a part
    gave a group.
    """
    known = config.rollout.parts
    if part is not None and part not in known:
        raise ValueError(f"rollout.parts has no part {part!r}; there is {', '.join(known)}")
    check_available(config.rollout.metrics)
    for name in known if part is None else [part]:
        _part(config, root, hooks, name)


def _part(config: Config, root: Path, hooks: Hooks, part: str) -> None:
    pairs, made_from = Selected(root), header(config, root)
    described = schema(config.rollout, json.dumps(made_from, sort_keys=True))
    shares = ranks(len(pairs), config.rollout, part)
    mine = [pairs.ids[rank] for share in shares.values() for rank in share]
    kept = root / "work/rollout" / part / "chunks"
    of = {"versions": versions(config.rollout.metrics), "batch": config.rollout.batch, "pairs": pairs.fingerprint()}
    _claim(kept, fingerprint({**made_from, **of}, []))

    @cache
    def model() -> NAOSD:  # not before a chunk is missing
        model = load_model(root / "models/naosd", root / config.model.base)
        return model.to(device(), base_dtype(config.rollout.precision))

    files: list[Path] = []
    skipped: dict[str, str] = {}
    done = 0
    for chunk, share in shares.items():
        files.append(kept / f"{chunk:08d}.parquet")
        table = _read(files[-1])
        missing = table is None
        if table is None:
            table = _keep(files[-1], described, _groups(model(), pairs[share.start : share.stop], config))
        skipped |= _named(table, part)
        done += len(share)
        hooks.log(done - 1, {"of": len(mine), **_means(table), "skipped": len(skipped)})
        if missing and hooks.should_stop():
            raise Stopped(done)
    if mine and len(skipped) == len(mine):
        shutil.rmtree(kept)
        raise ValueError(
            f"rollout {part}: none of its {len(mine)} pairs gave a group, {mine[0]}: {skipped[mine[0]]}; "
            f"check models/naosd, rollout.metrics and rollout.precision"
        )
    metadata = {"plan": json.dumps(plan(pairs.ids, config.rollout)), "skipped": json.dumps(skipped)}
    with written_aside(root / "data/rollouts" / part) as aside:
        aside.mkdir()
        _join(files, aside / "00000.parquet", described.with_metadata({**(described.metadata or {}), **metadata}))
        check_rollouts(aside, part, root, config.rollout, mine)
    shutil.rmtree(kept)


def _groups(model: NAOSD, pairs: list[Pair], config: Config) -> Iterator[Group | Skipped]:
    """The groups of a chunk in its order; pairs of one size that follow each other share a forward pass."""
    for _, same in groupby(pairs, key=lambda pair: pair.hr.shape):
        yield from rollout(model, list(same), config)


def _claim(folder: Path, inputs: str) -> None:
    """Make `folder` the place for chunks of these inputs; those of others are thrown away."""
    mark = folder / "fingerprint"
    if not mark.is_file() or mark.read_text() != inputs:
        shutil.rmtree(folder, ignore_errors=True)
        with written_aside(mark) as aside:
            aside.write_text(inputs)


def _keep(path: Path, described: pa.Schema, found: Iterable[Group | Skipped]) -> pa.Table:
    """Write a chunk; returns it."""
    rows, skipped = [], {}
    for one in found:
        if isinstance(one, Skipped):
            skipped[one.id] = one.reason
        else:
            rows.append(to_row(one))
    metadata = {**(described.metadata or {}), "skipped": json.dumps(skipped)}
    table = pa.Table.from_pylist(rows, schema=described.with_metadata(metadata))
    with written_aside(path) as aside:
        pq.write_table(table, aside, compression="zstd", write_page_checksum=True)
    return table


def _read(path: Path) -> pa.Table | None:
    """A chunk that was kept; None if there is none, or a damaged one, which is then made again."""
    try:
        return pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        return None


def _named(chunk: pa.Table, part: str) -> dict[str, str]:
    """Which pairs of a chunk gave no group, and why."""
    skipped: dict[str, str] = json.loads(chunk.schema.metadata[b"skipped"])
    for id_, reason in skipped.items():
        sys.stderr.write(f"gdpo-sr: rollout {part}: {id_} is left out, {reason}\n")
    return skipped


def _means(chunk: pa.Table) -> dict[str, float]:
    """The mean of every metric over the candidates of a chunk."""
    rows = chunk["metrics"].to_pylist()
    return {name: float(np.mean([row[name] for row in rows])) for name in (rows[0] if rows else ())}


def _join(files: list[Path], path: Path, described: pa.Schema) -> None:
    """All chunks in one file, a few in memory at a time."""
    with pq.ParquetWriter(path, described, compression="zstd", write_page_checksum=True) as writer:
        waiting: list[pa.Table] = []
        for index, file in enumerate(files):
            waiting.append(pq.read_table(file).replace_schema_metadata(described.metadata))
            if index == len(files) - 1 or sum(map(len, waiting)) >= ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
