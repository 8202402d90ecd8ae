"""A run of `gdpo-sr upscale` that must fail, in one line."""

import pytest

from tasks import __main__ as cli


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert cli.main(["upscale", *argv]) == 1
    error = capsys.readouterr().err
    assert error.startswith("gdpo-sr: ") and error.count("\n") == 1
    return error
