"""A finding: what was seen, on how many images, what it usually means, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trilemma.evaluation.lint.catalogue import CATALOGUE


@dataclass(frozen=True)
class Finding:
    """One suspicion about an evaluation.

    Attributes:
        name: a key of :data:`trilemma.evaluation.lint.catalogue.CATALOGUE`.
        severity: ``"error"``: the figures are wrong or say something else than they seem to; ``"warning"``: they
            may be.
        seen: what was measured.
        count: images on which it was seen, of ``of`` that were looked at.
        means: what usually lies behind it.
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
    def known(cls, name: str, seen: str, count: int, of: int) -> Finding:
        """A finding of the catalogue with what was seen this time."""
        entry = CATALOGUE[name]
        return cls(name, entry.severity, seen, count, of, entry.means, entry.do)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Finding:
        """What :meth:`record` wrote."""
        return cls(**record)

    def record(self) -> dict[str, Any]:
        """JSON-like."""
        return asdict(self)

    def __str__(self) -> str:
        on = f" ({self.count} of {self.of} images)" if self.of else ""
        return f"{self.severity}: {self.name}{on}: {self.seen}. {self.means} {self.do}"
