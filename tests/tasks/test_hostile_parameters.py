"""Hundreds of malformed values, made from the keys of the test's own parameters: exit code 2 and
one line with the key.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks import __main__ as cli
from tasks import params
from tasks.params import BadParams

ROOT = Path(__file__).parents[1]
NUMBERS = ("text", "'1'", "[1]", "{zzz: 1}", ".nan", "-.inf", "true", "-1.0e+300", "2026-01-01")
TEXTS = ("3", "[a]", "{zzz: 1}", "true", ".nan")
LISTS = ("3", "text", "{zzz: 1}", "[[[]]]", "[{zzz: 1}]", "[.nan, {}]")
FLAGS = ("3", "text", "[true]", "{zzz: 1}", ".nan")


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield f"{prefix}{key}.zzz", None  # a key that does not exist, in each section
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def malformed(key: str, value: Any) -> tuple[str, ...]:
    """YAML texts that cannot be a value of `key`, judged by its present value."""
    if key.endswith(".zzz"):
        return ("1",)
    if isinstance(value, bool):
        return FLAGS
    if isinstance(value, int | float):
        return NUMBERS
    if isinstance(value, str):
        return TEXTS
    return LISTS if isinstance(value, list) else ("{zzz: {zzz: 1}}",)


def settings() -> list[tuple[str, str]]:
    tree = params.read(ROOT / "params.yaml")
    # These are mappings of names that people choose.
    free = ("evaluate.models", "evaluate.pairs")
    return [
        (key, text)
        for key, value in leaves(tree)
        if not key.startswith(free)
        for text in malformed(key, value)
    ]


def test_every_malformed_value_is_refused_by_its_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = params.read(ROOT / "params.yaml")
    monkeypatch.setattr(params, "read", lambda path: tree)  # read once, which takes longest
    cases = settings()
    assert len(cases) >= 300
    wrong = []
    for key, text in cases:
        code = cli.main(["index", "--params", "params.yaml", "--set", f"{key}={text}"])
        err = capsys.readouterr().err
        if code != 2 or err.count("\n") != 1 or key.removesuffix(".zzz") not in err:
            wrong.append((key, text, code, err))
    assert wrong == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"\xff\xfe",
        b"- 1",
        b"seed: 0\nseed: 1",
        b"a: [",
        b"a: &x [*x]",
        b"seed: &x {y: *x}",
        b"&a a: *b",
        b"!!python/object/apply:os.system ['true']",
        b"a: " + b"[" * 2000,
        b"a: " + b"{b: " * 2000,
        b"\n".join(
            [b"a0: &a0 {x: 1}"]
            + [b"a%d: &a%d {x: *a%d, y: *a%d}" % (i, i, i - 1, i - 1) for i in range(1, 40)]
        ),
    ],
)
def test_a_file_that_cannot_be_parameters_is_refused(tmp_path: Path, content: bytes) -> None:
    """Also one without an end, one too deep, and one that aliases make enormous."""
    file = tmp_path / "params.yaml"
    file.write_bytes(content)
    with pytest.raises(BadParams, match=r"^params\.yaml") as caught:
        params.load(file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["a=&x [*x]", "seed=" + "[" * 2000, "seed", "=1", ".=1", "a..b=1"])
def test_an_override_that_cannot_be_one_is_refused(text: str) -> None:
    with pytest.raises(BadParams, match=r"^--set ") as caught:
        params.load(ROOT / "params.yaml", overrides=[text])
    assert "\n" not in str(caught.value)
