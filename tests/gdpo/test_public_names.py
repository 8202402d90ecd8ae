"""`from gdpo import NAME` works for every public name, and for no other."""

import importlib

import pytest

import gdpo


@pytest.mark.parametrize("name", gdpo.__all__)
def test_every_public_name_loads_on_first_use(name: str) -> None:
    value = getattr(gdpo, name)
    assert callable(value)
    assert value.__doc__
    assert value.__module__.startswith("gdpo.")
    assert getattr(importlib.import_module(value.__module__), name) is value


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'gdpo' has no attribute 'grpo_loss'"):
        gdpo.grpo_loss  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'GRPO'"):
        from gdpo import GRPO  # noqa: F401
