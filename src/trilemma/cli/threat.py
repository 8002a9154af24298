"""``--norm`` and ``--radius``: the threat model asked for on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trilemma.errors import ConfigError

if TYPE_CHECKING:
    from trilemma.threat import Threat


def asked_threat(norm: str | None, radius: str | None) -> Threat | None:
    """The threat model, linf if only a radius is given; ``None`` means the one stored with the classifier.

    Raises:
        ConfigError: a norm without a radius, or either is no norm or no radius.
    """
    if radius is None:
        if norm is not None:
            raise ConfigError(f"--norm {norm}: needs --radius too, such as --radius 8/255")
        return None
    from trilemma.threat import Threat

    return Threat(norm or "linf", radius)


def check_threat(asked: Threat | None, stored: object | None) -> None:
    """Refuses to attack without knowing how far.

    Raises:
        ConfigError: no threat model was asked for and none is stored.
    """
    if asked is None and stored is None:
        raise ConfigError(
            "no threat model is stored with this classifier; give one, such as --norm linf --radius 8/255"
        )
