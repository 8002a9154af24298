"""Images from any classifier: a start, an energy, a sampler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trilemma import energies, noise
from trilemma.classifier.classifier import Classifier, check_labels, check_range
from trilemma.classifier.contexts import inner_loop
from trilemma.config.registry import SAMPLERS
from trilemma.data.image_set import ImageSet
from trilemma.data.sources import load_images
from trilemma.data.statistics import ClassPCA
from trilemma.errors import ConfigError, ImageError, nearest
from trilemma.samplers.starts import make_start
from trilemma.walks import objectives
from trilemma.walks.objectives import subset
from trilemma.walks.walk import Callback, Objective, Stop

ENERGIES = ("joint", "marginal", "ce", "reference")


def energy_objective(clf: Classifier, name: str, labels: Tensor) -> Objective:
    """The energy U that sampling descends, by name.

    ``joint`` is E(x, y), ``marginal`` E(x), ``ce`` their difference, and ``reference`` is
    ``(E(x, y) - m_y)^2`` with m_y the mean joint energy of the training images of class y: it pulls a
    sample to the energy of real images instead of to minus infinity (DER, arXiv 2505.22486).

    Raises:
        ConfigError: unknown name, or ``reference`` without stored statistics.
    """
    if name == "joint":
        return objectives.joint_energy(clf, labels)
    if name == "marginal":
        return objectives.marginal_energy(clf)
    if name == "ce":
        return objectives.cross_entropy(clf, labels)
    if name != "reference":
        raise ConfigError(
            f"energy: unknown energy {name!r}.{nearest(name, ENERGIES)} Energies: {', '.join(ENERGIES)}"
        )
    means = _statistic(clf, "energy_mean").to(labels.device)

    def objective(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = clf.logits(images)
        own = subset(labels, index)
        return (energies.joint_energy(logits, own) - means[own]).square(), logits

    return objective


def reference_stop(clf: Classifier, labels: Tensor, tau: float | None = None) -> Stop:
    """Arrived when ``(E(x, y) - m_y)^2 < tau``; tau is by default a quarter of the class's energy variance."""
    means, spread = (_statistic(clf, name).to(labels.device) for name in ("energy_mean", "energy_std"))
    limits = (spread / 2).square() if tau is None else torch.full_like(means, tau)

    def stop(values: Tensor, logits: Tensor, index: Tensor) -> Tensor:
        own = subset(labels, index)
        return (energies.joint_energy(logits, own) - means[own]).square() < limits[own]

    return stop


def _statistic(clf: Classifier, name: str) -> Tensor:
    if name not in clf.statistics:
        raise ConfigError(
            f"energy 'reference' and adaptive stopping need {name!r} of the training images; use a classifier "
            "trained by trilemma, or call trilemma.training.statistics.attach(clf, data) first"
        )
    return clf.statistics[name]


def stored_pca(clf: Classifier) -> ClassPCA | None:
    """The class PCA saved with the classifier, or ``None``."""
    prefix = "pca."
    state = {k.removeprefix(prefix): v for k, v in clf.statistics.items() if k.startswith(prefix)}
    return ClassPCA.from_state_dict(state).to(clf.device) if state else None


def generate(
    clf: Classifier,
    labels: Tensor,
    start: str | Tensor = "class-pca",
    sampler: str = "momentum",
    energy: str = "joint",
    steps: int = 100,
    data: ImageSet | tuple[Tensor, Tensor] | None = None,
    generator: torch.Generator | None = None,
    *,
    stop: bool = False,
    budget: float | None = None,
    callback: Callback | None = None,
    **options: Any,
) -> Tensor:
    """Images of the asked classes. Each has its own random numbers, so batches may be cut anywhere.

    Args:
        clf: the classifier; left exactly as it was.
        labels: int64 ``[N]``, the class of each image.
        start: a start's name (``uniform``, ``gaussian``, ``class-mean-noise``, ``class-gaussian``, ``class-pca``,
            ``data``, ``phase-scrambled``) or the starting images themselves, ``[N, C, H, W]`` in [0, 1]
            (counterfactuals).
        sampler: ``langevin``, ``momentum``, ``normalised`` or ``proximal``.
        energy: ``joint``, ``marginal``, ``ce`` or ``reference``.
        steps: steps of the sampler; 0 returns the starts.
        data: training images for starts that need them; stored statistics serve ``class-pca``.
        generator: source of all randomness.
        stop: freeze an image once its energy is that of real images of its class.
        budget: largest L2 distance from the start, pixel units.
        callback: called after each step (see :func:`trilemma.walks.walk.walk`).
        options: settings of the sampler (``step_size``, ``noise_std``, ``clamp``, ``zeta``).

    Returns:
        ``[N, C, H, W]`` in [0, 1].

    Raises:
        ConfigError: unknown start, sampler or energy, or statistics that are missing.
        ImageError: labels or starting images that do not fit.
    """
    if isinstance(data, tuple):
        data = load_images(data, split="train")
    if isinstance(start, Tensor):
        clf.check(start)
        if len(start) != len(labels):
            raise ImageError(f"start: {len(start)} images for {len(labels)} labels; give one image per label")
    check_labels(labels, labels, clf.num_classes)
    labels = labels.to(clf.device)
    seeds = noise.image_seeds(len(labels), generator, clf.device)
    run = SAMPLERS.get(sampler)
    images = (
        start.to(clf.device)
        if isinstance(start, Tensor)
        else starting_images(clf, start, labels, noise.derive(seeds, 0), data)
    )
    check_range(images)
    with inner_loop(clf, "eval"):
        objective = energy_objective(clf, energy, labels)
        arrived = reference_stop(clf, labels) if stop else None
        walked: Tensor = run(
            clf,
            images,
            objective,
            steps,
            seeds=seeds,
            stop=arrived,
            clean=images,
            budget=budget,
            callback=callback,
            **options,
        )
    return walked


def starting_images(
    clf: Classifier, name: str, labels: Tensor, seeds: Tensor, data: ImageSet | None = None
) -> Tensor:
    """The starts of :func:`generate`, ``[N, C, H, W]``: what every sample is to be shown beside."""
    shape = clf.image_shape or (data.image_shape if data is not None else None)
    if shape is None:
        raise ConfigError(
            f"start: {name!r} needs the image shape; build the Classifier with image_shape=(C, H, W)"
        )
    return make_start(name, labels, seeds, shape, data, stored_pca(clf))
