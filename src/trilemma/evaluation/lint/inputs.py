"""Images that are not what they should be: another range, nothing in them, or not numbers."""

from __future__ import annotations

from torch import Tensor

from trilemma.classifier import TOLERANCE
from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.statistics import many
from trilemma.threat import Threat

# Images in [0, 1] whose brightest pixel is below this were divided by 255 once more.
DARK = 2 / 255


def image_findings(images: Tensor, threat: Threat | None) -> list[Finding]:
    """Range and content of ``[N, C, H, W]``, and a radius that would be in other units."""
    flat = images.flatten(1).double()
    low, high = flat.amin(1), flat.amax(1)
    outside = ~((low >= -TOLERANCE) & (high <= 1 + TOLERANCE))  # true for NaN too
    found = []
    if bool(outside.any()):
        span = f"values span [{float(low.min()):.4g}, {float(high.max()):.4g}] instead of [0, 1]"
        found.append(Finding.known("range", span, int(outside.sum()), len(images)))
        if (
            threat is not None
            and -1 - TOLERANCE <= float(low.min()) < 0
            and float(high.max()) <= 1 + TOLERANCE
        ):
            seen = f"images span [-1, 1], where a radius of {threat.radius} is worth half of it in [0, 1]"
            found.append(Finding.known("radius-units", seen, int(outside.sum()), len(images)))
    elif float(high.max()) <= DARK:
        seen = f"no value is above {float(high.max()):.4g}, as if divided by 255 twice"
        found.append(Finding.known("range", seen, len(images), len(images)))
    constant = int((low == high).sum())
    if many(constant, len(images), 0.01, at_least=1):
        found.append(Finding.known("constant-images", "all pixels have one value", constant, len(images)))
    return found
