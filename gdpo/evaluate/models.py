"""The roles of the evaluated models (baseline, ours, control), derived from their cards.

baseline    the first; the reward has its zero and its unit from it
ours        the first that was trained with a reward; without one, the first that is neither the
            baseline nor a control; a lone model is both baseline and ours
control     the first control, or None

comparisons    every other model with the baseline, ours with every later one, the baseline with
               the bicubic enlargement
"""

from collections.abc import Mapping
from typing import Any

from gdpo.config.evaluation import BICUBIC
from gdpo.model.card import Identity


class EvaluatedModels:
    """The evaluated models by name, in the order of evaluate.models: what their cards state."""

    def __init__(self, identities: Mapping[str, Identity]) -> None:
        self.identities = dict(identities)

    @classmethod
    def of_origin(cls, origin: Mapping[str, Any], name: str) -> "EvaluatedModels":
        """From the provenance of an evaluation. name: its file, for the message.

        Errors: ValueError if an earlier version wrote it, which stored no cards.
        """
        if "models" not in origin:
            raise ValueError(
                f"{name}: written by an earlier version, without the cards of its models; run "
                "the evaluate stage again"
            )
        return cls({key: Identity.model_validate(card) for key, card in origin["models"].items()})

    def to_origin(self) -> dict[str, dict[str, str]]:
        """What `of_origin` reads: kind, label and role by name."""
        return {
            name: {key: getattr(card, key) for key in Identity.model_fields}
            for name, card in self.identities.items()
        }

    @property
    def baseline(self) -> str:
        """The name of the baseline."""
        return next(iter(self.identities))

    @property
    def ours(self) -> str:
        """The name of the model that the evaluation is about."""
        others = [name for name in self._of("baseline") if name != self.baseline]
        return next(iter([*self._of("reward"), *others, self.baseline]))

    @property
    def control(self) -> str | None:
        """The name of the control of `ours`, or None."""
        return next(iter(self._of("control")), None)

    def _of(self, role: str) -> list[str]:
        return [name for name, card in self.identities.items() if card.role == role]

    def comparisons(self) -> list[tuple[str, str]]:
        """The pairs (a, b) to compare.

        [naosd, gdpo, control] gives gdpo-naosd, control-naosd, gdpo-control, naosd-bicubic.
        """
        first, *others = self.identities
        ours = self.ours
        return [
            *((name, first) for name in others),
            *((ours, name) for name in others if name != ours and ours != first),
            (first, BICUBIC),
        ]

    def label(self, name: str) -> str:
        """The printed name of a model; that of an enlargement or another method is `name` itself.

        Two models whose cards have one label are told apart by their names.
        """
        if name == BICUBIC:
            return "Bicubic"
        if name not in self.identities:
            return name
        label = self.identities[name].label
        same = [card.label for card in self.identities.values()].count(label)
        return label if same == 1 else f"{label} ({name})"
