"""Generates images with a classifier, from a start, a sampler and an energy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilemma import noise
from trilemma.classifier.classifier import Classifier, check_range
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.fast_copy import quick_gradients
from trilemma.classifier.precision import in_bfloat16
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
from trilemma.config.chains import PRECISIONS, choose_chain
from trilemma.config.registry import SAMPLERS
from trilemma.data.image_set import ImageSet
from trilemma.data.sources import load_images
from trilemma.data.statistics import ClassPCA
from trilemma.errors import ConfigError, ImageError, nearest
from trilemma.memory import freed_memory_kept
from trilemma.samplers.guidance import energy_objective, reference_stop, repelled, with_statistics
from trilemma.samplers.samplers import run_sampler
from trilemma.samplers.starts import make_start
from trilemma.units import choice, count, length, number
from trilemma.walks.walk import Callback


def stored_pca(clf: Classifier) -> ClassPCA | None:
    """Returns the class PCA stored in the classifier's statistics, or ``None``."""
    prefix = "pca."
    state = {k.removeprefix(prefix): v for k, v in clf.statistics.items() if k.startswith(prefix)}
    return ClassPCA.from_state_dict(state).to(clf.device) if state else None


@torch.inference_mode(False)
def generate(
    clf: Network,
    labels: Labels,
    start: str | Images | None = None,
    sampler: str | None = None,
    energy: str | None = None,
    steps: int | None = None,
    data: ImageSet | tuple[Tensor, Tensor] | None = None,
    generator: torch.Generator | None = None,
    *,
    preset: str | None = None,
    stop: bool | None = None,
    temperature: float | None = None,
    diversity: float = 0.0,
    chains: ImageSet | tuple[Tensor, Tensor] | str | Path | None = None,
    budget: float | None = None,
    precision: str = "fp32",
    callback: Callback | None = None,
    **options: Any,
) -> Tensor:
    """Returns generated images of the classes ``labels``.

    Each image has its own random numbers, so the result does not depend on how the images are split into batches,
    except with ``diversity``.

    Args:
        clf: the classifier, or with starting images also a network or function from images in [0, 1] to logits; its
            mode and buffers are restored afterwards.
        labels: the class of each image, int64 ``[N]`` or a list or array of whole numbers.
        start: a name of the registry ``STARTS`` (``trilemma list starts``), also with options (``local-pca:k=200``) or
            as a mixture (``uniform:0.5,class-pca:0.5``); or the starting images, ``[N, C, H, W]`` in [0, 1]
            (counterfactuals). By default that of the preset, else ``class-pca``.
        sampler: a name of the registry ``SAMPLERS`` (``trilemma list samplers``); by default that of the preset, else
            ``momentum``.
        energy: ``joint``, ``marginal``, ``ce``, ``reference`` or ``mahalanobis``
            (:func:`trilemma.samplers.guidance.energy_objective`); by default that of the preset, else ``joint``.
        steps: steps of the sampler; 0 returns the starting images. By default those of the preset, else 100.
        data: training images, for starts that need them, and for ``stop`` and the energies ``reference`` and
            ``mahalanobis`` with a classifier that holds no statistics; ``class-pca`` and ``class-mean-noise`` use the
            statistics stored in the classifier if it has them.
        generator: source of all random numbers.
        preset: name of published settings (:data:`trilemma.config.chains.PRESETS`); other arguments override them.
        stop: stop an image when its joint energy is that of real images of its class. The other images are the same as
            without, up to rounding, and cost less. By default that of the preset, else off.
        temperature: of the energy ``ce``, which divides the logits by it.
        diversity: weight of a repulsion between the chains of a class in this call
            (:func:`trilemma.samplers.guidance.repelled`), in units of the energy; an image then depends on the others.
        chains: for the start ``replay-buffer``: a run folder, a classifier file of a run, or images in [0, 1] with
            their classes.
        budget: largest L2 distance from the starting image, pixel units.
        precision: ``fp32``, or ``bf16`` for a network that runs in bfloat16: twice as fast on processors and
            accelerators that have it, and other images than in ``fp32``, of the same quality where it was measured
            (``benchmarks/results/generation-speed.md``).
        callback: called after each step (see :func:`trilemma.walks.walk.walk`).
        options: settings of the sampler (``step_size``, ``noise_std``, ``clamp``, ``zeta``, ``step_schedule``,
            ``noise_schedule``); lengths also as ``"2/255"``.

    Returns:
        ``[N, C, H, W]`` in [0, 1], on the classifier's device.

    Raises:
        ConfigError: unknown start or energy, missing statistics, or a number of a wrong type or range.
        UnknownNameError: unknown sampler or preset.
        ImageError: labels or starting images of a wrong shape, type or range.
    """
    if isinstance(data, tuple):
        data = load_images(data, split="train")
    if isinstance(chains, tuple):
        chains = load_images(chains, split="chains")
    check_generator("generate", generator)
    start_images = None if start is None or isinstance(start, str) else as_images(start)
    clf, labels, start_images = _on_device(clf, labels, start_images)
    named = {"start": start if start_images is None else None, "sampler": sampler, "energy": energy}
    chain = choose_chain({**named, "steps": steps, "stop": stop, **options}, preset)
    start_name, sampler, energy, stop = (chain.pop(name) for name in ("start", "sampler", "energy", "stop"))
    steps = count("generate", "steps", chain.pop("steps"), 0)
    budget = None if budget is None else length("generate", "budget", budget)
    diversity = length("generate", "diversity", diversity, zero=True)
    choice("generate", "precision", precision, PRECISIONS)
    options = _checked_options(sampler, chain)
    seeds = noise.image_seeds(len(labels), generator, labels.device)
    images = (
        starting_images(clf, start_name, labels, noise.derive(seeds, 0), data, chains)
        if start_images is None
        else start_images
    )
    check_range(images)
    # A network may refuse a batch without images.
    if not len(images):
        return images
    guided = with_statistics(clf, energy, stop, data)
    # A sampler of the user's own may want more of the classifier than its logits and gradients.
    gradients = steps * len(images)
    if SAMPLERS.row(sampler).built_in:
        clf = guided = quick_gradients(guided, images, gradients)
    if precision == "bf16":
        guided = in_bfloat16(guided)
    with inner_loop(clf, "eval"), freed_memory_kept(images.device, gradients):
        objective = energy_objective(guided, energy, labels, temperature)
        if diversity:
            objective = repelled(objective, labels, diversity, images)
        generated = run_sampler(
            sampler,
            clf,
            images,
            objective,
            steps,
            seeds=seeds,
            stop=reference_stop(guided, labels) if stop else None,
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


def _on_device(
    clf: Network, labels: Labels, start: Tensor | None
) -> tuple[Classifier, Tensor, Tensor | None]:
    """The checked classifier, labels and starting images; both tensors on the device where the chains run."""
    if start is not None:
        clf = as_classifier(clf, start)
    if not isinstance(clf, Classifier):
        raise ConfigError(
            "generate: got a network without starting images; wrap it: trilemma.Classifier(network, num_classes=K, "
            "image_shape=(C, H, W))"
        )
    labels = as_labels(labels, None, clf.num_classes)
    if start is None:
        return clf, labels.to(clf.device), None
    start = on_device_of(clf, start)
    clf.check(start)
    if len(start) != len(labels):
        raise ImageError(f"start: {len(start)} images for {len(labels)} labels; give one image per label")
    return clf, labels.to(start.device), start


# Arguments of a sampler that generate passes itself.
_GIVEN = ("seeds", "stop", "clean", "budget", "callback", "walk_options")
# Checks of the numbers among the options of the built-in samplers: (where, name, value) -> number.
_NUMBERS: dict[str, Callable[[str, str, Any], float]] = {
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
        name: _NUMBERS[name]("generate", name, value)
        if built_in and name in _NUMBERS and (name, value) not in no_limit.items()
        else value
        for name, value in options.items()
    }


def starting_images(
    clf: Classifier,
    name: str,
    labels: Tensor,
    seeds: Tensor,
    data: ImageSet | None = None,
    chains: ImageSet | str | Path | None = None,
) -> Tensor:
    """Returns the starting images of :func:`generate`, ``[N, C, H, W]``, for display beside the generated ones.

    Args:
        clf: the classifier.
        name: text of the start (:mod:`trilemma.config.starts`).
        labels, seeds: int64 ``[N]``.
        data: training images, for starts that need them.
        chains: chains of a finished run, or its path, for the start ``replay-buffer``.

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
    return make_start(name, labels, seeds, shape, data, stored_pca(clf), chains)
