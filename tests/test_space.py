"""deploy/space/ fits the project: the wheel, the extra, Gradio's version, the command."""

import ast
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from ruamel.yaml import YAML

from tasks.__main__ import build_parser

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "deploy/space"


def test_the_space_installs_this_version_with_a_gradio_that_the_extra_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wheel = f"gdpo_sr-{project['version']}-py3-none-any.whl"
    assert (SPACE / "requirements.txt").read_text() == f"./{wheel}[app]\n"
    front = YAML(typ="safe").load((SPACE / "README.md").read_text().split("---\n")[1])
    (gradio,) = [Requirement(text) for text in project["optional-dependencies"]["app"]]
    assert gradio.name == "gradio" and gradio.specifier.contains(front["sdk_version"])
    assert (SPACE / front["app_file"]).is_file()
    locked = re.search(r"^gradio==(\S+)", (ROOT / "requirements.lock").read_text(), re.M)
    assert locked and locked[1] == front["sdk_version"]


def test_the_command_of_the_space_exists() -> None:
    tree = ast.parse((SPACE / "app.py").read_text())
    (words,) = [node for node in ast.walk(tree) if isinstance(node, ast.List)]
    args = build_parser("app").parse_args(ast.literal_eval(words))
    assert (args.command, args.host) == ("app", "0.0.0.0")
