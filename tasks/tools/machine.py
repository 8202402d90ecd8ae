"""The machine checks of `doctor`: Python and packages, CPU, memory, disk, GPUs."""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any


def examine(root: Path) -> dict[str, Any]:
    """This machine's versions, CPUs, memory, disk and GPUs (sizes in bytes).

    "problems" lists the packages that gdpo-sr asks for and that are missing or of another version,
    one line each. Packages of an extra may be missing.
    """
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    versions, problems = _versions()
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


def _versions() -> tuple[dict[str, str], list[str]]:
    """Installed versions of the packages gdpo-sr asks for, and a line per unmet requirement."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        own = metadata.metadata("gdpo-sr")
    except metadata.PackageNotFoundError:
        return {}, ["gdpo-sr is not installed; `make .venv` installs everything"]
    versions: dict[str, str] = {}
    problems = []
    if not SpecifierSet(own["Requires-Python"]).contains(platform.python_version()):
        problems.append(
            f"Python is {platform.python_version()}, gdpo-sr asks for {own['Requires-Python']}"
        )
    for requirement in map(Requirement, own.get_all("Requires-Dist", [])):
        extra = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if not extra:
                problems.append(f"{requirement.name} is not installed; install gdpo-sr again")
            continue
        versions[requirement.name] = installed
        if not requirement.specifier.contains(installed, prereleases=True):
            problems.append(
                f"{requirement.name} is {installed}, gdpo-sr asks for {requirement.specifier}"
            )
    return versions, problems
