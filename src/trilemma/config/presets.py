"""Named attack presets: the attacks of AutoAttack, ``screen`` and ``diagnose`` with their settings. Needs no torch.

Each table maps preset names to attacks of the registry ``ATTACKS`` with settings. :func:`find_preset` also accepts the
name of a registered attack that is in no table, and uses the attack's default settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trilemma.config.registry import ATTACKS
from trilemma.errors import UnknownNameError, nearest

# The aim of an attack: to increase the loss of the true class, or to reach another class (boundary, target, margin).
LOSS, CLASS = "loss", "class"
# The targeted DLR loss is undefined for fewer classes; its numerator alone, a margin, is maximised instead.
CLASSES_OF_TARGETED_DLR = 4


@dataclass(frozen=True)
class Preset:
    """One attack with its settings.

    Attributes:
        attack: a name of the registry, or ``"module:function"`` of a function with the same signature.
        settings: keyword arguments of the attack.
        about: objective and number of steps, with settings in braces that :meth:`words` fills in.
        aim: :data:`LOSS` or :data:`CLASS`.
        passes: largest number of forward passes per image; 0 if unknown.
        stream: random-number stream of the attack in an ensemble, unique within a table.
    """

    attack: str
    settings: dict[str, Any] = field(default_factory=dict)
    about: str = "default settings"
    aim: str = LOSS
    passes: int = 0
    stream: int = 0

    def words(self, num_classes: int) -> str:
        """``about`` with the settings filled in for a classifier with ``num_classes`` classes."""
        targets = min(self.settings.get("targets") or 1, num_classes - 1)
        return self.about.format(
            **self.settings | {"targets": "1 target" if targets == 1 else f"{targets} targets"},
            dlr="DLR" if num_classes >= CLASSES_OF_TARGETED_DLR else "margin",
        )


def _ascents(targets: int, steps: int) -> int:
    """Forward passes per image of targeted APGD: ``steps`` + 1 per target, and one to choose the targets."""
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

# The number of forward passes whose mean gradient AutoAttack's version for random networks follows.
EXPECTATION = 20
# All steps are done: at the first misclassified iterate a random network may still be right in half of its passes.
AUTOATTACK_RAND = {
    "apgd-ce": Preset("apgd", {"loss": "ce", "steps": 100, "early_stop": False}, stream=0),
    "apgd-dlr": Preset("apgd", {"loss": "dlr", "steps": 100, "early_stop": False}, stream=1),
    # DLR is undefined for 2 classes; its numerator alone replaces it.
    "apgd-margin": Preset(
        "apgd", {"loss": "margin-targeted", "steps": 100, "targets": 1, "early_stop": False}, stream=2
    ),
}

# No early stopping: the energy landscape shows the end point of the optimisation, not the first decision boundary.
_ALL_STEPS = {"steps": 50, "early_stop": False}

DIAGNOSE = {
    "pgd": Preset("pgd", {"steps": 20}, "cross-entropy, {steps} steps"),
    "trades-kl": Preset("pgd", {"loss": "kl", "steps": 20}, "KL, {steps} steps"),
    "apgd-ce": Preset("apgd", {"loss": "ce", **_ALL_STEPS}, "cross-entropy, {steps} steps"),
    "energy": Preset("pgd", {"loss": "joint", "steps": 20}, "E(x,y), {steps} steps"),
    "he-pgd": Preset("he-pgd", {"steps": 20, "gamma": 1.5}, "cross-entropy + {gamma} E(x), {steps} steps"),
    "pgd-targeted": Preset(
        "trilemma.attacks.pgd:pgd_targeted", {"steps": 20}, "a random target, {steps} steps", CLASS
    ),
    "apgd-dlr": Preset("apgd", {"loss": "dlr", **_ALL_STEPS}, "DLR, {steps} steps", CLASS),
    "apgd-t": Preset(
        "trilemma.attacks.apgd:apgd_targeted",
        {"targets": 3, **_ALL_STEPS},
        "{dlr}, {targets} x {steps} steps",
        CLASS,
    ),
    "fab": Preset("fab", {"steps": 20, "targets": None}, "nearest boundary, {steps} steps", CLASS),
    "fab-t": Preset("fab", {"steps": 20, "targets": 3}, "{targets} x {steps} steps", CLASS),
    "square": Preset("square", {"queries": 500}, "{queries} queries", CLASS),
}
# The attacks compared in the literature; the other three of the table are variations.
DIAGNOSE_DEFAULT = ("pgd", "trades-kl", "apgd-ce", "pgd-targeted", "apgd-t", "fab", "fab-t", "square")

# Registered attacks that return a result object instead of images.
_RETURN_NO_IMAGES = ("autoattack",)


def find_preset(table: Mapping[str, Preset], name: str, command: str) -> Preset:
    """The preset ``name`` of ``table``, or the registered attack of that name with its default settings.

    Args:
        table: presets by name.
        name: a key of ``table``, or a registered attack that returns images.
        command: the command or protocol that uses the table, for the error message.

    Raises:
        UnknownNameError: no such preset or attack; the message lists all names and the nearest one.
    """
    if name in table:
        return table[name]
    if name in ATTACKS and name not in _RETURN_NO_IMAGES:
        # 1000 and above: no preset of a table uses these streams.
        return Preset(name, stream=1000 + sum(ord(letter) * 31**k for k, letter in enumerate(name)) % 2**31)
    registered = [other for other in ATTACKS.rows() if other not in (*table, *_RETURN_NO_IMAGES)]
    names = [*table, *registered]
    raise UnknownNameError(
        f"{command}: unknown attack {name!r}.{nearest(name, names)} Attacks: {', '.join(table)}; "
        f"registered: {', '.join(registered)}"
    )


def diagnose_presets(names: Sequence[str] | None) -> dict[str, Preset]:
    """The presets of ``diagnose`` by name, without duplicates and in the order of ``names``.

    Args:
        names: preset or attack names; ``None`` or an empty sequence for :data:`DIAGNOSE_DEFAULT`.

    Raises:
        UnknownNameError: see :func:`find_preset`.
    """
    return {name: find_preset(DIAGNOSE, name, "diagnose") for name in names or DIAGNOSE_DEFAULT}
