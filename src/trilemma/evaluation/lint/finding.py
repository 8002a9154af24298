"""A finding of the lint: observation, number of images, usual cause, and remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trilemma.evaluation.lint.catalogue import CATALOGUE


@dataclass(frozen=True)
class Finding:
    """One suspected mistake of an evaluation.

    Attributes:
        name: a key of :data:`trilemma.evaluation.lint.catalogue.CATALOGUE`.
        severity: ``"error"``: the measured values are wrong or measure something else; ``"warning"``: they may be.
        seen: the observation, in words.
        count, of: number of images with this observation, and number of images checked; 0 if no images are involved.
        means: the usual cause.
        do: the remedy.
    """

    name: str
    severity: str
    seen: str
    count: int
    of: int
    means: str
    do: str

    @classmethod
    def from_catalogue(cls, name: str, seen: str, count: int, of: int) -> Finding:
        """The finding ``name``, with severity, cause and remedy from the catalogue."""
        entry = CATALOGUE[name]
        return cls(name, entry.severity, seen, count, of, entry.means, entry.do)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Finding:
        """The finding of a :meth:`record`."""
        return cls(**record)

    def record(self) -> dict[str, Any]:
        """The fields as a JSON-like dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        images = f" ({self.count} of {self.of} images)" if self.of else ""
        return f"{self.severity}: {self.name}{images}: {self.seen}. {self.means} {self.do}"
