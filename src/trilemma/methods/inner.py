"""The inner loops that methods share: a training attack and a training chain."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypedDict

import torch
from torch import Tensor

from trilemma import noise
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.config.registry import SAMPLERS
from trilemma.config.sections import SamplerConfig
from trilemma.methods.base import Method, MethodState
from trilemma.units import parse_fraction
from trilemma.walks import objectives
from trilemma.walks.steps import ascend
from trilemma.walks.walk import Objective, StepRule, Stop


class Attacked(TypedDict):
    """What an attack adds to :class:`Points`."""

    adversarial: Tensor
    gradient: Tensor


class Chain(TypedDict):
    """What a chain adds to :class:`Points`."""

    generated: Tensor
    generated_labels: Tensor | None


def fresh_seeds(state: MethodState, images: Tensor) -> Tensor:
    """One noise seed per image, from the method's own generator."""
    return noise.image_seeds(len(images), state.generator, images.device)


def nearby_start(state: MethodState, images: Tensor) -> Tensor:
    """``x + 0.001 N(0, I)``, as TRADES leaves a point where its divergence has no gradient; not cut to [0, 1]."""
    return images + 0.001 * noise.normal(fresh_seeds(state, images), 0, images.shape[1:])


def attacked(
    method: Method,
    clf: Classifier,
    images: Tensor,
    start: Tensor,
    objective: Callable[[], Objective],
    *,
    project: bool = True,
    clip: bool = True,
    step_rule: StepRule | None = None,
    seeds: Tensor | None = None,
    stop: Stop | None = None,
) -> Attacked:
    """x*: the method's steps up ``objective`` from ``start``, in its BatchNorm mode.

    Args:
        objective: built inside the loop, so that clean logits it needs are taken in the attack's mode.
        project, clip, step_rule, seeds, stop: as in :func:`trilemma.walks.steps.ascend`.

    Returns:
        ``adversarial`` ``[N, C, H, W]``, detached; it requires a gradient, which ``after_backward`` reads. And
        ``gradient``, each image's input gradient at its last step (0 where an image stopped before the first), which
        the training one is compared with.

    Raises:
        ConfigError: ``stop`` with an attack in train mode under BatchNorm.
    """
    attack = method.attack
    assert attack.steps is not None and attack.step_size is not None  # filled in by the options
    last: deque[Tensor] = deque(maxlen=1)
    gradient = None if stop is None else torch.zeros_like(images)

    def remember(at: dict[str, Any]) -> None:
        if gradient is None:
            last.append(at["gradient"])
        else:
            gradient[at["index"]] = at["gradient"]

    with inner_loop(clf, method.options.attack_mode):
        adversarial = ascend(
            clf, start, images, method.threat, objective(), attack.steps, float(parse_fraction(attack.step_size)),
            project=project, clip=clip, step_rule=step_rule, seeds=seeds, stop=stop, callback=remember,
        )  # fmt: skip
    return {
        "adversarial": adversarial.detach().requires_grad_(),
        "gradient": last[-1] if gradient is None else gradient,
    }


def chain(
    clf: Classifier, state: MethodState, sampler: SamplerConfig, count: int, clip: bool = True
) -> Chain:
    """x^: chains drawn from the replay buffer, walked down their energy, and written back.

    Returns:
        ``generated`` ``[count, C, H, W]`` and, for chains of E(x, y), the ``generated_labels`` they were started for
        (``None`` for chains of E(x)).
    """
    if state.buffer is not None:
        images, labels, places = state.buffer.draw(count, state.generator)
    else:
        assert state.starts is not None
        labels = torch.randint(clf.num_classes, (count,), generator=state.generator).to(clf.device)
        images = state.starts(labels)
    seeds = noise.image_seeds(count, state.generator, images.device)
    walked = descended(clf, images, labels, sampler, sampler.steps or 0, seeds, clip)
    if state.buffer is not None:
        state.buffer.write(places, walked["generated"], labels)
    return walked


def descended(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    sampler: SamplerConfig,
    steps: int,
    seeds: Tensor,
    clip: bool = True,
) -> Chain:
    """``images`` walked down the energy of ``sampler``, E(x) or E(x, y) of ``labels``, by ``steps`` of its steps."""
    run: Callable[..., Tensor] = SAMPLERS.get(sampler.name or "langevin")
    energy = (
        objectives.joint_energy(clf, labels) if sampler.energy == "joint" else objectives.marginal_energy(clf)
    )
    with inner_loop(clf, sampler.mode or "eval"):
        settings = sampler.model_dump(include={"step_size", "noise_std", "clamp"}, exclude_none=True)
        generated = run(clf, images, energy, steps, seeds=seeds, clip=clip, **settings)
    return {"generated": generated, "generated_labels": labels if sampler.energy == "joint" else None}
