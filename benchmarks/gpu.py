"""What only a GPU can show, by one command in at most 20 minutes, without a network.

    python -m benchmarks.gpu                             # SD2.1-base's size, random weights
    python -m benchmarks.gpu --size tiny --repeats 1     # the same code on a CPU

    inference   NAOSD on 512 x 512 pixels, batch 1 and 8: milliseconds of a call as loaded, with
                channels-last weights, and compiled (UNet and VAE decoder, dynamic shapes off)
    tiled       `upscale` of 960 x 540 to 3840 x 2160: seconds and peak memory
    rollout     candidates per second of one forward pass of the rollout stage
    pretrain    seconds and peak memory of one step at batch 4
    ranks       bf16 against fp32: groups whose best or worst candidate by PSNR changes
    rl_step     seconds and memory of a step as released, online, cached, and both with the
                candidates' own state (...-lr); benchmarks/rl_step.py compares them at length
    two_processes   a training of more processes than there are cards is refused
    tests       the tests that take a device, there

Random weights take the time of trained ones; `ranks` of random weights shows how the arithmetic
rounds. A part that fails is written down with its error, and the others go on. Writes gpu.json
after every part, and prints a table at the end.
"""

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import REPO, RESULTS, record
from benchmarks.rl_step import resident, wait
from benchmarks.rl_variants import (
    SIZES,
    VARIANTS,
    Size,
    Variant,
    configured,
    model,
    pairs,
    prepare,
    random_rewards,
    write_rollouts,
)
from gdpo.data.shards import Shards
from gdpo.data.writer import write_shards
from gdpo.errors import one_line
from gdpo.metrics.score import _built
from gdpo.metrics.table import metric
from gdpo.model.naosd import NAOSD
from gdpo.preference.group import Group
from gdpo.preference.rollout import rollout
from gdpo.pretrain.loop import _Run
from gdpo.seeds import numpy_generator, torch_generator
from gdpo.upscale.pipeline import upscale
from tasks.run.exit_codes import NEEDS_GPU

GPU_SIZES = {
    "sd2.1": SIZES["sd2.1"],
    # One layer: tracing the layers of SD2.1-base for torch.compile would take minutes on a CPU.
    "tiny": replace(SIZES["half"], divisor=16, side=64, layers=1),
}
BATCHES = (1, 8)
PRETRAIN_BATCH = 4
UHD = (540, 960)  # times 4: 3840 x 2160


