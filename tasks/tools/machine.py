"""The machine checks of `doctor`: Python and packages, CPU, memory, disk, GPUs."""

import os
import platform
import shutil
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any


def examine(root: Path) -> dict[str, Any]:
    """This machine's versions, CPUs, memory, disk and GPUs (sizes in bytes).

    "problems" lists the versions that do not satisfy pyproject.toml, one line each.
    """
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    versions, problems = _versions(root)
    return {
        "python": platform.python_version(),
        "packages": versions,
        "cpus": os.cpu_count(),
        "memory": memory,
        "disk_free": shutil.disk_usage(root).free,
        "cuda": torch.version.cuda,
        "gpus": [{"name": gpu.name, "memory": gpu.total_memory} for gpu in gpus],
        "problems": problems,
    }


def _versions(root: Path) -> tuple[dict[str, str], list[str]]:
    """Installed versions of the packages in pyproject.toml, and a line per unmet requirement."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    path = root / "pyproject.toml"
    if not path.is_file():
        return {}, [f"{path.name}: no such file; run this in the repository"]
    project = tomllib.loads(path.read_text())["project"]
    versions: dict[str, str] = {}
    problems = []
    if not SpecifierSet(project["requires-python"]).contains(platform.python_version()):
        problems.append(
            f"Python is {platform.python_version()}, pyproject.toml asks for "
            f"{project['requires-python']}"
        )
    for text in project["dependencies"]:
        requirement = Requirement(text)
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(
                f"{requirement.name} is not installed; `make .venv` installs everything"
            )
            continue
        versions[requirement.name] = found
        if not requirement.specifier.contains(found, prereleases=True):
            problems.append(
                f"{requirement.name} is {found}, pyproject.toml asks for {requirement.specifier}"
            )
    return versions, problems
