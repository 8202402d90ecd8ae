"""docs/host.md, "one host, 8 GPUs": the commands exist, and its path from files to tables works on
small ones, released weights and one's own pairs included.
"""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from gdpo.images import resize_bicubic, write_png
from gdpo.model.checkpoints import read_adapters
from tasks.__main__ import build_parser, main
from tasks.commands import STAGES
from tests.gdpo.released.released_files import fabricate, write_base
from tests.tasks.photos import photo

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/host.md").read_text()
# The paper's profile in its shape, small: parts, pairs, a limit, no held-out photographs.
SMALL = {
    "allow_cpu": True,
    "fetch": {"base": ["gone", "mirror"]},
    "model": {"base": "models/sd2.1-base"},
    "degrade": {
        "train": [{"path": "photos/mine/HR", "lr": "photos/mine/LR"}, {"path": "photos/LSDIR"}],
        "evaluation": [],
        "parts": ["00", "01"],
        "crop": 32,
        "stride": 16,
        "pairs": 20,
    },
    "pretrain": {"init": "models/released", "steps": 0, "lora": {"rank": 4, "alpha": 8}},
    "select": {"rule": "quality", "score": "niqe", "count": 4, "min_detail": 0.0},
    "reward": {"fidelity": ["psnr_y"], "perception": ["ssim_y"]},
    "rollout": {"parts": ["00"], "group": 2, "metrics": ["psnr_y", "ssim_y"], "noises": 1},
    "finetune": {
        "steps": 2,
        "batch": 2,
        "validation": {"photographs": None},
        "lora": {"rank": 4, "alpha": 8},
    },
    "evaluate": {
        "benchmarks": ["realsr"],
        "pairs": {"realsr": {"lr": "photos/pairs/LR", "hr": "photos/pairs/HR"}},
        "noises": 2,
        "metrics": ["psnr_y", "ssim_y"],
    },
}


def commands() -> list[list[str]]:
    """The words of every `gdpo-sr` command of the page."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    lines = [line.partition("#")[0] for block in blocks for line in block.splitlines()]
    return [line.split()[1:] for line in lines if line.startswith("gdpo-sr ")]


def test_the_first_block_is_ten_commands_that_exist() -> None:
    first = re.findall(r"```sh\n(.*?)```", PAGE, re.S)[0].strip().splitlines()
    assert len(first) == 10
    assert len(commands()) >= 7
    for words in commands():
        build_parser(words[0]).parse_args(words)


def write_folders(place: Path) -> None:
    """Photographs for training, pairs of one's own, and a benchmark of pairs."""
    for i in range(4):
        write_png(place / f"photos/LSDIR/{i}.png", photo(i, 64, 64))
    for folder, low, high, count in (("mine", "LR", "HR", 2), ("pairs", "LR", "HR", 2)):
        for i in range(count):
            hr = photo(50 + i + 9 * (folder == "pairs"), 64, 64)
            write_png(place / f"photos/{folder}/{high}/{i}.png", hr)
            write_png(place / f"photos/{folder}/{low}/{i}.png", resize_bicubic(hr, (16, 16)))


@pytest.mark.processes
def test_from_files_to_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All stages in the order of the page, on released weights of NAOSD that need no training."""
    monkeypatch.chdir(tmp_path)
    yaml = YAML(typ="safe", pure=True)
    shutil.copy(ROOT / "tests/params.yaml", tmp_path / "params.yaml")
    (tmp_path / "profiles").mkdir()
    with (tmp_path / "profiles/small.yaml").open("w") as file:
        yaml.dump(SMALL, file)
    for name in ("assets", "dvc.yaml", "benchmarks", "promoted"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_folders(tmp_path)
    write_base(tmp_path / "mirror")
    fabricate(tmp_path / "model_35001.pkl", tmp_path / "mirror", "naosd")

    def run(line: str) -> None:
        assert main(line.split()) == 0, f"{line}: {capsys.readouterr().err[-2000:]}"

    run("profile small")
    run("fetch")
    assert "note: gone: no such folder" in capsys.readouterr().err
    run("import-weights model_35001.pkl --base models/sd2.1-base -o models/released")
    for stage in [name for name, row in STAGES.items() if row.system == "gdpo"]:
        run(stage)
        if stage == "finetune":
            run("finetune --run control")
    run("tables")
    run("export models/gdpo -o out")
    released, made = (
        read_adapters(tmp_path / "models" / name)[0] for name in ("released", "naosd")
    )
    assert all(np.array_equal(made.tensors[n], t) for n, t in released.tensors.items())
    assert (tmp_path / "reports/index.html").is_file()
    assert (tmp_path / "out/model_index.json").is_file()
