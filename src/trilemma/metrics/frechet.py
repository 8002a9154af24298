"""The Frechet distance between two sets of images, with the features of any extractor.

With the features of the Inception network it is the FID. Another extractor gives a distance on another scale, which is
called ``FD-<extractor>``. Values can be compared only for the same extractor, reference set and number of images, since
the estimate decreases with the number of images (Chong and Forsyth 2020).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.data.image_set import as_float
from trilemma.errors import ConfigError


@dataclass(frozen=True)
class Extractor:
    """A function from images to features.

    Attributes:
        name: part of the name of the distance.
        features: maps a batch of images ``[N, C, H, W]``, float in [0, 1], to features ``[N, D]``.
        outputs: maps the same to (features, class logits ``[N, K]``); ``None`` if there are no classes.
        about: JSON-like description for result rows.
        inception: whether it is the Inception network of FID, IS and KID.
        device: device of the computation.
    """

    name: str
    features: Callable[[Tensor], Tensor]
    outputs: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    about: dict[str, Any] = field(default_factory=dict)
    inception: bool = False
    device: torch.device | str = "cpu"


def penultimate(clf: Classifier, name: str) -> Extractor:
    """An extractor of the inputs of the last linear layer of ``clf``, in eval mode.

    Args:
        clf: a classifier that was trained independently of those whose samples are evaluated; left unchanged.
        name: name of the extractor, such as ``"standard-digits"``.

    Raises:
        ConfigError: the network has no linear layer.
    """
    linear = [module for module in clf.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError(
            f"extractor {name!r}: the network has no linear layer, whose inputs are the features; use another network"
        )
    linear_inputs: list[Tensor] = []

    def store_input(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        linear_inputs.append(inputs[0])

    @torch.no_grad()
    def outputs(images: Tensor) -> tuple[Tensor, Tensor]:
        linear_inputs.clear()
        handle = linear[-1].register_forward_pre_hook(store_input)
        try:
            with inner_loop(clf, "eval"):
                logits = clf(images.to(clf.device))
        finally:
            handle.remove()
        return linear_inputs[-1].flatten(1), logits

    about = {"name": name, "weights": weights_hash(clf), **clf.about}
    return Extractor(name, lambda images: outputs(images)[0], outputs, about, device=clf.device)


def weights_hash(network: nn.Module) -> str:
    """The first 12 digits of the SHA-256 of parameters and buffers, which distinguishes extractors of the same name."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Moments:
    """Mean ``[D]`` and covariance ``[D, D]`` (divisor N - 1) of ``count`` feature vectors, float64 on the CPU."""

    mean: Tensor
    covariance: Tensor
    count: int


def moments(features: Tensor) -> Moments:
    """Mean and covariance of features ``[N, D]``, N at least 2.

    Raises:
        ValueError: fewer than two feature vectors, or values that are not finite.
    """
    vectors = features.detach().cpu().double()
    if vectors.dim() != 2 or len(vectors) < 2 or not bool(torch.isfinite(vectors).all()):
        raise ValueError("moments needs at least two finite feature vectors, [N, D]")
    centred = vectors - vectors.mean(0)
    return Moments(vectors.mean(0), centred.T @ centred / (len(vectors) - 1), len(vectors))


def frechet_distance(first: Moments, second: Moments) -> float:
    """``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))``, the squared 2-Wasserstein distance of two Gaussians.

    The trace of the matrix root equals that of ``(S1^(1/2) S2 S1^(1/2))^(1/2)``, a symmetric matrix. Two symmetric
    eigenvalue decompositions are therefore sufficient, and no complex numbers occur (Dowson and Landau 1982; Heusel et
    al. 2017).

    Returns:
        The distance in squared units of the features, at least 0.
    """
    root = _root(first.covariance)
    inner = root @ second.covariance @ root
    cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0.0).sqrt().sum()
    gap = (first.mean - second.mean).square().sum()
    distance = gap + first.covariance.trace() + second.covariance.trace() - 2 * cross
    return max(0.0, float(distance))


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix; negative eigenvalues (rounding) are set to 0."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T
    return root


def image_moments(extractor: Extractor, images: Tensor, batch_size: int = 250) -> Moments:
    """Moments of the features of images ``[N, C, H, W]``, uint8 or float in [0, 1].

    Float images are rounded to 8 bits first, so that both sets of a distance have the precision of an image file.
    """
    parts = [extractor.features(as_float(to_levels(batch))).cpu() for batch in images.split(batch_size)]
    return moments(torch.cat(parts))


def to_levels(images: Tensor) -> Tensor:
    """Converts float images in [0, 1] to uint8 by rounding, for all generation metrics; uint8 images are unchanged."""
    return images if images.dtype == torch.uint8 else (images * 255).round().clamp(0, 255).to(torch.uint8)
