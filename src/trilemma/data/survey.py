"""What an image folder or archive holds: classes, sizes, broken files and equal files, found without stopping."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trilemma.data.containers import Container
from trilemma.data.image_files import images_in, most_common_size
from trilemma.data.layout import ImagePath
from trilemma.data.pictures import decode, read_header
from trilemma.data.sources import load_splits
from trilemma.errors import DataError
from trilemma.progress import bar, can_draw


@dataclass(frozen=True)
class Survey:
    """What :func:`survey` has found.

    Attributes:
        counts: split (``"train"``, ``"val"``, ``"test"`` or ``"all"``) to the number of images by class.
        size: the most common (height, width).
        sizes: number of different sizes.
        colour: number of images that are not grey.
        broken: path and reason of each file that cannot be decoded.
        equal: pairs of paths of files with the same bytes in different splits or classes, which make test results too
            good or labels contradict each other.
        remarks: files that are not counted, one line per reason.
    """

    counts: Mapping[str, Mapping[str, int]]
    size: tuple[int, int]
    sizes: int
    colour: int
    broken: list[tuple[str, str]] = field(default_factory=list)
    equal: list[tuple[str, str]] = field(default_factory=list)
    remarks: tuple[str, ...] = ()

    @property
    def by_class(self) -> dict[str, int]:
        """Number of images of each class, over all splits, in the order of labels."""
        total: Counter[str] = Counter()
        for counts in self.counts.values():
            total.update(counts)
        return dict(sorted(total.items()))

    @property
    def images(self) -> int:
        """Number of images, broken ones included."""
        return sum(self.by_class.values())


def survey(root: Path) -> Survey:
    """Reads and decodes every image of a folder, of archives or of an ``.npz`` file; writes nothing.

    Raises:
        DataError: the source does not exist, has no images, or its images are not arranged by class.
    """
    if root.suffix.lower() == ".npz":
        return _survey_arrays(root)
    members, left_out = images_in(root)
    counts: dict[str, Counter[str]] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    colour = 0
    broken, equal = [], []
    first_by_content: dict[bytes, ImagePath] = {}
    with bar(f"reading {root}", len(members), can_draw()) as advance:
        for image, container in members:
            advance(1)
            counts.setdefault(image.split, Counter())[image.class_name] += 1
            try:
                data, (height, width, is_colour) = _read(image, container)
            except DataError as error:
                broken.append((image.path, str(error).partition(": ")[2]))
                continue
            sizes[(height, width)] += 1
            colour += is_colour
            first = first_by_content.setdefault(hashlib.sha256(data).digest(), image)
            if (first.split, first.class_name) != (image.split, image.class_name):
                equal.append((first.path, image.path))
    if not sizes:
        raise DataError(
            f"{root}: none of its {len(members)} images can be decoded; the first: {broken[0][1]}"
        )
    size = most_common_size(list(sizes.elements()))
    return Survey(counts, size, len(sizes), colour, broken, equal, left_out.lines())


def _read(image: ImagePath, container: Container) -> tuple[bytes, tuple[int, int, bool]]:
    """The bytes of an image, its height and width, and whether it is colour; raises a DataError if it is damaged."""
    data = container.read(image.path, None)
    header = read_header(data, image.path)
    # A header is whole in a truncated file too.
    decode(data, (3, 8, 8), image.path)
    return data, header


def _survey_arrays(root: Path) -> Survey:
    splits = load_splits("folder", root)
    parts = {"train": splits.train, "held-out": splits.held_out, "test": splits.test}
    counts = {
        split: {name: int((part.labels == label).sum()) for label, name in enumerate(part.class_names)}
        for split, part in parts.items()
    }
    channels, height, width = splits.train.image_shape
    images = sum(map(len, parts.values()))
    return Survey(counts, (height, width), 1, images if channels > 1 else 0)
