"""CPU seconds that a process spends before it works: imports, and a small model loaded.

    OMP_NUM_THREADS=1 python -m benchmarks.startup        # median of 3 processes for each line

The ratio is of `from gdpo import NAOSD` to an import of the classes of diffusers, transformers and
peft, which a loaded model needs. CPU seconds of the whole process, so that other processes of the
machine count little.

Writes benchmarks/results/startup.json.
"""

import os
import statistics
import subprocess
import sys

from benchmarks.record import REPO, record

REPEATS = 3
PHOTO = REPO / "assets/photos/kodak/kodim01.webp"
CLASSES = (
    "from diffusers import AutoencoderKL, UNet2DConditionModel\n"
    "from peft import LoraConfig\n"
    "from transformers import CLIPTextModel"
)
PROGRAMS = {
    "python alone": "",
    "torch": "import torch",
    "from gdpo import NAOSD": "from gdpo import NAOSD",
    "classes of the libraries": CLASSES,
    "NAOSD loaded": (
        f"from gdpo import NAOSD\nNAOSD.from_pretrained({str(REPO / 'assets' / 'tiny-sd')!r})"
    ),
    "gdpo-sr upscale": (
        "import sys, tempfile\nfrom PIL import Image\nfolder = tempfile.mkdtemp()\n"
        f"Image.open({str(PHOTO)!r}).crop((0, 0, 96, 64)).save(folder + '/small.png')\n"
        "sys.argv[1:] = ['upscale', folder + '/small.png', '-o', folder + '/large.png']\n"
        "from tasks.__main__ import main\nsys.exit(main())"
    ),
    "gdpo-sr --help": (
        "import sys\nsys.argv[1:] = ['--help']\nfrom tasks.__main__ import main\nmain()"
    ),
}


def seconds(program: str) -> float:
    """User and system seconds of a process that runs `program`."""
    before = os.times()
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=REPO, capture_output=True, check=True
    )
    after = os.times()
    return (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )


def main() -> int:
    """Measure every program, print the seconds and the ratio, and write."""
    measured = {
        name: round(statistics.median(seconds(program) for _ in range(REPEATS)), 2)
        for name, program in PROGRAMS.items()
    }
    ratio = measured["classes of the libraries"] / measured["from gdpo import NAOSD"]
    for name, value in measured.items():
        print(f"{name:26} {value:6.2f} CPU s")
    print(f"importing the classes costs {ratio:.1f} times the import of NAOSD")
    record("startup", {"cpu_seconds": measured, "ratio": round(ratio, 2)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
