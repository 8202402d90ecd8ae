"""One GDPO step in time and memory: as released, ours with rollouts in the loop, ours from cached
rollouts.

    OMP_NUM_THREADS=1 python -m benchmarks.rl_step [--rounds 5]         # a CPU: half of
    SD2.1-base's widths, 128 px
    python -m benchmarks.rl_step --size sd2.1 [--rounds 20]             # a GPU with 80 GB:
    SD2.1-base, 512 px

    released    benchmarks/released_step.py, which says what it leaves out
    online      the step of `finetune` with rollouts: online
    cached      the same from the rollouts that the stage stores
    ...-lr      both with rollout.input: lr, where one pass serves a group

A step is one LR image with G = 6 candidates, as on each GPU of the release. The five take turns in
one process, medians are compared: of the processor time of one thread on a CPU, so that a busy
machine disturbs little, of wall time on a GPU. Random weights (benchmarks/rl_variants.py) take the
time of trained ones. On a
CPU everything is fp32 and the reward PSNR and NIQE: MANIQA would dominate the first two alike.
Memory is measured in a process of its own for each.

Also counted: multiply-accumulates, and for steps of 1 and of 8 LR images what waits for the device,
and the modules and adapters that Python walks through. Writes benchmarks/results/rl_step.json, or
rl_step_sd2.1.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.record import REPO, record
from benchmarks.rl_variants import (
    GROUP,
    SIZES,
    VARIANTS,
    Size,
    Variant,
    networks,
    prepare,
    random_rewards,
    write_rollouts,
)
from gdpo.config import Lora
from gdpo.cost import architectures
from gdpo.cost import count as cost
from gdpo.metrics.table import metric
from gdpo.model.adapters import Roles, unet_targets

TARGETS = {"online": 1.5, "cached": 5.0, "online-lr": 1.5, "cached-lr": 15.0}
MANY = 8  # LR images of the larger step whose waits are counted
READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
}
WALKS = {"named_modules", "named_parameters", "set_adapter", "enable_adapters"}


def wait() -> None:
    """Until the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(variants: dict[str, Variant], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Wall and processor time of each round's step; the variants take turns."""
    spent: dict[str, dict[str, list[float]]] = {
        name: {"wall": [], "processor": []} for name in variants
    }
    for i in range(rounds):
        for name, variant in variants.items():
            wait()
            wall, processor = time.perf_counter(), time.process_time()
            variant.step(i + 1)
            wait()
            spent[name]["wall"].append(round(time.perf_counter() - wall, 4))
            spent[name]["processor"].append(round(time.process_time() - processor, 4))
    return spent


class Waits(TorchDispatchMode):
    """Counts values read back from the device, and tensors copied from it to the host.

    On a CPU a tensor passes for one on the device if it follows from the weights; `tolist` cannot
    be seen there.
    """

    count = 0

    def __init__(self, held: list[nn.Module]) -> None:
        super().__init__()
        for part in held:
            for tensor in (*part.parameters(), *part.buffers()):
                vars(tensor)["follows"] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = any(x.is_cuda or "follows" in vars(x) for x in given)
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.count += any(y.is_cuda for y in given) and not x.is_cuda
                if there:
                    vars(x)["follows"] = True
        self.count += there and func in READS
        return out


def counted(variant: Variant) -> dict[str, int]:
    """In one step: waits for the device, and modules and adapters that Python walks through."""
    walked = 0

    def note(frame: Any, event: str, _: Any) -> None:
        nonlocal walked
        walked += event == "call" and frame.f_code.co_name in WALKS

    with Waits(variant.held) as waits:
        sys.setprofile(note)
        try:
            variant.step(0)
        finally:
            sys.setprofile(None)
    return {"waits": waits.count, "walked": walked}


def outside(variant: Variant) -> float:
    """Share of a profiled step in which no operator of torch runs; on a GPU, in which the GPU does
    nothing.
    """
    gpu = torch.cuda.is_available()
    with profile(
        activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * gpu], acc_events=True
    ) as profiled:
        wait()
        start = time.perf_counter()
        variant.step(3)
        wait()
        wall = time.perf_counter() - start
    busy = sum(
        e.self_device_time_total if gpu else e.self_cpu_time_total for e in profiled.key_averages()
    )
    return 1 - busy / 1e6 / wall


