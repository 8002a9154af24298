"""Class names: their normal form, and the matching of the classes of a data set to those of a classifier.

A name is text in Unicode's composed form (NFC), so that ``café`` of Linux and ``café`` of macOS are one name.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trilemma.errors import DataError, UserError, nearest


def normal_form(name: Any) -> str:
    """A name as composed text: bytes are decoded as UTF-8, and bytes that are no UTF-8 are replaced."""
    if isinstance(name, str) and name.isascii():
        return str(name)
    if isinstance(name, bytes):
        text = name.decode("utf-8", "replace")
    else:
        # Python reads a file name that is no UTF-8 with surrogates, which cannot be written anywhere.
        text = str(name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return unicodedata.normalize("NFC", text)


def distinct_names(names: Iterable[Any], where: str, error: type[UserError] = DataError) -> tuple[str, ...]:
    """The names in normal form.

    Args:
        names: text or bytes, in label order.
        where: the source, for messages.
        error: class of the exception.

    Raises:
        UserError: two names are equal.
    """
    normal = tuple(map(normal_form, names))
    first: dict[str, int] = {}
    for label, name in enumerate(normal):
        if first.setdefault(name, label) != label:
            raise error(
                f"{where}: two classes are named {name!r} (labels {first[name]} and {label}); labels are matched by "
                "name, so give every class a name of its own"
            )
    return normal


def numbers(count: int) -> tuple[str, ...]:
    """The names of classes that have none: ``"0"`` to ``str(count - 1)``."""
    return tuple(map(str, range(count)))


@dataclass(frozen=True)
class ClassMatch:
    """How the classes of a data set are matched to those of a classifier.

    Attributes:
        labels: the classifier's label of each class of the data set.
        by: empty if the names were matched, else the way in words, for result rows.
    """

    labels: tuple[int, ...]
    by: str = ""


def match_classes(names: Sequence[str], classifier_names: Sequence[str], where: str) -> ClassMatch | None:
    """Matches the classes of a data set to those of a classifier: by name if both have names, or by number.

    A side has no names if they are the numbers of its classes. Only if the classifier has none, classes of the data
    are matched by their order; numbers are ordered as numbers (2 before 10), which sorted folders are not.

    Args:
        names: the classes of the data, in label order.
        classifier_names: the classes of the classifier, in label order.
        where: the data, for messages.

    Returns:
        ``None`` if the classifier has no names and another number of classes.

    Raises:
        DataError: a class of the data is none of the classifier's.
    """
    label_of = {normal_form(name): label for label, name in enumerate(classifier_names)}
    own_names = tuple(map(normal_form, names))
    values = [int(name) for name in own_names if name.isascii() and name.isdecimal()]
    in_range = len(set(values)) == len(own_names) and max(values) < len(label_of)
    if all(name in label_of for name in own_names):
        return ClassMatch(tuple(label_of[name] for name in own_names))
    unnamed = tuple(label_of) == numbers(len(label_of))
    if in_range:
        return ClassMatch(
            tuple(values), "" if unnamed else "classes by number, since the data have no class names"
        )
    if not unnamed:
        unknown = next(name for name in own_names if name not in label_of)
        raise DataError(
            f"{where}: class {unknown!r} is none of the classifier's {len(label_of)} classes; "
            f"rename its folder.{nearest(unknown, label_of)}"
        )
    if len(own_names) != len(label_of):
        return None
    if len(set(values)) == len(own_names):
        ranks = tuple(sorted(values).index(value) for value in values)
        return ClassMatch(ranks, "classes by order of their numbers, since the classifier has no class names")
    return ClassMatch(
        tuple(range(len(own_names))), "classes by order, since the classifier has no class names"
    )


def names_by_order(names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The names that the classes of a data set give to the outputs of a network without class names, in their order.

    Returns:
        The names in the order of the outputs, and how they were matched (:attr:`ClassMatch.by`).
    """
    match = match_classes(names, numbers(len(names)), "")
    assert match is not None
    return tuple(names[match.labels.index(label)] for label in range(len(names))), match.by
