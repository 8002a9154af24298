"""The attacks that ``trilemma diagnose`` knows, and the budget it gives each. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trilemma.errors import UnknownNameError, nearest

# What an attack is after: more loss of the true class, or another class (a boundary, a target, a margin).
LOSS, CLASS = "loss", "class"
# With fewer classes the targeted DLR is not defined, and its numerator alone, a margin, is climbed.
CLASSES_OF_TARGETED_DLR = 4


@dataclass(frozen=True)
class LandscapeAttack:
    """One attack with its settings.

    Attributes:
        aim: :data:`LOSS` or :data:`CLASS`.
        target: ``"module:function"`` of ``(clf, images, labels, threat, generator=..., **settings) -> images``.
        about: what it climbs and how often, with names in braces that :meth:`words` fills in.
        settings: counts, and what else the function wants to know.
    """

    aim: str
    target: str
    about: str
    settings: dict[str, Any] = field(default_factory=dict)

    def words(self, num_classes: int) -> str:
        """``about`` with the settings filled in, as they are for a classifier of that many classes."""
        targets = min(self.settings.get("targets") or 1, num_classes - 1)
        return self.about.format(
            **self.settings | {"targets": "1 target" if targets == 1 else f"{targets} targets"},
            dlr="DLR" if num_classes >= CLASSES_OF_TARGETED_DLR else "margin",
        )


_WALKS = "trilemma.evaluation.landscape_walks"
# To the end of each walk: a landscape is to show where the loss leads, not where the first boundary is.
_APGD = {"steps": 50, "early_stop": False}

ATTACKS = {
    "pgd": LandscapeAttack(LOSS, "trilemma.attacks:pgd", "cross-entropy, {steps} steps", {"steps": 20}),
    "trades-kl": LandscapeAttack(
        LOSS, f"{_WALKS}:trades_kl", "KL, {steps} steps", {"steps": 20}
    ),
    "apgd-ce": LandscapeAttack(
        LOSS, "trilemma.attacks:apgd", "cross-entropy, {steps} steps", {"loss": "ce", **_APGD}
    ),
    "energy": LandscapeAttack(LOSS, f"{_WALKS}:joint_energy", "E(x,y), {steps} steps", {"steps": 20}),
    "he-pgd": LandscapeAttack(
        LOSS, "trilemma.attacks:he_pgd", "cross-entropy + {gamma} E(x), {steps} steps", {"steps": 20, "gamma": 1.5}
    ),
    "pgd-targeted": LandscapeAttack(
        CLASS, f"{_WALKS}:pgd_targeted", "a random target, {steps} steps", {"steps": 20}
    ),
    "apgd-dlr": LandscapeAttack(
        CLASS, "trilemma.attacks:apgd", "DLR, {steps} steps", {"loss": "dlr", **_APGD}
    ),
    "apgd-t": LandscapeAttack(
        CLASS,
        f"{_WALKS}:apgd_targeted",
        "{dlr}, {targets} x {steps} steps",
        {"targets": 3, **_APGD},
    ),
    "fab": LandscapeAttack(
        CLASS, "trilemma.attacks:fab", "nearest boundary, {steps} steps", {"steps": 20, "targets": None}
    ),
    "fab-t": LandscapeAttack(
        CLASS,
        "trilemma.attacks:fab",
        "{targets} x {steps} steps",
        {"steps": 20, "targets": 3},
    ),
    "square": LandscapeAttack(CLASS, "trilemma.attacks:square", "{queries} queries", {"queries": 500}),
}  # fmt: skip
# Those of the literature's comparison; the other three are variations.
DEFAULT = ("pgd", "trades-kl", "apgd-ce", "pgd-targeted", "apgd-t", "fab", "fab-t", "square")


def chosen(names: Sequence[str] | None) -> list[str]:
    """``names`` in their order, each once; :data:`DEFAULT` for ``None`` and for none.

    Raises:
        UnknownNameError: naming the nearest one and all that exist.
    """
    for name in names or ():
        if name not in ATTACKS:
            raise UnknownNameError(
                f"diagnose: unknown attack {name!r}.{nearest(name, ATTACKS)} Attacks: {', '.join(ATTACKS)}"
            )
    return list(dict.fromkeys(names or DEFAULT))