def timed(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call after one that warms up."""
    spent = []
    for _ in range(repeats + 1):
        wait()
        start = time.perf_counter()
        work()
        wait()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent[1:])


def peak(work: Callable[[], object]) -> int:
    """Bytes that the GPU held at most during a call; on a CPU, the process until its end."""
    if not torch.cuda.is_available():
        work()
        return resident("VmHWM")
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated()


def inference(size: Size, repeats: int) -> dict[str, Any]:
    """Milliseconds of a forward pass, prompt embedding included, by batch and treatment."""
    base = model(size).to(size.base)
    plain = {str(batch): milliseconds(base, size, batch, repeats) for batch in BATCHES}
    for part in (base.unet, base.vae):
        part.to(memory_format=torch.channels_last)
    last = {str(batch): milliseconds(base, size, batch, repeats) for batch in BATCHES}
    # On a CPU the part shows that the code can be traced; generating code would take minutes.
    backend = "inductor" if size.device == "cuda" else "eager"
    for part in (base.unet, base.vae.decoder):
        part.compile(dynamic=False, backend=backend)
    compiled = {str(batch): milliseconds(base, size, batch, repeats) for batch in BATCHES}
    torch.compiler.reset()  # its caches hold the model
    gain = {batch: round(plain[batch] / compiled[batch], 2) for batch in plain}
    return {
        "as_loaded_ms": plain,
        "channels_last_ms": last,
        "compiled_ms": compiled,
        "compile_gain": gain,
    }


@torch.no_grad()
def milliseconds(base: NAOSD, size: Size, batch: int, repeats: int) -> float:
    """Of one forward pass of `batch` images of the size's side."""
    generator = torch_generator("gpu", batch)
    x = torch.rand(batch, 3, size.side, size.side, generator=generator) * 2 - 1
    shape = (2, batch, *base.latent_shape(size.side, size.side))
    noise, posterior = torch.randn(shape, generator=generator)
    x, noise, posterior = (one.to(size.device, size.base) for one in (x, noise, posterior))
    spent = timed(lambda: base(x, base.embed([base.prompt]), noise, posterior), repeats)
    return round(1e3 * spent, 2)


def tiled(size: Size, repeats: int) -> dict[str, Any]:
    """An `upscale` to 3840 x 2160 pixels; on a CPU to a tenth of the sides."""
    base = model(size).to(size.base)
    sides = UHD if size.device == "cuda" else tuple(side // 10 for side in UHD)
    photo = numpy_generator("gpu", "tiled").integers(0, 256, (*sides, 3)).astype(np.uint8)
    held = peak(lambda: upscale(base, photo))
    return {
        "output": [4 * side for side in sides],
        "seconds": round(timed(lambda: upscale(base, photo), min(repeats, 2)), 3),
        "peak_bytes": held,
    }


def candidates(size: Size, repeats: int) -> dict[str, Any]:
    """Candidates per second of the rollout stage, reward PSNR alone."""
    base, config, given = model(size).to(size.base), psnr_only(size), pairs(size.side)[:4]
    spent = timed(lambda: list(rollout(base, given, config)), repeats)
    return {"candidates_per_s": round(len(given) * config.rollout.group / spent, 2)}


def psnr_only(size: Size) -> Any:
    """The size's configuration with a reward that needs no network."""
    config = configured(size)
    one = config.rollout.model_copy(update={"metrics": ["psnr_y"]})
    return config.model_copy(update={"rollout": one})


def pretraining(size: Size, repeats: int) -> dict[str, Any]:
    """One step of pretraining: policy, VSD and fake score, LPIPS left out (its weights are not
    there).
    """
    config = configured(size)
    settings = config.pretrain.model_copy(
        update={
            "batch": PRETRAIN_BATCH,
            "perceptual": "structure",
            "precision": size.precision,
        }
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "train"
        write_shards(folder, pairs(size.side), 64.0)
        chosen = config.model_copy(update={"pretrain": settings})
        run = _Run(model(size), Shards(folder), chosen, None)
        held = peak(lambda: run.step(0))
        spent = timed(lambda: run.step(1), repeats)
    return {"batch": PRETRAIN_BATCH, "seconds": round(spent, 4), "peak_bytes": held}


def ranks(size: Size, repeats: int) -> dict[str, Any]:
    """Groups whose best or worst candidate is another one in bf16 than in fp32."""
    del repeats
    given, scores = pairs(size.side), {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        base, config = model(size).to(dtype), psnr_only(replace(size, precision=precision))
        scores[dtype] = [raw(group) for pair in given for group in rollout(base, [pair], config)]
    both = list(zip(*scores.values(), strict=True))
    return {
        "groups": len(both),
        "best_changes": sum(int(a.argmax() != b.argmax()) for a, b in both),
        "worst_changes": sum(int(a.argmin() != b.argmin()) for a, b in both),
        "largest_difference_db": round(float(max(np.abs(a - b).max() for a, b in both)), 4),
    }


def raw(group: Any) -> np.ndarray:
    """PSNR of a group's candidates in dB."""
    if not isinstance(group, Group):
        raise ValueError(f"{group}: a group was skipped")
    return np.asarray(group.metrics["psnr_y"])


def rl_step(size: Size, repeats: int) -> dict[str, Any]:
    """A step of each variant of benchmarks/rl_variants.py; ...-lr: the candidates' own state."""
    measured: dict[str, Any] = {}
    home = os.environ.get("TORCH_HOME")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "rollouts.parquet"
            if any(metric(name).pyiqa for name in size.perception):
                random_rewards(Path(scratch))
            write_rollouts(size, file)
            for name in VARIANTS:
                _built.cache_clear()  # reward networks that this variant may not need
                freed()
                measured[name] = one_step(prepare(name, size, file), repeats)
                print(f"  {name} {measured[name]}", flush=True)
    finally:
        os.environ.pop("TORCH_HOME", None)
        if home is not None:
            os.environ["TORCH_HOME"] = home
    return measured


def one_step(variant: Variant, repeats: int) -> dict[str, Any]:
    """Seconds of a step, bytes kept between steps and bytes held at most."""
    held = peak(lambda: [variant.step(i) for i in range(2)])
    spent = timed(lambda: variant.step(2), repeats)
    return {"seconds": round(spent, 4), "static_bytes": variant.static(), "peak_bytes": held}


def two_processes(size: Size, repeats: int) -> dict[str, Any]:
    """A training on one process more than there are GPUs; it must be refused with exit code 3."""
    del size, repeats
    more = max(2, torch.cuda.device_count() + 1)
    settings = ["--set", "allow_cpu=false", "--set", f"finetune.gpus={more}"]
    params = ["--params", "tests/params.yaml"]
    code, lines = ran([sys.executable, "-m", "tasks", "finetune", *params, *settings])
    if code != NEEDS_GPU:
        raise ValueError(f"exit code {code}, not {NEEDS_GPU}: {lines[-1]}")
    return {"exit": code, "says": lines[0]}


def device_tests(size: Size, repeats: int) -> dict[str, Any]:
    """The tests with the `device` fixture, on the GPU."""
    del repeats
    if size.device == "cpu":
        return {"left_out": "`make test` runs them on a CPU"}
    code, lines = ran([sys.executable, "-m", "pytest", "-q", "--device", "cuda", "tests/gdpo"])
    return {"exit": code, "last_line": lines[-1]}


def ran(command: list[str]) -> tuple[int, list[str]]:
    """Exit code and lines of a process, at least one."""
    done = subprocess.run(
        command, cwd=REPO, env=os.environ, capture_output=True, text=True, check=False
    )
    return done.returncode, (done.stdout + done.stderr).strip().splitlines() or [""]


PARTS: dict[str, Callable[[Size, int], dict[str, Any]]] = {
    "inference": inference,
    "tiled": tiled,
    "rollout": candidates,
    "pretrain": pretraining,
    "ranks": ranks,
    "rl_step": rl_step,
    "two_processes": two_processes,
    "tests": device_tests,
}


def freed() -> None:
    """Give back what earlier work left, so that it counts in no peak."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def rows(measured: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The figures by their path in the nested results, such as `inference.compiled_ms.8`."""
    flat: dict[str, Any] = {}
    for name, value in measured.items():
        path = f"{prefix}{name}"
        flat |= rows(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return flat


def measure(size: Size, repeats: int, parts: list[str], out: Path | None) -> dict[str, Any]:
    """All parts; an error of one is its result. out: folder of gpu.json; None: not written."""
    device = torch.cuda.get_device_name() if size.device == "cuda" else "CPU"
    measured: dict[str, Any] = {"device": device, "torch": torch.__version__, "side": size.side}
    for name in parts:
        print(f"{name} ...", flush=True)
        freed()
        start = time.perf_counter()
        try:
            measured[name] = PARTS[name](size, repeats)
        except Exception as error:  # a GPU is lent for minutes: the other parts go on
            measured[name] = {"error": one_line(error)}
        measured[name]["took_s"] = round(time.perf_counter() - start, 1)
        print(name, measured[name], flush=True)
        if out is not None:
            record("gpu", measured, out)
    return measured


def main() -> int:
    """Measure on the GPU, or the same code on a CPU at tiny size; print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=GPU_SIZES, default="sd2.1")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of gpu.json (benchmarks/results; --size tiny writes none unless it is named)",
    )
    args = parser.parse_args()
    size = GPU_SIZES[args.size]
    if size.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--size {args.size} needs a GPU, and torch sees none")
    out = args.out or (RESULTS if size.device == "cuda" else None)
    measured = measure(size, args.repeats, args.parts, out)
    print("| figure | value |\n| --- | --- |")
    for name, value in rows(measured).items():
        print(f"| {name} | {value} |")
    return int(any("error" in measured[name] for name in args.parts))


if __name__ == "__main__":
    sys.exit(main())
