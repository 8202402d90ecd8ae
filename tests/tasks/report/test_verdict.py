"""The verdict in words: promises, what changed since another run, and what cannot be compared."""

import pytest

from gdpo.evaluate.statistics import summarise
from tasks.report.verdict import claims, explanations, headline, verdict_sentence
from tests.tasks import fabricated

NAMES = [f"{i}" for i in range(12)]


def _summary(
    gain_: float = 3.0, pairs: list[tuple[str, str]] = fabricated.PAIRS
) -> dict[str, object]:
    return {
        **fabricated.ABOUT,
        "metrics": {
            metric: {"higher_is_better": higher} for metric, higher in fabricated.HIGHER.items()
        },
        "reward": {"fidelity": ["psnr_y"], "perception": ["niqe"]},
        **summarise(
            fabricated.scores(12, 8, gain_),
            fabricated.HIGHER,
            pairs,
            unit_of="naosd",
            photographs=NAMES,
        ),
    }


@pytest.mark.parametrize(
    ("gain_", "text"),
    [
        (3.0, "GDPO-SR is better than NAOSD: reward +"),
        (0.0, "No sure difference between GDPO-SR and NAOSD: reward "),
        (-3.0, "GDPO-SR is worse than NAOSD: reward −"),
    ],
)
def test_the_headline_is_the_verdict_on_the_reward(gain_: float, text: str) -> None:
    assert headline(_summary(gain_)).startswith(text)
    assert verdict_sentence(_summary(gain_)).startswith(headline(_summary(gain_)))
    assert [claim.holds for claim in claims(_summary(gain_))][:2] == [gain_ > 0] * 2


def test_a_gain_that_the_control_has_too_is_none() -> None:
    scores = fabricated.scores(12, 8, 3.0)
    summary = {
        **_summary(),
        **summarise(
            {**scores, "control": scores["gdpo"]},
            fabricated.HIGHER,
            fabricated.PAIRS,
            unit_of="naosd",
            photographs=NAMES,
        ),
    }
    assert headline(summary).startswith("GDPO-SR gains on NAOSD, but not surely more than")
    assert [claim.holds for claim in claims(summary)][:2] == [False, False]


def test_models_that_were_not_evaluated_are_not_judged() -> None:
    alone = _summary(pairs=[("naosd", "bicubic")])
    assert (
        headline(alone) == "GDPO-SR and NAOSD are not compared"
        and claims(alone) == []
        and explanations(alone) == []
    )
    uncontrolled = _summary(pairs=[("gdpo", "naosd")])
    assert (
        headline(uncontrolled).startswith("GDPO-SR is better than NAOSD: reward +")
        and len(claims(uncontrolled)) == 3
    )
