"""Check for images in another layout than in training: inverted, flipped, rotated, transposed, channels reversed."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.gains import Change, best_gain
from trilemma.evaluation.lint.probe import Probe

# What a change must reach (see :class:`trilemma.evaluation.lint.gains.Change`): there are several orientations, and
# one order of channels.
REACH, REACH_OF_CHANNELS = ((2.5, 0.4),), ((1.6, 0.4),)


def layout_findings(probe: Probe, images: Tensor, labels: Tensor, correct: Tensor) -> list[Finding]:
    """A finding for the layout that clearly raises the accuracy; else an empty list.

    Args:
        images: ``[N, C, H, W]``.
        correct: bool ``[N]``, the images that are classified correctly as they are.
    """
    best = best_gain(probe, _layouts(images), images, labels, correct)
    if best is None:
        return []
    observation = (
        f"with {best.change.text}, {best.gained} misclassified images are classified correctly, and {best.lost} the "
        "other way round"
    )
    return [Finding.from_catalogue(best.change.finding, observation, best.gained - best.lost, len(images))]


def _layouts(images: Tensor) -> Iterator[Change]:
    if images.shape[1] == 3:
        yield Change("channel-order", "reversed channels", lambda x: x.flip(1), REACH_OF_CHANNELS)
    yield Change("inverted-images", "light and dark exchanged", lambda x: 1 - x, REACH)
    turns = [
        ("images flipped top to bottom", lambda x: x.flip(2)),
        ("images flipped left to right", lambda x: x.flip(3)),
        ("images rotated by 180 degrees", lambda x: x.flip(2, 3)),
    ]
    if images.shape[2] == images.shape[3]:
        turns += [
            ("rows and columns exchanged", lambda x: x.transpose(2, 3)),
            ("images rotated by 90 degrees to the left", lambda x: x.rot90(1, (2, 3))),
            ("images rotated by 90 degrees to the right", lambda x: x.rot90(3, (2, 3))),
        ]
    for text, turn in turns:
        yield Change("orientation", text, turn, REACH)
