"""What stages are made from: the graph of dvc.yaml, and whether the results that one reads are
those of this commit.

    graph(root)             stage -> the stages whose outputs it reads, from dvc.yaml and
                            finetune.rollouts
    outdated(stages)        of those, what was never run, or with other code, parameters or inputs
                            than are here now
    check_inputs(...)       refuses to train or judge on top of that

Code and parameters are compared with the workspace. Outputs are not: those that lie there may be an
older pipeline's, or none, and `dvc pull --force` brings what the ledger (dvc.lock) names. What a
stage has read is compared with what its maker's entry in the same ledger says; a folder that is
several stages' outputs, or a part of one, has no hash there.
"""

import json
from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from flows.dvc.run import StageFailed, dvc_output
from flows.workplace import read_ledger
from tasks import params

Hashes = Mapping[str, str | None]  # path: md5 in the ledger


def graph(root: Path) -> dict[str, set[str]]:
    """The stages of dvc.yaml at `root` in an order that works: stage -> the stages whose outputs it
    reads.
    """
    edges: dict[str, set[str]] = {}
    for line in dvc_output(["dag", "--dot"], root).splitlines():
        names = [part.strip().strip('"') for part in line.strip().removesuffix(";").split("->")]
        if line.strip().startswith('"'):
            edges.setdefault(names[-1], set()).update(names[:-1])
    if params.read(root / "params.yaml").get("finetune", {}).get("rollouts") == "online":
        # It makes the groups itself, from pairs that dvc.yaml does not name: the stages that made
        # the rollouts stand for them.
        pairs = {stage for stage in edges if stage.partition("@")[0] in ("degrade", "select")}
        for stage in edges:
            edges[stage] |= pairs if stage.partition("@")[0] == "finetune" else set()
    return {stage: edges.get(stage, set()) for stage in TopologicalSorter(edges).static_order()}


def ancestors(edges: dict[str, set[str]], stages: Sequence[str]) -> list[str]:
    """`stages` and everything they are made from, in the order of `edges`."""
    wanted = set(stages)
    for stage in reversed(edges):
        if stage in wanted:
            wanted |= edges[stage]
    return [stage for stage in edges if stage in wanted]


def outdated(stages: Sequence[str], root: Path) -> dict[str, str]:
    """Those of `stages` that were never run, or with other code, parameters or inputs: {stage:
    which}, in the same order.

    stages: with all they are made from, so that what none of them makes is code.
    """
    known = read_ledger(root)
    made = {
        path: md5 for stage in stages for path, md5 in _hashes(known.get(stage, {}), "outs").items()
    }
    ran = [stage for stage in stages if stage in known]
    status = (
        json.loads(dvc_output(["status", "--json", *ran], root).splitlines()[-1]) if ran else {}
    )
    found = {}
    for stage in stages:
        if stage not in known:
            found[stage] = "it was never run"
        elif what := _changed(status.get(stage, []), _hashes(known[stage], "deps"), made):
            found[stage] = f"it was run with another {what}"
    return found


def check_inputs(
    what: str, stages: Sequence[str], edges: dict[str, set[str]], root: Path
) -> list[str]:
    """What `stages` read that is not of their own making; `StageFailed` if it is `outdated`, or
    made from what is.
    """
    inputs = sorted({name for stage in stages for name in edges[stage]} - set(stages))
    old = outdated(ancestors(edges, inputs), root)
    if old:
        stage, why = next(iter(old.items()))
        raise StageFailed(
            f"{what} reads what stage {stage} makes, but {why}: prefect deployment run "
            "gdpo-pipeline/head makes it anew"
        )
    return inputs


def _hashes(entry: Mapping[str, Any], which: str) -> dict[str, str | None]:
    return {file["path"]: file.get("md5") for file in entry.get(which, [])}


def _changed(entries: Sequence[Any], read: Hashes, made: Hashes) -> str:
    """The first parameter or file that differs, or "". entries: of a stage, in DVC's status; read,
    made: by the ledger.
    """
    if "changed command" in entries:
        return "command"
    for entry in entries:  # "changed outs" and "always changed" are no reason
        for path, state in entry.get("changed deps", {}).items() if isinstance(entry, dict) else ():
            if isinstance(state, dict):
                return next(iter(state))
            is_code = not any(_overlap(path, out) for out in made)
            if path not in read or (is_code and state in ("modified", "new")):
                return str(path)
    return next((path for path, md5 in read.items() if made.get(path, md5) != md5), "")


def _overlap(one: str, other: str) -> bool:
    """Whether one path is the other, or above it."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")
