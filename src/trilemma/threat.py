"""The threat model: the allowed perturbations of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from trilemma import noise
from trilemma.errors import ConfigError
from trilemma.units import NORMS as NORMS
from trilemma.units import check_radius, parse_fraction, parse_norm


def _per_image(value: Tensor, images: Tensor) -> Tensor:
    """Values ``[N]`` shaped to broadcast over ``images``."""
    return value.view(-1, *[1] * (images.dim() - 1))


def image_norm(images: Tensor) -> Tensor:
    """The L2 norm of each image, shaped to broadcast over ``[N, C, H, W]``."""
    return _per_image(images.flatten(1).norm(dim=1), images)


def _written(radius: str | float) -> str:
    """The radius as text, ``"8/255"`` for the number ``8 / 255``, whose decimals are longer."""
    text = str(radius).replace(" ", "")
    if isinstance(radius, str):
        return text
    grey_levels = f"{round(255 * float(radius))}/255"
    same = float(parse_fraction(grey_levels)) == float(radius)
    return grey_levels if same and len(grey_levels) < len(text) else text


@dataclass(frozen=True)
class Threat:
    """The images within ``radius`` of the clean image in ``norm`` (the ball) and in [0, 1] (the box).

    Attributes:
        norm: ``"linf"`` or ``"l2"``; also given as ``"Linf"``, ``"l_inf"``, ``"inf"``, ``math.inf``, ``"L2"`` or 2.
        radius: as written in papers, ``"8/255"`` or 0.3, in pixel units of images in [0, 1]; stored exactly. The number
            ``8 / 255`` is stored as ``"8/255"``.

    Raises:
        ConfigError: unknown norm, or a radius that is not a number above 0 (and at most 1 for ``"linf"``).
    """

    norm: str = "linf"
    radius: str | float = "8/255"

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "norm", parse_norm(self.norm))
        except ValueError as error:
            raise ConfigError(f"threat.norm: {error}") from None
        try:
            check_radius(self.norm, self.radius)
        except ValueError as error:
            raise ConfigError(f"threat.radius: {error}") from None
        object.__setattr__(self, "radius", _written(self.radius))

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

    @classmethod
    def of(cls, threat: Any, norm: Any = None, *, default: Threat | None = None) -> Threat:
        """The threat that an argument ``threat`` of a public function stands for.

        Args:
            threat: a threat, a radius such as ``8 / 255`` or ``"8/255"``, or ``None`` for ``default``.
            norm: norm of a radius; ``None`` for ``"linf"``.
            default: the threat stored with the classifier.

        Raises:
            ConfigError: no threat at all, an invalid norm or radius, or a norm that contradicts the threat.
        """
        if threat is None and norm is None and default is not None:
            return default
        if threat is None:
            raise ConfigError("threat: none given; pass threat=trilemma.Threat(norm, radius), or a radius")
        if not isinstance(threat, Threat):
            return cls("linf" if norm is None else norm, threat)
        if norm is not None and cls(norm, threat.radius).norm != threat.norm:
            raise ConfigError(f"norm={norm!r} contradicts threat={threat}; leave norm out")
        return threat

    def project(self, images: Tensor, clean: Tensor) -> Tensor:
        """Projects images ``[N, C, H, W]`` onto the ball around ``clean``, then onto the box [0, 1].

        The result is in both: the projection onto the box reduces the distance to ``clean``, which is in the box.
        """
        return self._inside(images - clean, clean)

    def project_(self, images: Tensor, clean: Tensor) -> Tensor:
        """As :meth:`project`, but writes the result on ``images``, which have no graph."""
        return self._inside(images.sub_(clean), clean)

    def _inside(self, delta: Tensor, clean: Tensor) -> Tensor:
        """The projection of ``clean + delta``; written on ``delta``."""
        if self.norm == "linf":
            delta.clamp_(-self.epsilon, self.epsilon)
        else:
            # In float64, since the rounding of a float32 sum over a large image would leave images outside the ball.
            length = _per_image(delta.flatten(1).norm(dim=1, dtype=torch.float64), delta)
            delta.mul_((self.epsilon / length.clamp_min_(self.epsilon)).to(delta.dtype))
        return delta.add_(clean).clamp_(0.0, 1.0)

    def ascent(self, gradient: Tensor) -> Tensor:
        """The direction of steepest ascent with unit norm: the sign of the gradient (linf), or it normalised (l2).

        Where the gradient is NaN there is no direction, and the result is zero: of a pixel (linf) or of an image (l2).
        """
        if self.norm == "linf":
            return gradient.sign()
        length = image_norm(gradient)
        return (gradient / length.clamp_min(1e-12)).masked_fill_(~torch.isfinite(length), 0.0)

    def climbed(self, images: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """``images + step_size * ascent(gradient)``, a new tensor without a graph."""
        if self.norm == "linf":
            # A product with a sign is exact, so that one rounding with the sum, as some CPUs do it, changes nothing.
            moved = torch.sign(gradient, out=torch.empty_like(images))
            return torch.add(images, moved, alpha=step_size, out=moved)
        return images + self.ascent(gradient).mul_(step_size)

    def pixel_radius(self, shape: torch.Size) -> float:
        """The radius per pixel value for images of ``shape`` (C, H, W), pixel units.

        For L2 it is ``epsilon / sqrt(C H W)``, the change per pixel value at which all changes together have the length
        of the radius.
        """
        return self.epsilon if self.norm == "linf" else self.epsilon / math.sqrt(shape.numel())

    def random_start(
        self, images: Tensor, seeds: Tensor, stream: int = 0, scale: float = 1.0, clip: bool = True
    ) -> Tensor:
        """A uniform random point in a ball around each image, clipped to [0, 1].

        Args:
            images: ``[N, C, H, W]`` in [0, 1].
            seeds: int64 ``[N]``, one per image (see :mod:`trilemma.noise`).
            stream: number of the random stream.
            scale: radius of the ball, in units of the threat's radius.
            clip: clip to [0, 1]; otherwise the result may lie outside.
        """
        shape = images.shape[1:]
        if self.norm == "linf":
            delta = noise.uniform(seeds, stream, shape).sub_(0.5).mul_(2 * scale * self.epsilon)
        else:
            direction = noise.normal(seeds, stream, shape)
            length = noise.uniform(~seeds, stream, (1,)).view(-1).pow(1 / shape.numel())
            delta = direction / image_norm(direction) * (scale * self.epsilon) * _per_image(length, images)
        start = delta.to(images).add_(images)
        return start.clamp_(0.0, 1.0) if clip else start

    def contains(self, images: Tensor, clean: Tensor, tolerance: float = 1e-6) -> Tensor:
        """Whether each image is finite, in the ball and in [0, 1], up to ``tolerance`` in pixel units: bool ``[N]``."""
        delta = (images - clean).flatten(1)
        length = delta.abs().amax(1) if self.norm == "linf" else delta.norm(dim=1, dtype=torch.float64)
        flat = images.flatten(1)
        inside = (flat.amin(1) >= -tolerance) & (flat.amax(1) <= 1 + tolerance)
        return (length <= self.epsilon + tolerance) & inside & torch.isfinite(flat).all(1)
