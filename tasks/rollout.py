"""Stage `rollout`: G scored candidates per selected patch by the frozen NAOSD -> data/rollouts/00000.parquet.

Interrupted, it starts again: a rollout set of the sample profile takes a minute, and nothing half-written is left.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gdpo.config import Config
from gdpo.data.shards import Pair, Shards
from gdpo.model.checkpoints import load_model
from gdpo.preference.rollout import Group, rollout, schema, to_row
from gdpo.rewards.metrics import check_available
from gdpo.training import Hooks, Stopped, written_aside
from tasks.checks import check_rollouts
from tasks.runs import device, fingerprint

ROW_GROUP = 64


def header(config: Config, root: Path) -> dict[str, object]:
    """What a rollout set depends on; `finetune` refuses a set whose header differs from the present one."""
    return {
        "seed": config.seed,
        "rollout": config.rollout.model_dump(),
        "training_prompt": config.model.training_prompt,
        "reference": fingerprint({}, [root / "models/naosd"]),
    }


def run(config: Config, root: Path, hooks: Hooks) -> None:
    """Make the rollouts of data/selected/manifest.parquet. Errors: ValueError naming the file, metric or patch."""
    settings = config.rollout
    check_available([*settings.fidelity, *settings.perception])
    pairs = _selected(root)
    model = load_model(root / "models/naosd", root / config.model.base).to(device())
    described = schema(settings, json.dumps(header(config, root), sort_keys=True))
    with written_aside(root / "data/rollouts") as part:
        part.mkdir()
        with pq.ParquetWriter(part / "00000.parquet", described, compression="zstd") as writer:
            rows = []
            for done, group in enumerate(_groups(model, pairs, config), start=1):
                if hooks.should_stop():
                    raise Stopped(done)
                rows.append(to_row(group))
                hooks.log(done - 1, {"reward": sum(group.reward) / len(group.reward)})
                if len(rows) == ROW_GROUP or done == len(pairs):
                    writer.write_table(pa.Table.from_pylist(rows, schema=described))
                    rows = []
        check_rollouts(part, root, settings)


def _groups(model: object, pairs: list[Pair], config: Config) -> Iterator[Group]:
    """Groups in the order of the manifest; consecutive pairs of one size share a forward pass."""
    at_once = max(1, config.rollout.batch // config.rollout.group)
    start = 0
    while start < len(pairs):
        batch = [pairs[start]]
        for pair in pairs[start + 1 : start + at_once]:
            if pair.hr.shape != batch[0].hr.shape:
                break
            batch.append(pair)
        prompt = config.model.training_prompt
        yield from rollout(model, batch, config.rollout, seed=config.seed, prompt=prompt)  # type: ignore[arg-type]
        start += len(batch)


def _selected(root: Path) -> list[Pair]:
    """The pairs of the manifest, in rank order."""
    path = root / "data/selected/manifest.parquet"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run the select stage")
    shards = Shards(root / "data/shards/train")
    index = {id_: i for i, id_ in enumerate(shards.ids)}
    try:
        ids = pq.read_table(path, columns=["id"]).column("id").to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: damaged manifest ({error}); run the select stage again") from error
    missing = [id_ for id_ in ids if id_ not in index]
    if missing:
        raise ValueError(f"{path}: patch {missing[0]} is not in data/shards/train; run the select stage again")
    return [shards[index[id_]] for id_ in ids]
