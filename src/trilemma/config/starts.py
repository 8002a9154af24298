"""The text that names the start of chains: one start, its options, or a mixture with weights. Needs no torch.

``class-pca``, ``local-pca:k=200``, ``uniform:0.5,class-pca:0.5``, ``uniform:0.2,local-pca:k=200:0.8``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trilemma.config.registry import STARTS
from trilemma.errors import ConfigError, nearest
from trilemma.units import DECIMAL, MAX_SEED, parse_fraction

# The start from chains of a training run, which training cannot begin with.
REPLAY_BUFFER = "replay-buffer"


@dataclass(frozen=True)
class StartPart:
    """One start of a mixture: a name of the registry ``STARTS``, the share of the images, and options."""

    name: str
    weight: float = 1.0
    options: dict[str, float] = field(default_factory=dict)


def start_names(text: str) -> list[str]:
    """Returns the names in the text of a start, without checking them."""
    return [part.partition(":")[0].strip() for part in text.split(",")]


def parse_start(text: object) -> list[StartPart]:
    """Returns the starts that a text names, with their weights, which sum to 1.

    Args:
        text: ``NAME[:OPTION=VALUE]...[:WEIGHT],...``; without weights, all starts have the same.

    Raises:
        ConfigError: an unknown name, or weights that are no numbers, not above 0, missing or do not sum to 1.
    """
    if not isinstance(text, str):
        raise ConfigError(f"start: {text!r}; pass a name, see `trilemma list starts`")
    parts = [_parse_part(part.strip(), text) for part in text.split(",")]
    weights = [weight for _, weight, _ in parts if weight is not None]
    if not weights:
        return [StartPart(name, 1 / len(parts), options) for name, _, options in parts]
    if len(weights) < len(parts):
        raise ConfigError(
            f"start: {text!r} has weights for {len(weights)} of {len(parts)} starts; give all or none"
        )
    if abs(sum(weights) - 1) > 1e-6:
        raise ConfigError(f"start: the weights of {text!r} sum to {sum(weights):g}; they must sum to 1")
    return [StartPart(name, weight or 0.0, options) for name, weight, options in parts]


def _parse_part(part: str, text: str) -> tuple[str, float | None, dict[str, float]]:
    """Name, weight if there is one, and options of one start of ``text``."""
    name, *fields = part.split(":")
    if name not in STARTS:
        names = list(STARTS.rows())
        raise ConfigError(f"start: unknown start {name!r}.{nearest(name, names)} Starts: {', '.join(names)}")
    weight: float | None = None
    options: dict[str, float] = {}
    for position, text_field in enumerate(fields):
        key, equals, value = text_field.rpartition("=")
        number = _number(value)
        last = position == len(fields) - 1
        if number is None or (not equals and not last):
            raise ConfigError(
                f"start: {text_field!r} in {text!r} is neither OPTION=NUMBER nor a weight; write "
                "NAME, NAME:OPTION=NUMBER, or NAME:WEIGHT,NAME:WEIGHT"
            )
        if equals:
            options[key.strip()] = number
        elif number <= 0:
            raise ConfigError(f"start: the weight of {name!r} is {number:g}; weights must be above 0")
        else:
            weight = number
    return name, weight, options


def _number(text: str) -> float | None:
    """The number that a text states, whole ones as ``int``; ``None`` if it states none."""
    text = text.strip()
    if not DECIMAL.fullmatch(text):
        return None
    try:
        number = float(parse_fraction(text))
    except ValueError:
        return None
    return int(number) if number.is_integer() and abs(number) <= MAX_SEED else number
