"""The samplers: each is one function that moves starting images down an energy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trilemma.classifier.classifier import Classifier, check_returned
from trilemma.config.chains import DAT, JEM, JEM_PLUS_PLUS, SCHEDULES, WEAT
from trilemma.config.plug_ins import call_registered
from trilemma.config.registry import SAMPLERS
from trilemma.errors import ConfigError
from trilemma.threat import image_norm
from trilemma.units import choice
from trilemma.walks.steps import descend
from trilemma.walks.walk import Objective, StepRule, Walkers


def run_sampler(
    name: str, clf: Classifier, images: Tensor, energy: Objective, steps: int, **options: Any
) -> Tensor:
    """Runs the sampler ``name`` of the registry ``SAMPLERS``; arguments as in :func:`langevin`.

    Raises:
        UnknownNameError: unknown sampler.
        ConfigError: the sampler does not take these arguments, or returned no images of this shape in [0, 1].
    """
    what = f"sampler {name!r}"
    built_in = SAMPLERS.row(name).built_in
    # a user's sampler may write into its images
    given = images if built_in else images.clone()
    walked = call_registered(what, SAMPLERS.get(name), clf, given, energy, steps, **options)
    images = check_returned(what, walked, images.shape)
    # one value to wait for on an accelerator, so only for a user's sampler; NaN is for the divergence monitor
    clipped = options.get("clip", True) and not images.is_meta
    if not built_in and clipped and bool(((images < 0) | (images > 1)).any()):
        raise ConfigError(f"{what}: returned values outside [0, 1]; its walk has to clip, as descend does")
    return images


def _scheduled(name: str, value: float, schedule: str, steps: int) -> Callable[[Walkers], float]:
    """The value of a setting at the step of the walkers: ``value`` times the factor of its schedule."""
    choice("sampler", name, schedule, [*SCHEDULES])
    factor = SCHEDULES[schedule]
    return lambda walkers: value * factor(walkers.step / steps)


def _step_rule(
    change: Callable[[Walkers, Tensor], Tensor], noise_std: Callable[[Walkers], float], clamp: float | None
) -> StepRule:
    """The step that all samplers share: ``x + change(walkers, clamped gradient) + noise_std n``, new images."""

    def step(walkers: Walkers, gradient: Tensor) -> Tensor:
        if clamp is not None:
            gradient = gradient.clamp(-clamp, clamp)
        moved = walkers.images + change(walkers, gradient)
        std = noise_std(walkers)
        return moved.add_(walkers.normal().mul_(std)) if std else moved

    return step


def langevin(
    clf: Classifier,
    images: Tensor,
    energy: Objective,
    steps: int,
    step_size: float = JEM.step_size,
    noise_std: float = JEM.noise_std,
    clamp: float | None = JEM.clamp,
    seeds: Tensor | None = None,
    step_schedule: str = "constant",
    noise_schedule: str = "constant",
    **walk_options: Any,
) -> Tensor:
    """Langevin dynamics: ``x <- clip(x - step_size grad U(x) + noise_std n)``, ``n ~ N(0, I)``.

    The defaults are those of the preset ``jem`` (:mod:`trilemma.config.chains`): published as step 1 and noise 0.01 on
    [-1, 1].

    Args:
        clf: the classifier; call inside :func:`trilemma.classifier.contexts.inner_loop`.
        images: starting images, ``[N, C, H, W]``.
        energy: the objective U to descend (see :mod:`trilemma.walks.objectives`).
        steps: number of steps; 0 returns the starting images.
        step_size: factor of the gradient (half the s of the papers).
        noise_std: standard deviation of the noise of each step, pixel units; 0 needs no seeds.
        clamp: largest magnitude of each entry of the gradient; ``None`` for no limit.
        seeds: int64 ``[N]``, one noise seed per image.
        step_schedule, noise_schedule: how ``step_size`` and ``noise_std`` fall over the steps: ``constant``, ``linear``
            (times 1 - t, where t is the fraction of the steps that are done) or ``cosine`` (times
            (1 + cos(pi t)) / 2).
        walk_options: ``clean``, ``budget``, ``clip``, ``stop``, ``callback`` of
            :func:`trilemma.walks.steps.descend`.

    Returns:
        ``[N, C, H, W]``, detached.
    """
    size = _scheduled("step_schedule", step_size, step_schedule, steps)
    noise_size = _scheduled("noise_schedule", noise_std, noise_schedule, steps)
    step = _step_rule(lambda walkers, gradient: -size(walkers) * gradient, noise_size, clamp)
    return descend(clf, images, energy, step, steps, seeds=seeds, new_images=True, **walk_options)


def momentum(
    clf: Classifier,
    images: Tensor,
    energy: Objective,
    steps: int,
    step_size: float = WEAT.step_size,
    noise_std: float = WEAT.noise_std,
    clamp: float | None = WEAT.clamp,
    seeds: Tensor | None = None,
    zeta: float = WEAT.zeta,
    step_schedule: str = "constant",
    noise_schedule: str = "constant",
    **walk_options: Any,
) -> Tensor:
    """Descent with momentum: ``v <- zeta v - step_size grad U(x)``; ``x <- clip(x + v + noise_std n)``.

    The defaults are those of the preset ``weat``.

    Args:
        zeta: factor of the velocity at every step. Other arguments as in
            :func:`trilemma.samplers.samplers.langevin`.

    Returns:
        ``[N, C, H, W]``, detached.
    """

    size = _scheduled("step_schedule", step_size, step_schedule, steps)
    noise_size = _scheduled("noise_schedule", noise_std, noise_schedule, steps)

    def change(walkers: Walkers, gradient: Tensor) -> Tensor:
        velocity = zeta * walkers.state.get("velocity", torch.zeros_like(gradient)) - size(walkers) * gradient
        walkers.state["velocity"] = velocity
        return velocity

    step = _step_rule(change, noise_size, clamp)
    return descend(clf, images, energy, step, steps, seeds=seeds, new_images=True, **walk_options)


def proximal(
    clf: Classifier,
    images: Tensor,
    energy: Objective,
    steps: int,
    step_size: float = JEM_PLUS_PLUS.step_size,
    noise_std: float = JEM_PLUS_PLUS.noise_std,
    clamp: float | None = JEM_PLUS_PLUS.clamp,
    seeds: Tensor | None = None,
    step_schedule: str = "constant",
    noise_schedule: str = "constant",
    **walk_options: Any,
) -> Tensor:
    """Descent with a clamped gradient: ``x <- clip(x - step_size clamp(grad U(x), +-clamp), 0, 1)``.

    The defaults are those of the preset ``jem++``: published as step 1 and clamp 1 on [-1, 1]. The code of JEM++ has
    an inner loop around the gradient of the first layer. That layer is affine, so the loop repeats the same gradient:
    ten outer times five inner steps of 0.2 equal ten of these steps. Arguments and return value as in
    :func:`trilemma.samplers.samplers.langevin`.
    """
    return langevin(
        clf, images, energy, steps, step_size, noise_std, clamp, seeds, step_schedule, noise_schedule, **walk_options
    )  # fmt: skip


def normalised(
    clf: Classifier,
    images: Tensor,
    energy: Objective,
    steps: int,
    step_size: float = DAT.step_size,
    noise_std: float = DAT.noise_std,
    clamp: float | None = DAT.clamp,
    seeds: Tensor | None = None,
    step_schedule: str = "constant",
    noise_schedule: str = "constant",
    **walk_options: Any,
) -> Tensor:
    """Steps of fixed length: ``x <- clip(x - step_size grad U(x) / ||grad U(x)||_2)``, the norm over one image.

    Args:
        step_size: L2 length of a step, pixel units. The default is that of the preset ``dat``; DAT trains with steps
            of half this length.
        clamp: largest magnitude of each entry of the gradient, applied before normalisation. Other arguments as in
            :func:`trilemma.samplers.samplers.langevin`.

    Returns:
        ``[N, C, H, W]``, detached.
    """

    size = _scheduled("step_schedule", step_size, step_schedule, steps)
    noise_size = _scheduled("noise_schedule", noise_std, noise_schedule, steps)

    def change(walkers: Walkers, gradient: Tensor) -> Tensor:
        return -size(walkers) * gradient / image_norm(gradient).clamp_min(1e-12)

    step = _step_rule(change, noise_size, clamp)
    return descend(clf, images, energy, step, steps, seeds=seeds, new_images=True, **walk_options)
