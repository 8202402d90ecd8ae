"""Reads params.yaml into a typed configuration; the only module that reads parameters.

    params.yaml  <-  profiles/NAME.yaml (--profile)  <-  --set section.key=value

Later layers win, and mappings merge. The merged tree is validated strictly as gdpo.config.Config;
the first problem is reported in one line.

YAML 1.2 through ruamel, as DVC reads it: `5e-5` is a float (PyYAML reads a string) and `on` is a
string.
"""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from gdpo.config import Config

Tree = dict[str, Any]
Layer = tuple[str, Tree]


class BadParams(ValueError):
    """Wrong parameters, in one line: the file (or --set), the key, and what is allowed.

    The command line exits with code 2.
    """


def load(path: Path, profile: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration in `path`, overridden by a profile and by `section.key=value` texts.

    profile: the NAME of profiles/NAME.yaml beside `path`. Raises `BadParams` for a missing or
    malformed file, a duplicate or unknown key, a wrong type, or a value out of range.
    """
    layers: list[Layer] = [(path.name, read(path))]
    if profile is not None:
        layers.append((f"profiles/{profile}.yaml", read(profile_path(path, profile))))
    layers += [(f"--set {text}", _override(text)) for text in overrides]
    return _validated(layers)


def apply_profile(path: Path, name: str) -> Path:
    """Write the values of `profiles/NAME.yaml` into the file `path`; returns the profile's path.

    Comments and other values stay. DVC compares the values in params.yaml, so this switches a whole
    `dvc repro` to the profile. Nothing is written unless the result is valid.
    """
    source = profile_path(path, name)
    values = read(source)
    _validated([(path.name, read(path)), (f"profiles/{source.name}", values)])
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.representer.add_representer(
        type(None), lambda out, _: out.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    document = yaml.load(path)
    _merge(document, values)
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        yaml.dump(document, file)
    os.replace(part, path)
    return source


def profile_of(path: Path) -> str:
    """The first profile whose values are all set in the file `path`.

    "sample" if there is none: the name for the values that params.yaml comes with.
    """
    present = read(path)
    for source in sorted((path.parent / "profiles").glob("*.yaml")):
        if _merge(_copied(present), read(source)) == present:
            return source.stem
    return "sample"


def profile_path(path: Path, name: str) -> Path:
    """`profiles/NAME.yaml` beside params.yaml; `BadParams` listing all profiles if missing."""
    source = path.parent / "profiles" / f"{name}.yaml"
    if not source.is_file():
        known = sorted(file.stem for file in source.parent.glob("*.yaml"))
        raise BadParams(
            f"profiles/{name}.yaml: no such profile; there is {', '.join(known) or 'none'}"
        )
    return source


def read(path: Path) -> Tree:
    """Read one YAML 1.2 file, whose top level must be a mapping."""
    try:
        tree = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except DuplicateKeyError as error:
        raise BadParams(f"{path.name}: {_problem(error)}") from error
    except YAMLError as error:
        raise BadParams(f"{path.name}: not YAML: {_problem(error)}") from error
    except UnicodeDecodeError as error:
        raise BadParams(f"{path.name}: not UTF-8 text: {error}") from error
    except OSError as error:
        raise BadParams(f"{path}: {error.strerror}") from error
    if not isinstance(tree, dict):
        found = "empty" if tree is None else f"a {type(tree).__name__}"
        raise BadParams(f"{path.name}: must be a mapping of sections, is {found}")
    return tree


def _problem(error: YAMLError) -> str:
    """The problem and its line and column, without ruamel's excerpt of the file."""
    if not isinstance(error, MarkedYAMLError):
        return str(error).splitlines()[0]
    mark = error.problem_mark
    return (
        f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
        if mark
        else str(error.problem)
    )


def _override(text: str) -> Tree:
    """`a.b=value` as a tree; the value is read as YAML."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise BadParams(
            f"--set {text}: must look like section.key=value, for example finetune.steps=100"
        )
    try:
        tree: Any = YAML(typ="safe", pure=True).load(value)
    except YAMLError as error:
        raise BadParams(f"--set {text}: the value is not YAML: {_problem(error)}") from error
    for part in reversed(parts):
        tree = {part: tree}
    return tree


def _merge(base: Tree, over: Tree) -> Tree:
    """Merge `over` into `base` in place: mappings merge, other values are replaced."""
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value
    return base


def _validated(layers: list[Layer]) -> Config:
    merged: Tree = {}
    for _, tree in layers:
        _merge(merged, _copied(tree))
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise BadParams(_line(problems[0], layers) + more) from error


def _copied(tree: Tree) -> Tree:
    return {
        key: _copied(value) if isinstance(value, dict) else value for key, value in tree.items()
    }


def _line(problem: Any, layers: list[Layer]) -> str:
    """One of pydantic's problems as `FILE: section.key: message (got VALUE)`."""
    loc: tuple[str | int, ...] = problem["loc"]
    key = ".".join(map(str, loc))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = f"unknown key; {_allowed(loc)}"
    elif problem["type"] == "missing":
        message = "missing" + _described(loc)
    elif problem["type"] != "value_error":
        message += f" (got {problem['input']!r})"
    return ": ".join(part for part in (_origin(loc, layers), key, message) if part)


def _origin(loc: tuple[str | int, ...], layers: list[Layer]) -> str:
    """The name of the last layer that sets `loc`.

    The first layer if none does: a missing key, or a rule over several keys.
    """
    for name, tree in reversed(layers):
        node: Any = tree
        for part in loc:
            if isinstance(part, int) and isinstance(node, list):
                return name
            if not isinstance(node, dict) or part not in node:
                break
            node = node[part]
        else:
            if loc:
                return name
    return layers[0][0]


def _model_at(loc: tuple[str | int, ...]) -> type[BaseModel]:
    """The model of the section that contains the last key of `loc`."""
    model: type[BaseModel] = Config
    for part in loc[:-1]:
        if part not in model.model_fields:  # an index in a list, or a key of a mapping
            continue
        annotation = model.model_fields[str(part)].annotation
        options = get_args(annotation) or (annotation,)
        model = next(
            option
            for option in options
            if isinstance(option, type) and issubclass(option, BaseModel)
        )
    return model


def _allowed(loc: tuple[str | int, ...]) -> str:
    names = list(_model_at(loc).model_fields)
    close = difflib.get_close_matches(str(loc[-1]), names, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    return f"{meant}Allowed here: {', '.join(names)}"


def _described(loc: tuple[str | int, ...]) -> str:
    text = _model_at(loc).model_fields[str(loc[-1])].description
    return f" ({text})" if text else ""
