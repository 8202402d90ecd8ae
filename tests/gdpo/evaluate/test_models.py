"""The one rule for which evaluated model is which."""

import pytest

from gdpo.evaluate.models import EvaluatedModels
from gdpo.model.card import Identity


def models(**roles: str) -> EvaluatedModels:
    """Models by name, with a label of their role."""
    return EvaluatedModels(
        {
            name: Identity.model_validate({"kind": "naosd", "label": role.title(), "role": role})
            for name, role in roles.items()
        }
    )


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ({"naosd": "baseline", "gdpo": "reward", "control": "control"}, ("gdpo", "control")),
        ({"a": "baseline", "c": "control", "b": "reward", "d": "reward"}, ("b", "c")),
        ({"a": "baseline", "b": "baseline"}, ("b", None)),
        ({"a": "baseline", "c": "control"}, ("a", "c")),
        ({"a": "reward"}, ("a", None)),
    ],
)
def test_roles_decide_and_not_names(
    roles: dict[str, str], expected: tuple[str, str | None]
) -> None:
    found = models(**roles)
    assert (found.ours, found.control) == expected
    assert found.baseline == next(iter(roles))


def test_comparisons() -> None:
    found = models(naosd="baseline", gdpo="reward", control="control")
    assert found.comparisons() == [
        ("gdpo", "naosd"),
        ("control", "naosd"),
        ("gdpo", "control"),
        ("naosd", "bicubic"),
    ]
    found = models(a="baseline", c="control", b="reward")
    assert ("b", "c") in found.comparisons() and ("c", "b") not in found.comparisons()
    assert models(a="baseline").comparisons() == [("a", "bicubic")]


def test_labels_come_from_the_cards_and_twins_are_told_apart() -> None:
    found = models(a="baseline", b="baseline", c="reward")
    assert [found.label(name) for name in ("a", "c", "bicubic", "OSEDiff")] == [
        "Baseline (a)",
        "Reward",
        "Bicubic",
        "OSEDiff",
    ]


def test_an_evaluation_keeps_the_cards() -> None:
    found = models(a="baseline", b="reward")
    again = EvaluatedModels.of_origin({"models": found.to_origin()}, "summary.json")
    assert again.identities == found.identities
    with pytest.raises(ValueError, match=r"summary.json: .* run the evaluate stage again"):
        EvaluatedModels.of_origin({}, "summary.json")
