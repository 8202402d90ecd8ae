"""Stage `rollout`: the frozen NAOSD makes G scored candidates per selected patch ->
data/rollouts/<part>.

    python -m tasks rollout --part 00     one part, on any worker; without --part all parts in turn

Finished chunks stay in work/rollout/<part>/chunks until the part is complete: after a stop or a
kill, the same command resumes with the next chunk. tasks/files/rollouts.py defines the chunks of a
part and its file format. A pair whose scores are not finite gives no group; stderr, the file and
the Data Docs name it.
"""

import json
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from gdpo.config import Config
from gdpo.files import written_aside
from gdpo.hooks import Hooks, Stopped
from gdpo.metrics.score import check_available, versions
from gdpo.model.naosd import NAOSD
from gdpo.model.sampling import base_dtype
from gdpo.preference.group import Group, Skipped, schema
from tasks import paths
from tasks.checks.tables import check_rollouts
from tasks.files.chunks import Chunks, groups, skipped
from tasks.files.rollouts import FILE, chunk_ranks, header, plan
from tasks.files.selection import Selected
from tasks.run.fingerprint import inputs_of
from tasks.run.training import device


def run(config: Config, root: Path, hooks: Hooks, part: str | None = None) -> None:
    """Make the groups of `part`, or of every part in turn if None.

    Raises `Stopped` after a chunk. Errors: ValueError naming the key, file, metric or patch on bad
    input, or if no pair of a part gave a group.
    """
    known = config.rollout.parts
    if part is not None and part not in known:
        raise ValueError(f"rollout.parts has no part {part!r}; there is {', '.join(known)}")
    check_available(config.rollout.metrics)
    for name in known if part is None else [part]:
        _part(config, root, hooks, name)


def _part(config: Config, root: Path, hooks: Hooks, part: str) -> None:
    pairs, made_from = Selected(root), header(config, root)
    part_schema = schema(config.rollout, json.dumps(made_from, sort_keys=True))
    shares = chunk_ranks(len(pairs), config.rollout, part)
    own_ids = [pairs.ids[rank] for share in shares.values() for rank in share]
    settings = {
        **made_from,
        "metrics": versions(config.rollout.metrics),
        "rollout.batch": config.rollout.batch,
        paths.SELECTED: pairs.fingerprint(),
    }
    chunks = Chunks(
        paths.work(root, "rollout", part) / "chunks", inputs_of(__name__, settings), part_schema
    )

    @cache
    def model() -> NAOSD:  # loaded only if a chunk is missing
        model = NAOSD.from_pretrained(root / paths.NAOSD, base=root / config.model.base)
        return model.to(device(), base_dtype(config.rollout.precision))

    def make(share: range) -> Iterator[Group | Skipped]:
        return groups(model(), pairs[share.start : share.stop], config)

    left_out: dict[str, str] = {}
    done = 0
    for chunk, share in shares.items():
        table, is_new = chunks.get(chunk, partial(make, share))
        left_out |= _named(table, part)
        done += len(share)
        hooks.log(done - 1, {"of": len(own_ids), **_means(table), "skipped": len(left_out)})
        # Only after a new chunk: a resumed run that is stopped at once would otherwise make no
        # progress at all.
        if is_new and hooks.should_stop():
            raise Stopped(done)
    # The model or a metric is at fault. Chunks are kept by inputs, so the next run would read these
    # and fail again even after a repair that the inputs do not show.
    if own_ids and len(left_out) == len(own_ids):
        chunks.remove()
        raise ValueError(
            f"rollout {part}: all of its {len(own_ids)} pairs were left out; {own_ids[0]}: "
            f"{left_out[own_ids[0]]}; "
            f"check models/naosd, rollout.metrics and rollout.precision"
        )
    metadata = {"plan": json.dumps(plan(pairs, config.rollout)), "skipped": json.dumps(left_out)}
    with written_aside(root / paths.ROLLOUTS / part) as aside:
        aside.mkdir()
        chunks.join(aside / FILE, metadata)
        # While still aside: a set that does not pass its expectations never appears in data/.
        check_rollouts(aside, part, root, config.rollout, own_ids)
    chunks.remove()


def _named(chunk: pa.Table, part: str) -> dict[str, str]:
    """{pair id: why it gave no group} of a chunk; also written to stderr."""
    left_out = skipped(chunk.schema)
    for id_, reason in left_out.items():
        sys.stderr.write(f"gdpo-sr: rollout {part}: {id_} is left out, {reason}\n")
    return left_out


def _means(chunk: pa.Table) -> dict[str, float]:
    """The mean of every metric over the candidates of a chunk."""
    rows = chunk["metrics"].to_pylist()
    return {
        name: float(np.mean([scores[name] for scores in rows]))
        for name in (rows[0] if rows else ())
    }
