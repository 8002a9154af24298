"""Names in figures: one line, of bounded length, distinct, and in characters that a font of this machine has.

Names of classes and runs come from folders: they may hold dollar signs, line breaks, sixty characters, or letters that
the default font lacks. matplotlib is imported on use only, so that tables can shorten names without it.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

from trilemma.printing import CONTROLS, print_message

# The font of figures; it comes with matplotlib.
DEFAULT = "DejaVu Sans"
# Longest name in a figure, in characters.
LONGEST = 28
# Bidirectional classes of scripts that are written from right to left.
_RIGHT_TO_LEFT = ("R", "AL")
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def one_line(text: str) -> str:
    """Returns the text in one line, without control characters, in composed form (NFC)."""
    spaced = "".join(" " if character.isspace() else character for character in text)
    return " ".join(unicodedata.normalize("NFC", CONTROLS.sub("", spaced)).split())


def shortened(text: str, longest: int) -> str:
    """Returns the text in one line, with an ellipsis instead of its middle if it is longer than ``longest``."""
    line = one_line(text)
    if len(line) <= longest:
        return line
    end = longest // 3
    return f"{line[: longest - end - 1]}{ELLIPSIS}{line[len(line) - end :]}"


def figure_labels(names: Sequence[str], longest: int = LONGEST) -> list[str]:
    """Returns the texts by which a figure names things: short, distinct, and drawable.

    A name with characters that no installed font has becomes its number in ``names``, such as ``#3``; a line on
    standard error says so, once. :func:`label_key` returns the names behind such texts.

    Args:
        names: names of classes or runs, in their order.
        longest: longest text in characters.
    """
    texts = [shortened(name, longest) for name in names]
    numbered = [not text or not font_families(text) for text in texts]
    if any(text and without_name for text, without_name in zip(texts, numbered, strict=True)):
        _say_numbered()
    counts = Counter(texts)
    return [
        f"#{index}" if without_name else f"#{index} {text}" if counts[text] > 1 else text
        for index, (text, without_name) in enumerate(zip(texts, numbered, strict=True))
    ]


def label_key(names: Sequence[str], longest: int = LONGEST) -> list[tuple[str, str]]:
    """Returns pairs (text in the figure, full name) of the names that a figure shortens or numbers."""
    labels = figure_labels(names, longest)
    return [
        (label, one_line(name)) for label, name in zip(labels, names, strict=True) if label != one_line(name)
    ]


def font_families(text: str) -> tuple[str, ...]:
    """Returns the installed font families that together have all characters of a text: first the default one.

    The list is empty if no installed font has some character, or if this matplotlib cannot write from right to left.
    """
    missing = frozenset(character for character in text if not character.isspace() and not _has(character))
    if (
        any(unicodedata.bidirectional(character) in _RIGHT_TO_LEFT for character in text)
        and not _shapes_text()
    ):
        return ()
    if not missing:
        return (DEFAULT,)
    other = _family_with(missing)
    return () if other is None else (DEFAULT, other)


def _shapes_text() -> bool:
    """Whether matplotlib lays out complex scripts, as from version 3.11."""
    from matplotlib import ft2font

    return hasattr(ft2font, "__libraqm_version__")


@cache
def _has(character: str) -> bool:
    """Whether the default font has the character."""
    from matplotlib import font_manager

    return font_manager.get_font(font_manager.findfont(DEFAULT)).get_char_index(ord(character)) != 0


@cache
def _family_with(characters: frozenset[str]) -> str | None:
    """The family of an installed font that has all these characters, preferably sans serif and of regular weight."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    # The font of last resort has a box for every character.
    entries = [
        entry
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal" and entry.size == "scalable"
        if entry.name != DEFAULT and not entry.name.startswith("Last Resort")
    ]
    for entry in sorted(
        entries, key=lambda entry: ("sans" not in entry.name.lower(), entry.weight != 400, entry.name)
    ):
        try:
            font = FT2Font(entry.fname)
        except (OSError, RuntimeError):
            # A font that cannot be read is none.
            continue
        if all(font.get_char_index(ord(character)) for character in characters):
            return str(entry.name)
    return None


@cache
def _say_numbered() -> None:
    """Prints, once per process, that figures show numbers instead of some names."""
    print_message(
        "note: no installed font has all characters of some names; figures show numbers such as #0 instead, and pages "
        "list the names"
    )
