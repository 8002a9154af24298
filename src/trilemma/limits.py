"""How much is read of what: every limit against input that would use up memory, time or disk, each with its reason.

A limit is checked before the memory is allocated. Data that exceed one on purpose are read after the environment
variable ``TRILEMMA_LIMITS`` is set to a factor, such as ``TRILEMMA_LIMITS=10``, which multiplies all limits of data
(images, archives and their expansion). Limits of recipes, records and headers do not change: no valid one comes near.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from trilemma.errors import ConfigError, DataError, UserError

# The environment variable of the factor.
FACTOR = "TRILEMMA_LIMITS"


@dataclass(frozen=True)
class Limit:
    """The most of something that is read.

    Attributes:
        most: the limit itself.
        unit: of the amount, such as ``pixels`` or ``MB``.
        per: amount of one unit.
        what: whose limit it is, for the message: ``an image``.
        remedy: what to do about input that exceeds it.
        data: whether :data:`FACTOR` multiplies it.
    """

    most: int
    unit: str
    per: int
    what: str
    remedy: str
    data: bool = True

    @property
    def value(self) -> int:
        """The limit, multiplied by the factor of the environment if it is one of data."""
        return int(self.most * _factor()) if self.data else self.most

    def check(self, amount: float, where: str, error: type[UserError] = DataError) -> None:
        """Raises ``error`` if there is more than the limit.

        Args:
            amount: how much there is, or is claimed to be.
            where: the input, for the message.
            error: class of the exception.
        """
        if amount > self.value:
            raise error(f"{where}: {self.excess(amount)}")

    def excess(self, amount: float | None) -> str:
        """The message about an amount above the limit, without its place; ``None`` for an unknown amount."""
        has = "" if amount is None else f"{self._text(amount)}, "
        factor = f", or set {FACTOR}=10 if you trust it" if self.data else ""
        return (
            f"{has}more than the {self._text(self.value)} that are read of {self.what}; {self.remedy}{factor}"
        )

    def _text(self, amount: float) -> str:
        value = amount / self.per
        return f"{math.ceil(value) if value > 10 else round(value, 1):,} {self.unit}"


def _factor() -> float:
    """The factor of the environment, 1 by default; raises :class:`ConfigError` unless it is a number from 1."""
    text = os.environ.get(FACTOR, "1")
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    # The comparison is false for NaN as well.
    if not 1 <= factor < math.inf:
        raise ConfigError(f"{FACTOR}={text[:40]}: give a factor from 1, such as {FACTOR}=10")
    return factor


_MB = 1_000_000
_SMALLER = "make it smaller first"

# A photograph of a camera has at most 50 million pixels; decoded it takes 150 MB. Pillow itself refuses 180 million.
IMAGE_PIXELS = Limit(50_000_000, "million pixels", _MB, "an image", _SMALLER)
# The bytes of such an image without any compression.
IMAGE_FILE = Limit(150_000_000, "MB", _MB, "an image file", _SMALLER)
# Content of archives that decompresses to so many times its size, once it is above the amount below. Zeros reach 230
# to 1,030; sparse images, such as white dots on black, reach 120, natural images less than 10.
EXPANSION = Limit(150, "times", 1, "an archive", "write it again from the images")
# Less than this is read whatever it is compressed to: it does no harm.
SMALL = 64_000_000
# Classes of a data set or classifier; the largest public ones have 22,000. Names alone take 100 bytes each.
CLASSES = Limit(100_000, "classes", 1, "a data set", "number classes from 0 without gaps")

# Recipes have 3 kB, configurations of runs 6 kB; YAML is parsed at 0.1 MB/s.
RECIPE = Limit(128_000, "kB", 1000, "a recipe", "leave out what is no recipe", data=False)
# Values of a recipe after its anchors are filled in; there are 150 keys.
RECIPE_VALUES = Limit(10_000, "values", 1, "a recipe", "write it without nested anchors", data=False)
# Headers of safetensors files: names and shapes of tensors and a JSON text; those of this package have up to 50 kB.
# JSON takes up to 25 times its size in memory.
HEADER = Limit(4_000_000, "MB", _MB, "a header", "copy the file again", data=False)
# Result rows and other texts of a run folder, and lists of class names: a confusion matrix of 100 classes has 150 kB.
TEXT = Limit(4_000_000, "MB", _MB, "a text file", "check the file", data=False)
# The index of tar shards has 5 bytes per image: 7 MB for the 1.3 million images of ImageNet.
SHARD_INDEX = Limit(200_000_000, "MB", _MB, "an index of shards", "split the data")
# A line of a training log has 500 bytes. A log of other programs has a row per evaluation.
LOG_LINE = Limit(1_000_000, "kB", 1000, "a line", "check the file", data=False)
LOG_ROWS = Limit(100_000, "rows", 1, "a log", "shorten it")


def check_expansion(size: float, compressed: int, where: str, error: type[UserError] = DataError) -> None:
    """Raises ``error`` if ``size`` bytes of content are more than data ever are in ``compressed`` bytes."""
    if size > SMALL:
        EXPANSION.check(size / max(1, compressed), f"{where}: expands to {size / 1e6:,.0f} MB", error)
