"""The stage graph of dvc.yaml, and whether a stage's inputs were made with this commit's code.

    graph(root)         stage -> the stages whose outputs it reads, from dvc.yaml and
                        finetune.rollouts
    outdated(stages)    the stages that were never run, or were run with other code, parameters or
                        inputs than this clone has
    check_inputs(...)   refuses to train or evaluate from outdated inputs

Code and parameters are compared with the workspace. Outputs are not: the workspace may hold an
older pipeline's outputs or none, and `dvc pull --force` fetches those named in dvc.lock. Instead,
the hash of each input in a stage's lock entry is compared with the lock entry of the stage that
made it. A folder that consists of several stages' outputs, or is part of one output, has no hash
there and is not compared.
"""

import json
from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from flows.dvc.run import StageFailed, dvc_output
from flows.workplace import read_lock_entries
from tasks import params
from tasks.commands import STAGES, command_of

Hashes = Mapping[str, str | None]  # path: md5 in dvc.lock


def graph(root: Path) -> dict[str, set[str]]:
    """The stages of dvc.yaml in topological order: stage -> the stages whose outputs it reads."""
    edges: dict[str, set[str]] = {}
    for line in dvc_output(["dag", "--dot"], root).splitlines():
        # `dvc dag` has no JSON; a line of its DOT output is a stage, or an arrow from a stage to a
        # reader.
        names = [part.strip().strip('"') for part in line.strip().removesuffix(";").split("->")]
        if line.strip().startswith('"'):
            edges.setdefault(names[-1], set()).update(names[:-1])
    if params.read(root / "params.yaml").get("finetune", {}).get("rollouts") == "online":
        # Online fine-tuning makes the groups itself, from pairs that are not among its dependencies
        # in dvc.yaml. Add the stages that make and select those pairs.
        pairs = {stage for stage in edges if stage.partition("@")[0] in ("degrade", "select")}
        for stage in edges:
            edges[stage] |= pairs if stage.partition("@")[0] == "finetune" else set()
    return {stage: edges.get(stage, set()) for stage in TopologicalSorter(edges).static_order()}


def ancestors(edges: dict[str, set[str]], stages: Sequence[str]) -> list[str]:
    """`stages` and all stages they depend on, in the order of `edges`."""
    wanted = set(stages)
    for stage in reversed(edges):
        if stage in wanted:
            wanted |= edges[stage]
    return [stage for stage in edges if stage in wanted]


def stages_of(edges: dict[str, set[str]], system: str) -> dict[str, set[str]]:
    """The part of the graph that makes a system: its stages and all that they depend on.

    Stages that are none of ours count as GDPO-SR's.
    """
    stages = {stage: STAGES.get(command_of(stage)) for stage in edges}
    wanted = [s for s, stage in stages.items() if (stage.system if stage else "gdpo") == system]
    return {stage: edges[stage] for stage in ancestors(edges, wanted)}


def outdated(stages: Sequence[str], root: Path) -> dict[str, str]:
    """The stages never run, or run with other code, parameters or inputs: {stage: reason}.

    stages: must include every stage they depend on, because a file that none of them makes counts
    as code. The result is in the same order.
    """
    known = read_lock_entries(root)
    outputs = {
        path: md5 for stage in stages for path, md5 in _hashes(known.get(stage, {}), "outs").items()
    }
    ran = [stage for stage in stages if stage in known]
    # One call for all stages: every start of dvc costs seconds.
    status = (
        json.loads(dvc_output(["status", "--json", *ran], root).splitlines()[-1]) if ran else {}
    )
    reasons = {}
    for stage in stages:
        if stage not in known:
            reasons[stage] = "it has never run"
        elif what := _changed(status.get(stage, []), _hashes(known[stage], "deps"), outputs):
            reasons[stage] = f"{what} has changed since it ran"
    return reasons


def check_inputs(
    what: str, stages: Sequence[str], edges: dict[str, set[str]], root: Path
) -> list[str]:
    """The other stages whose outputs `stages` read.

    `StageFailed` if one of them, or a stage it depends on, is `outdated`. what: names the reader in
    the message.
    """
    inputs = sorted({name for stage in stages for name in edges[stage]} - set(stages))
    old = outdated(ancestors(edges, inputs), root)
    if old:
        stage, why = next(iter(old.items()))
        raise StageFailed(
            f"{what} reads the outputs of stage {stage}, but {why}; run: "
            "prefect deployment run gdpo-pipeline/head"
        )
    return inputs


def _hashes(entry: Mapping[str, Any], which: str) -> dict[str, str | None]:
    return {file["path"]: file.get("md5") for file in entry.get(which, [])}


def _changed(entries: Sequence[Any], read: Hashes, outputs: Hashes) -> str:
    """The first parameter or file that differs, or "".

    entries: a stage in the output of `dvc status`. read: the stage's dependencies in dvc.lock.
    outputs: all stages' outputs in dvc.lock.
    """
    if "changed command" in entries:
        return "command"
    for entry in entries:  # "changed outs" and "always changed" do not make a stage outdated
        for path, state in entry.get("changed deps", {}).items() if isinstance(entry, dict) else ():
            if isinstance(state, dict):  # params.yaml: {parameter: state}
                return next(iter(state))
            is_code = not any(_overlap(path, out) for out in outputs)
            # Data may be absent or old in this clone, which `dvc pull` repairs; code must be what
            # it was.
            if path not in read or (is_code and state in ("modified", "new")):
                return str(path)
    return next((path for path, md5 in read.items() if outputs.get(path, md5) != md5), "")


def _overlap(one: str, other: str) -> bool:
    """Whether the paths are equal, or one contains the other."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")
