"""Readers of deploy/: the units of systemd, and the job template of Kubernetes."""

import configparser
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UNITS = (
    "gdpo-server.service",
    "gdpo-worker@.service",
    "gdpo-gpu-worker@.service",
    "gdpo-kubernetes-worker@.service",
)


def unit(root: Path, name: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str
    parsed.read_string((root / "deploy/systemd" / name).read_text())
    return parsed


def strings(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for value in node.values():
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)
    elif isinstance(node, str):
        yield node


def template(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / "deploy/kubernetes/base-job-template.json").read_text()))


def defaults(root: Path) -> dict[str, Any]:
    properties = template(root)["variables"]["properties"]
    return {name: entry["default"] for name, entry in properties.items() if "default" in entry}
