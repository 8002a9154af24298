"""Attacks with their settings, by name: what AutoAttack, ``screen`` and ``diagnose`` are made of. Needs no torch.

Each table maps names to presets of attacks of the registry ``ATTACKS``. A registered attack that no preset names is a
preset of itself, with its default settings (:func:`find_preset`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trilemma.config.registry import ATTACKS
from trilemma.errors import UnknownNameError, nearest

# What an attack is after: more loss of the true class, or another class (a boundary, a target, a margin).
LOSS, CLASS = "loss", "class"
# With fewer classes the targeted DLR is not defined, and its numerator alone, a margin, is climbed.
CLASSES_OF_TARGETED_DLR = 4


@dataclass(frozen=True)
class Preset:
    """One attack with its settings.

    Attributes:
        attack: a name of the registry, or ``"module:function"`` of the same signature.
        settings: keyword arguments of the attack.
        about: what it climbs and how often, with names in braces that :meth:`words` fills in.
        aim: :data:`LOSS` or :data:`CLASS`.
        passes: most forward passes that one image can cost; 0 where that is not known.
        stream: of its random numbers in an ensemble; no two attacks of a table share one.
    """

    attack: str
    settings: dict[str, Any] = field(default_factory=dict)
    about: str = "its own settings"
    aim: str = LOSS
    passes: int = 0
    stream: int = 0

    def words(self, num_classes: int) -> str:
        """``about`` with the settings filled in, as they are for a classifier of that many classes."""
        targets = min(self.settings.get("targets") or 1, num_classes - 1)
        return self.about.format(
            **self.settings | {"targets": "1 target" if targets == 1 else f"{targets} targets"},
            dlr="DLR" if num_classes >= CLASSES_OF_TARGETED_DLR else "margin",
        )


def _ascents(targets: int, steps: int) -> int:
    """Forward passes of one targeted APGD: each walk's, and one to choose the targets."""
    return targets * (steps + 1) + 1


AUTOATTACK = {
    "apgd-ce": Preset("apgd", {"loss": "ce", "steps": 100}, passes=101, stream=0),
    "apgd-t": Preset(
        "apgd", {"loss": "dlr-targeted", "steps": 100, "targets": 9}, passes=_ascents(9, 100), stream=1
    ),
    "fab-t": Preset("fab", {"steps": 100, "targets": 9}, passes=2 * _ascents(9, 100), stream=2),
    "square": Preset("square", {"queries": 5000}, passes=5000, stream=3),
    "apgd-margin-t": Preset(
        "apgd", {"loss": "margin-targeted", "steps": 100, "targets": 9}, passes=_ascents(9, 100), stream=4
    ),
}

SCREEN = {
    "apgd-ce-25": Preset("apgd", {"loss": "ce", "steps": 25}, passes=26, stream=0),
    "apgd-margin-t-25": Preset(
        "apgd", {"loss": "margin-targeted", "steps": 25, "targets": 4}, passes=_ascents(4, 25), stream=1
    ),
    "square-400": Preset("square", {"queries": 400}, passes=400, stream=2),
}

# Each APGD walks to its end: a landscape is to show where the loss leads, not where the first boundary is.
_TO_THE_END = {"steps": 50, "early_stop": False}

DIAGNOSE = {
    "pgd": Preset("pgd", {"steps": 20}, "cross-entropy, {steps} steps"),
    "trades-kl": Preset("pgd", {"loss": "kl", "steps": 20}, "KL, {steps} steps"),
    "apgd-ce": Preset("apgd", {"loss": "ce", **_TO_THE_END}, "cross-entropy, {steps} steps"),
    "energy": Preset("pgd", {"loss": "joint", "steps": 20}, "E(x,y), {steps} steps"),
    "he-pgd": Preset("he-pgd", {"steps": 20, "gamma": 1.5}, "cross-entropy + {gamma} E(x), {steps} steps"),
    "pgd-targeted": Preset(
        "trilemma.attacks.pgd:pgd_targeted", {"steps": 20}, "a random target, {steps} steps", CLASS
    ),
    "apgd-dlr": Preset("apgd", {"loss": "dlr", **_TO_THE_END}, "DLR, {steps} steps", CLASS),
    "apgd-t": Preset(
        "trilemma.attacks.apgd:apgd_targeted",
        {"targets": 3, **_TO_THE_END},
        "{dlr}, {targets} x {steps} steps",
        CLASS,
    ),
    "fab": Preset("fab", {"steps": 20, "targets": None}, "nearest boundary, {steps} steps", CLASS),
    "fab-t": Preset("fab", {"steps": 20, "targets": 3}, "{targets} x {steps} steps", CLASS),
    "square": Preset("square", {"queries": 500}, "{queries} queries", CLASS),
}
# Those of the literature's comparison; the other three are variations.
DIAGNOSE_DEFAULT = ("pgd", "trades-kl", "apgd-ce", "pgd-targeted", "apgd-t", "fab", "fab-t", "square")

# Registered, but with verdicts instead of images as its result.
_NO_IMAGES = ("autoattack",)


def find_preset(table: Mapping[str, Preset], name: str, whose: str) -> Preset:
    """The preset ``name`` of ``table``, or the registered attack of that name with its defaults.

    Args:
        whose: of the table, for the message.

    Raises:
        UnknownNameError: naming the nearest one and all that exist.
    """
    if name in table:
        return table[name]
    if name in ATTACKS and name not in _NO_IMAGES:
        # beyond the streams of every table
        return Preset(name, stream=1000 + sum(ord(letter) * 31**k for k, letter in enumerate(name)) % 2**31)
    registered = [other for other in ATTACKS.rows() if other not in (*table, *_NO_IMAGES)]
    names = [*table, *registered]
    raise UnknownNameError(
        f"{whose}: unknown attack {name!r}.{nearest(name, names)} Attacks: {', '.join(table)}; "
        f"registered: {', '.join(registered)}"
    )


def diagnosed(names: Sequence[str] | None) -> dict[str, Preset]:
    """The presets of ``diagnose``, each once and in the order of ``names``; the default ones for ``None`` and for none.

    Raises:
        UnknownNameError: as of :func:`find_preset`.
    """
    return {name: find_preset(DIAGNOSE, name, "diagnose") for name in names or DIAGNOSE_DEFAULT}
