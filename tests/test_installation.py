"""What the lock installs, and what the wheel brings with it."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def test_one_locked_distribution_owns_cv2() -> None:
    """Of two that write the same files, the build with windows needs libraries of X11."""
    locked = set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(), re.M))
    owners = {name for name in metadata.packages_distributions()["cv2"] if name in locked}
    assert owners == {"opencv-python-headless"}


# Not named in pyproject.toml, as transformers, jinja2 and ruamel-yaml bring them.
BROUGHT = {"packaging", "tokenizers", "markupsafe"}


def test_the_core_imports_no_extra() -> None:
    """Without `[metrics]`, `[fleet]` and `[app]` every module imports but those of the bucket and
    the page.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = BROUGHT | {_plain(Requirement(text).name) for text in project["dependencies"]}
    owners = metadata.packages_distributions()
    for path in [*(ROOT / "gdpo").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]:
        if path.is_relative_to(ROOT / "tasks/store") or path == ROOT / "tasks/app/page.py":
            continue
        for node in ast.parse(path.read_text()).body:
            modules = [alias.name for alias in getattr(node, "names", [])]
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            elif not isinstance(node, ast.Import):
                continue
            for module in {name.partition(".")[0] for name in modules}:
                if module in sys.stdlib_module_names or module in ("gdpo", "tasks"):
                    continue
                assert allowed & set(map(_plain, owners[module])), f"{path}: {module}"


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel, unpacked as an installation would."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    leave = shutil.ignore_patterns("__pycache__")
    for name in ("gdpo", "tasks", "flows", "assets", "profiles"):
        shutil.copytree(ROOT / name, source / name, ignore=leave)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "tests/params.yaml"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; build_meta.build_wheel('wheels')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    [wheel] = (source / "wheels").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(target)
    return target


@pytest.mark.processes
def test_the_wheel_works_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    Image.linear_gradient("L").convert("RGB").resize((40, 40)).save(tmp_path / "photo.jpg")
    (tmp_path / "pictures").mkdir()
    shutil.copy(tmp_path / "photo.jpg", tmp_path / "pictures")

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "tasks", *words]
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("upscale", "photo.jpg", "-o", "large.png")
    with Image.open(tmp_path / "large.png") as image:
        assert image.size == (160, 160)
    assert re.search(r"niqe\D+\d", run("score", "pictures", "--metrics", "niqe"))
    assert run("doctor").endswith("\nready\n")
    run("profile", "paper")
    assert "models/sd2.1-base" in (tmp_path / "params.yaml").read_text()
    assert (installed / "gdpo/py.typed").is_file()
    assert (installed / "gdpo/shipped/assets/tiny-vlcot/model.json").is_file()
