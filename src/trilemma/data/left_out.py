"""What a source has but does not count: files by reason, printed once per process."""

from __future__ import annotations

from collections.abc import Iterable

from trilemma.printing import print_message

_NOT_COUNTED = "not counted: "
_printed: set[str] = set()


class LeftOut:
    """Paths that are not counted, by reason."""

    def __init__(self) -> None:
        self._paths: dict[str, list[str]] = {}

    def add(self, reason: str, *paths: str) -> None:
        """Adds paths with the reason why they are not counted."""
        if paths:
            self._paths.setdefault(reason, []).extend(paths)

    def update(self, other: LeftOut) -> None:
        """Adds the paths of ``other``."""
        for reason, paths in other._paths.items():
            self.add(reason, *paths)

    def lines(self) -> tuple[str, ...]:
        """One line per reason, with its number of paths and the first of them."""
        lines = []
        for reason, paths in self._paths.items():
            first, *more = sorted(paths)
            lines.append(f"{_NOT_COUNTED}{first}{f' and {len(more):,} more' if more else ''}: {reason}")
        return tuple(lines)


def print_remarks(where: str, remarks: Iterable[str]) -> None:
    """Prints what is not counted in a source on standard error, each line once per process."""
    for text in (f"{where}: {line}" for line in remarks if line.startswith(_NOT_COUNTED)):
        if text not in _printed:
            _printed.add(text)
            print_message(text)
