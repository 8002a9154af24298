"""The inner loops that methods share: a training attack and a training chain."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypedDict

import torch
from torch import Tensor

from trilemma import noise
from trilemma.attacks import objectives
from trilemma.attacks.ball import ascend
from trilemma.classifier import Classifier
from trilemma.config import SamplerConfig
from trilemma.contexts import inner_loop
from trilemma.methods.base import Method, MethodState
from trilemma.registry import SAMPLERS
from trilemma.units import parse_fraction
from trilemma.walk import Objective


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
) -> Attacked:
    """x*: the method's steps up ``objective`` from ``start``, in its BatchNorm mode.

    Args:
        objective: built inside the loop, so that clean logits it needs are taken in the attack's mode.
        project, clip: as in :func:`trilemma.attacks.ball.ascend`.

    Returns:
        ``adversarial`` ``[N, C, H, W]``, cut from the graph; it asks for its own gradient, which ``after_backward``
        reads. And ``gradient``, the input gradient of the attack's last step, which the training one is compared with.
    """
    attack = method.attack
    assert attack.steps is not None and attack.step_size is not None  # filled in by the options
    with inner_loop(clf, method.options.attack_mode):
        step_size = float(parse_fraction(attack.step_size))
        gradients: deque[Tensor] = deque(maxlen=1)
        starred = ascend(
            clf, start, images, method.threat, objective(), attack.steps, step_size,
            project=project, clip=clip, callback=lambda at: gradients.append(at["gradient"]),
        )  # fmt: skip
    return {"adversarial": starred.requires_grad_(), "gradient": gradients[-1]}


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
