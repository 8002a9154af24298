"""The Frechet distance between two sets of images, in the features of any extractor.

Only Inception's features give the FID. A classifier of ours gives a distance of its own, with its own scale, and the
name says so: ``FD-<extractor>``. Values compare only under one extractor, one reference set and one number of images:
the estimate falls as the number grows (Chong and Forsyth 2020).
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
    """Images to features.

    Attributes:
        name: stands in the name of the distance.
        features: ``[N, C, H, W]`` float in [0, 1] to ``[N, D]``; called on one batch at a time.
        outputs: the same to features and class logits ``[N, K]``, where it has classes.
        about: what it is, JSON-like, for result rows.
        inception: whether it is the network whose features give FID, IS and KID.
        device: where it works.
    """

    name: str
    features: Callable[[Tensor], Tensor]
    outputs: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    about: dict[str, Any] = field(default_factory=dict)
    inception: bool = False
    device: torch.device | str = "cpu"


def penultimate(clf: Classifier, name: str) -> Extractor:
    """What the last linear layer of ``clf`` is given, in eval mode; the classifier is left as it was.

    Args:
        clf: trained independently of the classifiers whose samples are judged.
        name: what to call it, such as ``"standard-digits"``.

    Raises:
        ConfigError: the network has no linear layer.
    """
    linear = [module for module in clf.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError(f"extractor {name!r}: the network has no linear layer to read features before")
    seen: list[Tensor] = []

    def read(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0])

    @torch.no_grad()
    def outputs(images: Tensor) -> tuple[Tensor, Tensor]:
        seen.clear()
        handle = linear[-1].register_forward_pre_hook(read)
        try:
            with inner_loop(clf, "eval"):
                logits = clf(images.to(clf.device))
        finally:
            handle.remove()
        return seen[-1].flatten(1), logits

    about = {"name": name, "weights": weights_hash(clf), **clf.about}
    return Extractor(name, lambda images: outputs(images)[0], outputs, about, device=clf.device)


def weights_hash(network: nn.Module) -> str:
    """The first 12 digits of the SHA-256 of parameters and buffers: two extractors of one name are told apart by it."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Moments:
    """Mean ``[D]`` and covariance ``[D, D]`` (divided by N - 1) of ``count`` feature vectors, float64 on the CPU."""

    mean: Tensor
    covariance: Tensor
    count: int


def moments(features: Tensor) -> Moments:
    """Moments of features ``[N, D]``, N at least 2.

    Raises:
        ValueError: fewer than two rows, or values that are not finite.
    """
    rows = features.detach().cpu().double()
    if rows.dim() != 2 or len(rows) < 2 or not bool(torch.isfinite(rows).all()):
        raise ValueError("moments needs at least two rows of finite features, [N, D]")
    centred = rows - rows.mean(0)
    return Moments(rows.mean(0), centred.T @ centred / (len(rows) - 1), len(rows))


def frechet_distance(first: Moments, second: Moments) -> float:
    """``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))``, the squared 2-Wasserstein distance of two Gaussians.

    The trace of the root is that of ``(S1^(1/2) S2 S1^(1/2))^(1/2)``, a symmetric matrix, so that two eigenvalue
    decompositions serve and no complex number can appear (Dowson and Landau 1982; Heusel et al. 2017).

    Returns:
        In squared units of the features; at least 0.
    """
    root = _root(first.covariance)
    inner = root @ second.covariance @ root
    cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0.0).sqrt().sum()
    gap = (first.mean - second.mean).square().sum()
    distance = gap + first.covariance.trace() + second.covariance.trace() - 2 * cross
    return max(0.0, float(distance))


def _root(matrix: Tensor) -> Tensor:
    """The symmetric root of a symmetric matrix without negative eigenvalues, up to rounding."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T
    return root


def image_moments(extractor: Extractor, images: Tensor, batch_size: int = 250) -> Moments:
    """Moments of the features of images, uint8 or float in [0, 1], ``[N, C, H, W]``.

    Float images are rounded to the 256 grey levels first: a file holds no more, and both sides of a distance must
    have come the same way.
    """
    parts = [extractor.features(as_float(to_levels(batch))).cpu() for batch in images.split(batch_size)]
    return moments(torch.cat(parts))


def to_levels(images: Tensor) -> Tensor:
    """Float images in [0, 1] as uint8, rounded; uint8 as they are. The one way into every figure of generation."""
    return images if images.dtype == torch.uint8 else (images * 255).round().clamp(0, 255).to(torch.uint8)


def image_distance(extractor: Extractor, images: Tensor, reference: Moments) -> dict[str, Any]:
    """The row of a set of images against a reference set.

    Returns:
        ``name`` (``FD-<extractor>``), ``value``, ``count`` (images) and ``reference_count``.
    """
    found = image_moments(extractor, images)
    return {
        "name": f"FD-{extractor.name}",
        "value": frechet_distance(found, reference),
        "count": found.count,
        "reference_count": reference.count,
    }