def resident(what: str) -> int:
    """Bytes of this process in memory: now (VmRSS) or at most (VmHWM; getrusage would begin with
    the parent's).
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def memory(name: str, size: Size, file: Path) -> dict[str, int]:
    """Bytes of two steps in this process, without what importing took: kept between steps, and at
    most.
    """
    imported = resident("VmRSS")
    variant = prepare(name, size, file)
    for i in range(2):
        variant.step(i)
    peak = (
        torch.cuda.max_memory_allocated()
        if torch.cuda.is_available()
        else resident("VmHWM") - imported
    )
    return {"static": variant.static(), "peak": peak}


def static_sd21() -> dict[str, int]:
    """Bytes that a process keeps for SD2.1-base: parameters, and of the adapters their AdamW state
    (12 bytes each in all).

    released: two UNets, VAE, text encoder, MUSIQ and MANIQA in fp32, RAM in fp16. Ours: one UNet,
    VAE and text encoder in bf16; online also MUSIQ and MANIQA in fp32. The tags of ours are another
    stage's work. RAM is loaded whole: tag encoder and text decoder, which never run, included.
    """
    static = architectures.sd21()
    assert static.tagger is not None
    tagger = cost.parameters(static.tagger) + architectures.RAM_NEVER_RUN
    rewards = cost.parameters(*architectures.reward_networks().values())
    unet, other = cost.parameters(static.unet), cost.parameters(static.vae, static.text_encoder)
    roles = Roles(static.unet, unet_targets(static.unet))
    roles.add("policy", Lora(), seed=0)
    adapters = 12 * sum(p.numel() for p in roles.parameters("policy").values())
    one = 2 * (unet + other) + adapters
    return {
        "released": 4 * (2 * unet + other + rewards) + 2 * tagger + adapters,
        "online": one + 4 * rewards,
        "cached": one,
    }


def each_counted(size: Size, file: Path, batch: int) -> dict[str, dict[str, int]]:
    """`counted` of ours; on a CPU at a sixteenth of the widths, which changes no count."""
    if size.device == "cpu":
        size, file = replace(size, divisor=16, side=64), file.with_name("small.parquet")
        write_rollouts(size, file)
    return {name: counted(prepare(name, size, file, batch)) for name in TARGETS}


def measure(size: Size, rounds: int, file: Path) -> dict[str, Any]:
    """Everything but the memory. The step that is counted is the first, which is not timed."""
    variants = {name: prepare(name, size, file) for name in VARIANTS}
    macs = {name: cost.count(partial(variant.step, 0)).total for name, variant in variants.items()}
    spent = seconds(variants, rounds)
    clock = "processor" if size.device == "cpu" else "wall"
    median = {name: statistics.median(values[clock]) for name, values in spent.items()}
    return {
        "seconds": spent,
        "compared": clock,
        "median": median,
        "faster": {name: round(median["released"] / median[name], 2) for name in VARIANTS},
        "targets": TARGETS,
        "macs": macs,
        "outside": {name: round(outside(variant), 3) for name, variant in variants.items()},
        "per_step": {str(batch): each_counted(size, file, batch) for batch in (1, MANY)},
    }


def described(size: Size) -> dict[str, Any]:
    """The model and the machine."""
    with torch.device("meta"):
        models = networks(size.divisor)
    parts = {"UNet": models.unet, "VAE": models.vae, "text encoder": models.text_encoder}
    return {
        "widths": f"SD2.1-base / {size.divisor}",
        "side": size.side,
        "group": GROUP,
        "reward": ["psnr_y", *size.perception],
        "precision": size.precision,
        "parameters": {name: cost.parameters(part) for name, part in parts.items()},
        "device": torch.cuda.get_device_name()
        if size.device == "cuda"
        else f"CPU, {torch.get_num_threads()} thread",
        "versions": {
            name: version(name) for name in ("torch", "diffusers", "peft", "transformers")
        },
    }


def main() -> None:
    """Measure, print the table, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="half")
    parser.add_argument("--rounds", type=int, default=5)
    # Of this script's own processes.
    parser.add_argument("--memory", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--rollouts", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = SIZES[args.size]
    if args.memory:
        print(json.dumps(memory(args.memory, size, args.rollouts)))
        return
    if size.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--size {args.size} needs a GPU, and torch sees none")
    if size.device == "cpu" and torch.get_num_threads() != 1:
        parser.error("one thread is measured: set OMP_NUM_THREADS=1")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "rollouts.parquet"
        if any(metric(name).pyiqa for name in size.perception):
            random_rewards(Path(scratch))
        write_rollouts(size, file)
        results = {}
        for name in VARIANTS:
            command = [
                sys.executable,
                "-m",
                "benchmarks.rl_step",
                "--size",
                args.size,
                "--memory",
                name,
                "--rollouts",
                file,
            ]
            done = subprocess.run(command, cwd=REPO, check=True, stdout=subprocess.PIPE, text=True)
            results[name] = json.loads(done.stdout.splitlines()[-1])
        measured = described(size) | measure(size, args.rounds, file)
    measured |= {"memory": results, "static_sd2.1": static_sd21()}
    record("rl_step" if args.size == "half" else f"rl_step_{args.size}", measured)
    show(measured)


def show(measured: dict[str, Any]) -> None:
    """The table."""
    print(
        f"{'':10}{'s/step':>9}{'faster':>8}{'TMAC':>8}{'static MB':>11}{'peak MB':>9}"
        f"{'SD2.1 static MB':>17}{'part':>6}"
    )
    for name in VARIANTS:
        faster, memory_of, full = (
            measured["faster"][name],
            measured["memory"][name],
            measured["static_sd2.1"],
        )
        kept = full[name.partition("-")[0]]
        print(
            f"{name:10}{measured['median'][name]:9.3f}{faster:8.2f}"
            f"{measured['macs'][name] / 1e12:8.3f}"
            f"{memory_of['static'] / 1e6:11.0f}{memory_of['peak'] / 1e6:9.0f}{kept / 1e6:17.0f}"
            f"{kept / full['released']:6.2f}"
        )
    for batch, per_step in measured["per_step"].items():
        print(f"step of {batch}: {per_step}")
    print(f"outside of torch's operators: {measured['outside']}")


if __name__ == "__main__":
    main()
