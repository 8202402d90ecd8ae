"""Stage `finetune`: GDPO on the rollouts -> models/gdpo, or its control -> models/control (shuffled advantages)."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gdpo.config import Config
from gdpo.model.checkpoints import load_model, read_adapters, save_model
from gdpo.preference.loop import finetune
from gdpo.preference.rollout import Group, from_row
from gdpo.training import Hooks
from gdpo.world import current
from tasks.rollout import header
from tasks.runs import device, fingerprint, write_history


def run(config: Config, root: Path, hooks: Hooks, name: str = "gdpo") -> None:
    """Train `name` ("gdpo" or "control") and write its model folder and history.

    Errors: ValueError naming the file or key; `Stopped` after a checkpoint in work/finetune/<name>.
    """
    groups = read_rollouts(config, root)
    base, naosd = root / config.model.base, root / "models/naosd"
    model = load_model(naosd, base).to(device())
    work = root / "work/finetune" / name
    settings = {
        "name": name,
        "seed": config.seed,
        "finetune": config.finetune.model_dump(),
        "header": header(config, root),
    }
    adapters, history = finetune(
        model, groups, config, control=name == "control", folder=work,
        fingerprint=fingerprint(settings, [root / "data/rollouts"]), hooks=hooks,
    )  # fmt: skip
    if not current().leads:
        return
    write_history(root / "reports/finetune" / name, history)
    chain = [*read_adapters(naosd), adapters]
    save_model(root / "models" / name, base, chain, t_add=model.t_add, t_diff=model.t_diff, prompt=model.prompt)
    (work / "checkpoint.pt").unlink(missing_ok=True)


def read_rollouts(config: Config, root: Path) -> list[Group]:
    """The rollout set of the present seed, reference and rollout settings; any other is refused by name."""
    paths = sorted((root / "data/rollouts").glob("*.parquet"))
    if not paths:
        raise ValueError(f"{root / 'data/rollouts'}: no rollouts here; run the rollout stage")
    wanted = header(config, root)
    groups: list[Group] = []
    for path in paths:
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{path}: damaged rollouts ({error}); run the rollout stage again") from error
        found = json.loads((table.schema.metadata or {}).get(b"rollout", b"{}"))
        for key, value in wanted.items():
            if found.get(key) != value:
                raise ValueError(f"{path}: made with another {key} than the present one; run the rollout stage again")
        groups += [from_row(row) for row in table.to_pylist()]
    return groups
