"""A threat model: which perturbations of an image are allowed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import get_args

import torch
from torch import Tensor

from trilemma import noise
from trilemma.errors import ConfigError
from trilemma.units import Norm, parse_fraction

NORMS: tuple[str, ...] = get_args(Norm)


def _per_image(value: Tensor, images: Tensor) -> Tensor:
    return value.view(-1, *[1] * (images.dim() - 1))


def image_norm(images: Tensor) -> Tensor:
    """The L2 norm of each image, shaped to broadcast over ``[N, C, H, W]``."""
    return _per_image(images.flatten(1).norm(dim=1), images)


@dataclass(frozen=True)
class Threat:
    """All images within ``radius`` of the clean one in ``norm``, and inside [0, 1].

    Attributes:
        norm: ``"linf"`` or ``"l2"``.
        radius: as written in the paper, ``"8/255"`` or 0.3, in pixel units of images in [0, 1]; kept exact.

    Raises:
        ConfigError: unknown norm, or a radius that is not a number above 0.
    """

    norm: str = "linf"
    radius: str | float = "8/255"

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ConfigError(f"threat.norm: {self.norm!r} is unknown; choose one of {', '.join(NORMS)}")
        try:
            fraction = parse_fraction(self.radius)
        except ValueError as error:
            raise ConfigError(f"threat.radius: {error}") from None
        if fraction <= 0:
            raise ConfigError(f"threat.radius: {self.radius!r} must be above 0")
        if self.norm == "linf" and fraction > 1:
            raise ConfigError(
                f"threat.radius: {self.radius!r} is more than the whole range [0, 1]; write '{self.radius}/255'?"
            )
        object.__setattr__(self, "radius", str(self.radius).replace(" ", ""))

    @property
    def fraction(self) -> Fraction:
        """The exact radius."""
        return parse_fraction(self.radius)

    @property
    def epsilon(self) -> float:
        """The radius as a float, pixel units."""
        return float(self.fraction)

    def __str__(self) -> str:
        return f"{self.norm} {self.radius}"

    def project(self, images: Tensor, clean: Tensor) -> Tensor:
        """The nearest point of the ball around ``clean``, then of the box [0, 1]. ``[N, C, H, W]``.

        For L2 the box comes last; it only brings a point nearer, since ``clean`` is in the box.
        """
        delta = images - clean
        if self.norm == "linf":
            delta = delta.clamp_(-self.epsilon, self.epsilon)
        else:
            # float32 sums over a large image are off by more than anybody tolerates outside a ball
            length = _per_image(delta.flatten(1).norm(dim=1, dtype=torch.float64), images)
            delta = delta * (self.epsilon / length.clamp_min(self.epsilon)).to(delta.dtype)
        return delta.add_(clean).clamp_(0.0, 1.0)

    def ascent(self, gradient: Tensor) -> Tensor:
        """The steepest direction of unit length: the sign (linf) or the normalised gradient (l2)."""
        if self.norm == "linf":
            return gradient.sign()
        return gradient / image_norm(gradient).clamp_min(1e-12)

    def pixel_radius(self, shape: torch.Size) -> float:
        """The radius per pixel value of images of ``shape`` (C, H, W), pixel units.

        Of an L2 ball it is the L-inf radius whose full step is as long: ``epsilon / sqrt(C H W)``.
        """
        return self.epsilon if self.norm == "linf" else self.epsilon / math.sqrt(shape.numel())

    def random_start(
        self, images: Tensor, seeds: Tensor, stream: int = 0, scale: float = 1.0, clip: bool = True
    ) -> Tensor:
        """A uniform point of the ball of ``scale`` radii around each image, inside the box.

        Args:
            images: ``[N, C, H, W]`` in [0, 1].
            seeds: int64 ``[N]``, one per image (see :mod:`trilemma.noise`).
            stream: which draw of the image this is.
            scale: ball size in radii.
            clip: to the box; without it the point may lie outside [0, 1].
        """
        shape = images.shape[1:]
        if self.norm == "linf":
            delta = (2 * noise.uniform(seeds, stream, shape) - 1) * (scale * self.epsilon)
        else:
            direction = noise.normal(seeds, stream, shape)
            length = noise.uniform(~seeds, stream, (1,)).view(-1).pow(1 / shape.numel())
            delta = direction / image_norm(direction) * (scale * self.epsilon) * _per_image(length, images)
        start = images + delta.to(images)
        return start.clamp(0.0, 1.0) if clip else start

    def contains(self, images: Tensor, clean: Tensor, tolerance: float = 1e-6) -> Tensor:
        """Whether each image is in the ball and in the box, bool ``[N]``."""
        delta = (images - clean).flatten(1)
        length = delta.abs().amax(1) if self.norm == "linf" else delta.norm(dim=1, dtype=torch.float64)
        flat = images.flatten(1)
        inside = (flat.amin(1) >= -tolerance) & (flat.amax(1) <= 1 + tolerance)
        return (length <= self.epsilon + tolerance) & inside & torch.isfinite(flat).all(1)
