"""Generates images with a classifier, from a start, a sampler and an energy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from trilemma import energies, noise
from trilemma.classifier.classifier import Classifier, check_range
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.wrap import (
    Images,
    Labels,
    Network,
    as_classifier,
    as_images,
    as_labels,
    check_generator,
    on_device_of,
)
from trilemma.config.registry import SAMPLERS
from trilemma.data.image_set import ImageSet
from trilemma.data.sources import load_images
from trilemma.data.statistics import ClassPCA
from trilemma.errors import ConfigError, ImageError, nearest
from trilemma.samplers.samplers import run_sampler
from trilemma.samplers.starts import make_start
from trilemma.units import count, length, number
from trilemma.walks import objectives
from trilemma.walks.objectives import subset
from trilemma.walks.walk import Callback, Objective, Stop

ENERGIES = ("joint", "marginal", "ce", "reference")


def energy_objective(clf: Classifier, name: str, labels: Tensor) -> Objective:
    """Returns the energy U that sampling descends, as an objective.

    ``joint`` is E(x, y), ``marginal`` E(x), ``ce`` the cross-entropy E(x, y) - E(x), and ``reference`` is
    ``(E(x, y) - m_y)^2`` with m_y the mean joint energy of the training images of class y: its minimum is at the
    energy of real images, while E(x, y) itself is unbounded below (DER, arXiv 2505.22486).

    Args:
        clf: the classifier.
        name: ``joint``, ``marginal``, ``ce`` or ``reference``.
        labels: int64 ``[N]``, y.

    Raises:
        ConfigError: unknown name, or ``reference`` with a classifier without stored statistics.
    """
    if name == "joint":
        return objectives.joint_energy(clf, labels)
    if name == "marginal":
        return objectives.marginal_energy(clf)
    if name == "ce":
        return objectives.cross_entropy(clf, labels)
    if name != "reference":
        raise ConfigError(
            f"energy: unknown energy {name!r}.{nearest(str(name), ENERGIES)} Energies: {', '.join(ENERGIES)}"
        )
    means = _statistic(clf, "energy_mean").to(labels.device)

    def objective(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = clf.logits(images)
        y = subset(labels, index)
        return (energies.joint_energy(logits, y) - means[y]).square(), logits

    return objective


def reference_stop(clf: Classifier, labels: Tensor, tau: float | None = None) -> Stop:
    """Returns a rule that stops an image when ``(E(x, y) - m_y)^2 < tau``.

    Args:
        clf: the classifier, with stored statistics.
        labels: int64 ``[N]``, y.
        tau: the limit; by default a quarter of the variance of the joint energy in class y.

    Raises:
        ConfigError: the classifier has no stored statistics.
    """
    means, stds = (_statistic(clf, name).to(labels.device) for name in ("energy_mean", "energy_std"))
    limits = (stds / 2).square() if tau is None else torch.full_like(means, tau)

    def stop(values: Tensor, logits: Tensor, index: Tensor) -> Tensor:
        y = subset(labels, index)
        return (energies.joint_energy(logits, y) - means[y]).square() < limits[y]

    return stop


def _statistic(clf: Classifier, name: str) -> Tensor:
    if name not in clf.statistics:
        raise ConfigError(
            f"energy 'reference' and stop=True need {name!r} of the training images, which this classifier does not "
            "hold; use one trained by trilemma, or call trilemma.training.statistics.attach(clf, data) first"
        )
    return clf.statistics[name]


def stored_pca(clf: Classifier) -> ClassPCA | None:
    """Returns the class PCA stored in the classifier's statistics, or ``None``."""
    prefix = "pca."
    state = {k.removeprefix(prefix): v for k, v in clf.statistics.items() if k.startswith(prefix)}
    return ClassPCA.from_state_dict(state).to(clf.device) if state else None


