"""The reference, written from the code: every key of params.yaml, every command's help."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import BaseMetadata
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from gdpo.config import Config
from tasks.__main__ import build_parser
from tasks.commands import commands_by_heading
from tasks.params import load

SIMPLE: dict[Any, str] = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def configuration(repository: Path) -> str:
    """Every key: its type, its value in the sample profile and in the paper's, what it means."""
    sample = load(repository / "params.yaml")
    paper = load(repository / "params.yaml", "paper")
    lines = [
        "# Configuration",
        "",
        "The keys of `params.yaml`, one section per stage, written from `gdpo/config/`. A profile, "
        "`profiles/NAME.yaml`, is a set of values over it: `make profile PROFILE=paper` writes one "
        "into `params.yaml`, `--profile` and `--set section.key=value` change one run. A dot is a "
        "key below a key.",
        "",
        "## At the top",
        "",
        *_table(_rows(Config, sample, paper, sections=False)),
    ]
    for name, field in Config.model_fields.items():
        section = field.annotation
        if not _is_section(section):
            continue
        rows = list(_rows(section, getattr(sample, name), getattr(paper, name)))
        lines += ["", f"## {name}", "", _plain(section.__doc__), "", *_table(rows)]
    return "\n".join(lines) + "\n"


def command_line() -> str:
    """The help of every command, under the headings of `gdpo-sr --help`."""
    os.environ["COLUMNS"] = "100"
    lines = ["# Command line", "", "What `gdpo-sr COMMAND --help` prints.", ""]
    for heading, commands in commands_by_heading().items():
        lines += [f"## {heading[:1].upper()}{heading[1:]}", ""]
        for name in commands:
            lines += [f"### {name}", "", "```text", _help(name), "```", ""]
    return "\n".join(lines)


def _help(name: str) -> str:
    choices = next(
        action.choices for action in build_parser(name)._actions if action.dest == "command"
    )
    assert isinstance(choices, dict)
    return str(choices[name].format_help()).rstrip()


Row = tuple[str, str, str, str, str]


def _rows(
    section: type[BaseModel], sample: Any, paper: Any, *, sections: bool = True, prefix: str = ""
) -> Iterator[Row]:
    """(key, type, sample value, paper value, meaning) of every key, nested ones by their path."""
    for name, field in section.model_fields.items():
        values = [None if one is None else getattr(one, name) for one in (sample, paper)]
        kind = field.annotation
        if _is_section(kind):
            if sections:
                yield from _rows(kind, *values, prefix=f"{prefix}{name}.")
            continue
        shown = [_value(value) for value in values]
        meaning = " ".join(part for part in (_plain(field.description), _bounds(field)) if part)
        yield f"`{prefix}{name}`", _type(kind), *shown, meaning


def _table(rows: Any) -> list[str]:
    head = ["| key | type | sample | paper | meaning |", "|---|---|---|---|---|"]
    return head + [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows
    ]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _type(kind: Any) -> str:
    if kind in SIMPLE:
        return SIMPLE[kind]
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in inside)
    if origin in (Union, UnionType):
        named = [_type(one) for one in inside if one is not NoneType]
        return " or ".join([*named, *(["null"] if NoneType in inside else [])])
    if origin is list:
        return f"list of {_type(inside[0])}"
    if origin is dict:
        return f"{_type(inside[0])} -> {_type(inside[1])}"
    if hasattr(kind, "__metadata__"):
        return _type(inside[0])
    if _is_section(kind):
        return f"keys {', '.join(f'`{name}`' for name in kind.model_fields)}"
    return str(getattr(kind, "__name__", kind))


def _bounds(field: FieldInfo) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    found = [
        f"{sign} {getattr(limit, name)}"
        for limit in field.metadata
        if isinstance(limit, BaseMetadata)
        for name, sign in signs.items()
        if getattr(limit, name, None) is not None
    ]
    return f"({', '.join(found)})" if found else ""


def _value(value: Any) -> str:
    plain = TypeAdapter(Any).dump_python(value, mode="json", exclude_none=True)
    return f"`{json.dumps(plain, ensure_ascii=False)}`"


def _plain(text: str | None) -> str:
    return " ".join((text or "").split())
