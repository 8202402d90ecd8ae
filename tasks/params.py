"""Reads params.yaml into a typed configuration; the only module that reads parameters.

    params.yaml  <-  profiles/NAME.yaml (--profile)  <-  --set section.key=value

Later layers win, and mappings merge. The merged tree is validated strictly as gdpo.config.Config;
the first problem is reported in one line.

YAML 1.2 through ruamel, as DVC reads it: `5e-5` is a float (PyYAML reads a string) and `on` is a
string.
"""

import difflib
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from gdpo.config import Config
from gdpo.errors import one_line
from gdpo.files import here_or_shipped, shipped, written_aside

RENAMED = {"peers": "baselines"}  # keys of earlier versions that people may still have

# Bounds of a file; params.yaml has 150 values on 6 levels.
MOST_LEVELS, MOST_VALUES = 50, 100_000

Tree = dict[str, Any]
Layer = tuple[str, Tree]


class BadParams(ValueError):
    """Wrong parameters, in one line: the file (or --set), the key, and what is allowed.

    The command line exits with code 2.
    """


def default_file() -> Path:
    """params.yaml of the working folder, or the one that ships if there is none."""
    return here_or_shipped(Path(), "params.yaml")


def load(path: Path, profile: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration in `path`, overridden by a profile and by `section.key=value` texts.

    profile: the NAME of profiles/NAME.yaml beside `path`, or one that ships. Raises `BadParams` for
    a missing or malformed file, a duplicate or unknown key, a wrong type, or a value out of range.
    """
    layers: list[Layer] = [(path.name, read(path))]
    if profile is not None:
        layers.append((f"profiles/{profile}.yaml", read(profile_path(path, profile))))
    for text in overrides:
        layers.append((f"--set {text}", _override(text, _merged(layers))))
    return _validated(layers)


def apply_profile(path: Path, name: str) -> Path:
    """Write the values of `profiles/NAME.yaml` into the file `path`; returns the profile's path.

    Comments and other values stay, whatever anchors, aliases and merge keys the file has. DVC
    compares the values in params.yaml, so this switches a whole `dvc repro` to the profile. Nothing
    is written unless the result is valid. A file that does not exist is made, from the params.yaml
    that ships.
    """
    source = profile_path(path, name)
    values = read(source)
    old = path if path.exists() else shipped("params.yaml")
    _validated([(path.name, read(old)), (f"profiles/{source.name}", values)])
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.representer.add_representer(
        type(None), lambda out, _: out.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    document = yaml.load(old)
    _merge_into_document(document, values, _shared(document))
    with written_aside(path) as part:
        with part.open("w", encoding="utf-8") as file:
            yaml.dump(document, file)
        # Read back before it is renamed: a value written through an anchor would change others too.
        if read(part) != _merge(_copied(read(old)), values):
            raise BadParams(
                f"{path.name}: its anchors and merge keys cannot hold the values of "
                f"profiles/{source.name}; write them out"
            )
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
    """`profiles/NAME.yaml` beside params.yaml, or the one that ships.

    `BadParams` listing all profiles if there is none of that name.
    """
    source = here_or_shipped(path.parent, f"profiles/{name}.yaml")
    if not source.is_file():
        folders = (path.parent / "profiles", shipped("profiles"))
        known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
        raise BadParams(
            f"profiles/{name}.yaml: no such profile; there is {', '.join(known) or 'none'}"
        )
    return source


def read(path: Path) -> Tree:
    """Read one YAML 1.2 file, whose top level must be a mapping."""
    try:
        tree = _parsed(path.read_text(encoding="utf-8"))
    except DuplicateKeyError as error:
        raise BadParams(f"{path.name}: {_problem(error)}") from error
    except YAMLError as error:
        raise BadParams(f"{path.name}: not YAML: {_problem(error)}") from error
    except UnicodeDecodeError as error:
        raise BadParams(f"{path.name}: not UTF-8 text: {error}") from error
    except FileNotFoundError as error:
        raise BadParams(
            f"{path}: no such file; go to the folder that has one, or `gdpo-sr profile NAME` makes "
            "one from that which ships"
        ) from error
    except OSError as error:
        raise BadParams(f"{path}: {error.strerror}") from error
    if not isinstance(tree, dict):
        kind = "empty" if tree is None else f"a {type(tree).__name__}"
        raise BadParams(f"{path.name}: must be a mapping of sections, is {kind}")
    return tree


def _parsed(text: str) -> Any:
    """The content of a YAML 1.2 text. Errors: YAMLError, also for one that is far too large.

    A text of few lines can be without end, or as large as its aliases multiply it.
    """
    try:
        tree = YAML(typ="safe", pure=True).load(text)
    except RecursionError as error:
        raise YAMLError("nested too deeply") from error
    # Without recursion, whose limit such a text would reach. An alias counts each time it is used,
    # so a mapping that contains itself reaches the bounds too.
    waiting, count = [(tree, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        below = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        waiting += [(child, depth + 1) for child in below]
        count += 1
        if depth > MOST_LEVELS or count > MOST_VALUES:
            raise YAMLError("nested too deeply, or too many values")
    return tree


def _problem(error: YAMLError) -> str:
    """The problem and its line and column, without ruamel's excerpt of the file."""
    if not isinstance(error, MarkedYAMLError):
        return one_line(error, first=True)
    mark = error.problem_mark
    return (
        f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
        if mark
        else str(error.problem)
    )


def _override(text: str, below: Tree) -> Tree:
    """`a.b=value` as a tree; the value is read as YAML.

    `a.0.b=value` changes one item of the list `a` of `below`, the parameters so far.
    """
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise BadParams(
            f"--set {text}: must look like section.key=value, for example finetune.steps=100"
        )
    try:
        tree = _parsed(value)
    except YAMLError as error:
        raise BadParams(f"--set {text}: the value is not YAML: {_problem(error)}") from error
    return _placed(parts, tree, below, f"--set {text}")


def _placed(parts: list[str], value: Any, below: Any, where: str) -> Any:
    """`value` at the keys `parts`, as what is to be merged over `below`."""
    if not parts:
        return value
    first, *rest = parts
    if not isinstance(below, list):
        inner = below.get(first) if isinstance(below, dict) else None
        return {first: _placed(rest, value, inner, where)}
    if not first.isdecimal() or int(first) >= len(below):
        raise BadParams(f"{where}: a list of {len(below)} items has no item {first!r}")
    # A layer that has a list replaces the whole of it, so the unchanged items come along.
    items = deepcopy(below)
    item = _placed(rest, value, items[int(first)], where)
    whole = isinstance(item, dict) and isinstance(items[int(first)], dict)
    items[int(first)] = _merge(items[int(first)], item) if whole else item
    return items


def _merge(base: Tree, over: Tree) -> Tree:
    """Merge `over` into `base` in place: mappings merge, other values are replaced."""
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value
    return base


def _shared(document: Tree) -> set[int]:
    """The ids of the mappings that more than one place of a YAML document shows.

    A place shows a mapping as its anchor, through an alias or through a merge key.
    """
    seen, shared = set[int](), set[int]()
    waiting: list[Any] = [document]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if id(node) in seen:
                shared.add(id(node))
                continue
            seen.add(id(node))
            waiting += [*node.values(), *getattr(node, "merge", [])]
        elif isinstance(node, list):
            waiting += node
    return shared


def _merge_into_document(document: Tree, values: Tree, shared: set[int]) -> None:
    """`_merge` on a YAML document with comments; a shared mapping changes in one place only."""
    for key, value in values.items():
        present = document.get(key)
        if not isinstance(value, dict) or not isinstance(present, dict):
            document[key] = deepcopy(value)
            continue
        if id(present) in shared:
            document[key] = copy = _without_anchors(deepcopy(present))
            _merge_into_document(copy, value, _shared(copy))
        else:
            _merge_into_document(present, value, shared)


def _without_anchors(node: Any) -> Any:
    """Remove the anchors below a node of a YAML document; returns the node."""
    if hasattr(node, "yaml_set_anchor"):
        node.yaml_set_anchor(None)
    below = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in below:
        _without_anchors(child)
    return node


def _validated(layers: list[Layer]) -> Config:
    try:
        return Config.model_validate(_merged(layers))
    except ValidationError as error:
        problems = error.errors(include_url=False)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise BadParams(_line(problems[0], layers) + more) from error


def _merged(layers: list[Layer]) -> Tree:
    merged: Tree = {}
    for _, tree in layers:
        _merge(merged, _copied(tree))
    return merged


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
    if loc[-1] in RENAMED:
        return f"it is named {RENAMED[str(loc[-1])]} now"
    names = list(_model_at(loc).model_fields)
    close = difflib.get_close_matches(str(loc[-1]), names, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    return f"{meant}Allowed here: {', '.join(names)}"


def _described(loc: tuple[str | int, ...]) -> str:
    text = _model_at(loc).model_fields[str(loc[-1])].description
    return f" ({text})" if text else ""