@torch.inference_mode(False)
def generate(
    clf: Network,
    labels: Labels,
    start: str | Images = "class-pca",
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
    """Returns generated images of the classes ``labels``.

    Each image has its own random numbers, so the result does not depend on how the images are split into batches.

    Args:
        clf: the classifier, or with starting images also a network or function from images in [0, 1] to logits; its
            mode and buffers are restored afterwards.
        labels: the class of each image, int64 ``[N]`` or a list or array of whole numbers.
        start: a name of the registry ``STARTS`` (``trilemma list starts``), or the starting images, ``[N, C, H, W]`` in
            [0, 1] (counterfactuals).
        sampler: a name of the registry ``SAMPLERS`` (``trilemma list samplers``).
        energy: ``joint``, ``marginal``, ``ce`` or ``reference``.
        steps: steps of the sampler; 0 returns the starting images.
        data: training images, for starts that need them; ``class-pca`` and ``class-mean-noise`` use the statistics
            stored in the classifier if it has them.
        generator: source of all random numbers.
        stop: stop an image when its joint energy is that of real images of its class.
        budget: largest L2 distance from the starting image, pixel units.
        callback: called after each step (see :func:`trilemma.walks.walk.walk`).
        options: settings of the sampler (``step_size``, ``noise_std``, ``clamp``, ``zeta``); lengths also as
            ``"2/255"``.

    Returns:
        ``[N, C, H, W]`` in [0, 1], on the classifier's device.

    Raises:
        ConfigError: unknown start or energy, missing statistics, or a number of a wrong type or range.
        UnknownNameError: unknown sampler.
        ImageError: labels or starting images of a wrong shape, type or range.
    """
    if isinstance(data, tuple):
        data = load_images(data, split="train")
    check_generator("generate", generator)
    if not isinstance(start, str):
        start = as_images(start)
        clf = as_classifier(clf, start)
    if not isinstance(clf, Classifier):
        raise ConfigError(
            "generate: got a network without starting images; wrap it: trilemma.Classifier(network, num_classes=K, "
            "image_shape=(C, H, W))"
        )
    labels = as_labels(labels, None, clf.num_classes)
    if isinstance(start, Tensor):
        start = on_device_of(clf, start)
        clf.check(start)
        if len(start) != len(labels):
            raise ImageError(f"start: {len(start)} images for {len(labels)} labels; give one image per label")
    labels = labels.to(clf.device if isinstance(start, str) else start.device)
    steps = count("generate", "steps", steps, 0)
    budget = None if budget is None else length("generate", "budget", budget)
    options = _checked_options(sampler, options)
    seeds = noise.image_seeds(len(labels), generator, labels.device)
    images = (
        start
        if isinstance(start, Tensor)
        else starting_images(clf, start, labels, noise.derive(seeds, 0), data)
    )
    check_range(images)
    # A network may refuse a batch without images.
    if not len(images):
        return images
    with inner_loop(clf, "eval"):
        objective = energy_objective(clf, energy, labels)
        stop_rule = reference_stop(clf, labels) if stop else None
        generated = run_sampler(
            sampler,
            clf,
            images,
            objective,
            steps,
            seeds=seeds,
            stop=stop_rule,
            clean=images,
            budget=budget,
            callback=callback,
            **options,
        )
    if not bool(torch.isfinite(generated).all()):
        count_nan = int((~torch.isfinite(generated.flatten(1))).any(1).sum())
        raise ImageError(
            f"generate: {count_nan} of {len(generated)} images became NaN, as the energy or its gradient is not "
            "finite; check the classifier with `trilemma lint`, or use a smaller step_size"
        )
    return generated


# Arguments of a sampler that generate passes itself.
_GIVEN = ("seeds", "stop", "clean", "budget", "callback", "walk_options")
# Checks of the options of the built-in samplers: (where, name, value) -> number.
_OPTIONS: dict[str, Callable[[str, str, Any], float]] = {
    "step_size": length,
    "noise_std": partial(length, zero=True),
    "clamp": length,
    "zeta": number,
}


def _checked_options(sampler: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a sampler as numbers; each must be a parameter of it, not swallowed by its ``**options``."""
    if not isinstance(sampler, str):
        raise ConfigError(f"generate: sampler={sampler!r}; pass a name, see `trilemma list samplers`")
    # The first four are classifier, images, energy and steps.
    allowed = [name for name in [*signature(SAMPLERS.get(sampler)).parameters][4:] if name not in _GIVEN]
    for name in options:
        if name not in allowed:
            raise ConfigError(
                f"generate: sampler {sampler!r} has no option {name!r}.{nearest(name, allowed)}"
            )
    built_in, no_limit = SAMPLERS.row(sampler).built_in, {"clamp": None}
    return {
        name: _OPTIONS[name]("generate", name, value)
        if built_in and (name, value) not in no_limit.items()
        else value
        for name, value in options.items()
    }


def starting_images(
    clf: Classifier, name: str, labels: Tensor, seeds: Tensor, data: ImageSet | None = None
) -> Tensor:
    """Returns the starting images of :func:`generate`, ``[N, C, H, W]``, for display beside the generated ones.

    Args:
        clf: the classifier.
        name: name of the start.
        labels, seeds: int64 ``[N]``.
        data: training images, for starts that need them.

    Raises:
        ConfigError: unknown start, missing training images or statistics, or unknown image shape.
    """
    shape = clf.image_shape or (data.image_shape if data is not None else None)
    if shape is None:
        raise ConfigError(
            f"start: {name!r} needs the image shape; add --size N, or create the Classifier with image_shape=(C, H, W)"
        )
    if not len(labels):
        return torch.empty(0, *shape, device=labels.device)
    return make_start(name, labels, seeds, shape, data, stored_pca(clf))
