"""The inner loops of training methods: an attack that makes x*, and chains that make x^."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypedDict

import torch
from torch import Tensor

from trilemma import noise, shares
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.config.sections import SamplerConfig
from trilemma.errors import ConfigError
from trilemma.methods.base import Method, MethodState
from trilemma.samplers.samplers import run_sampler
from trilemma.transfers import sent
from trilemma.units import parse_fraction
from trilemma.walks import objectives
from trilemma.walks.steps import ascend
from trilemma.walks.walk import Objective, StepRule, Stop


class Attacked(TypedDict):
    """Fields of :class:`Points` that an attack sets."""

    adversarial: Tensor
    gradient: Tensor


class Chain(TypedDict):
    """Fields of :class:`Points` that a chain sets."""

    generated: Tensor
    generated_labels: Tensor | None


def fresh_seeds(state: MethodState, images: Tensor) -> Tensor:
    """Returns one noise seed per image, int64 ``[N]``, drawn from the method's generator.

    Of several processes, each draws the seeds of the whole batch and takes those of its own images.
    """
    return _fresh_seeds(state, len(images), images.device)


def _fresh_seeds(state: MethodState, count: int, device: torch.device) -> Tensor:
    share = shares.current()
    return sent(share.part(noise.image_seeds(count * share.count, state.generator)), device)


def nearby_start(state: MethodState, images: Tensor) -> Tensor:
    """Returns ``x + 0.001 N(0, I)``, not clipped to [0, 1]: at x itself, the KL of TRADES has gradient 0."""
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
    """Returns x*: the steps of ``method.attack`` up ``objective`` from ``start``, in the method's BatchNorm mode.

    Args:
        method: the steps, their size, the BatchNorm mode and the threat.
        images: x, ``[N, C, H, W]``, the centres of the balls.
        start: first images of the attack, ``[N, C, H, W]``.
        objective: makes the objective; called in the attack's BatchNorm mode, so that any clean logits of the
            objective are computed in that mode.
        project, clip, step_rule, seeds, stop: as in :func:`trilemma.walks.steps.ascend`.

    Returns:
        ``adversarial`` ``[N, C, H, W]``, detached, with ``requires_grad`` set, so that the backward pass of the loss
        fills its ``grad``. ``gradient`` ``[N, C, H, W]``, the gradient with respect to each image at its last step
        (0 if the image stopped before the first), for comparison with that ``grad``.

    Raises:
        ConfigError: ``stop`` with an attack in train mode under BatchNorm.
    """
    attack = method.attack
    threat = method.threat
    if attack.steps is None or attack.step_size is None:
        raise ConfigError(
            f"method {method.options.name!r}: its options class gives no number of steps; set attack_defaults"
        )
    last: deque[Tensor] = deque(maxlen=1)
    gradient = None if stop is None else torch.zeros_like(images)

    def store_gradient(step: dict[str, Any]) -> None:
        if gradient is None:
            last.append(step["gradient"])
        else:
            gradient[step["index"]] = step["gradient"]

    with inner_loop(clf, method.options.attack_mode):
        adversarial = ascend(
            clf, start, images, threat, objective(), attack.steps, float(parse_fraction(attack.step_size)),
            project=project, clip=clip, step_rule=step_rule, seeds=seeds, stop=stop, callback=store_gradient,
        )  # fmt: skip
    return {
        "adversarial": adversarial.detach().requires_grad_(),
        "gradient": last[-1] if gradient is None else gradient,
    }


def chain(
    clf: Classifier, state: MethodState, sampler: SamplerConfig, count: int, clip: bool = True
) -> Chain:
    """Returns x^: chains from the replay buffer after ``sampler.steps`` more steps, which are also written back.

    Without a replay buffer, chains begin at new starts with uniform random labels.

    Returns:
        ``generated`` ``[count, C, H, W]``, and ``generated_labels``: for chains of E(x, y) int64 ``[count]``, the
        labels that the chains were started with; ``None`` for chains of E(x).
    """
    if state.buffer is not None:
        images, labels, places = state.buffer.draw(count, state.generator)
    else:
        if state.starts is None:
            raise ConfigError(
                "chain: no starts; set `uses_sampler: ClassVar[bool] = True` in the method's options class"
            )
        share = shares.current()
        classes = torch.randint(clf.num_classes, (count * share.count,), generator=state.generator)
        labels, images = sent(share.part(classes), clf.device), share.part(state.starts(classes))
    seeds = _fresh_seeds(state, count, images.device)
    result = descend_energy(clf, images, labels, sampler, sampler.steps or 0, seeds, clip)
    if state.buffer is not None:
        state.buffer.write(places, result["generated"], labels)
    return result


def descend_energy(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    sampler: SamplerConfig,
    steps: int,
    seeds: Tensor,
    clip: bool = True,
) -> Chain:
    """Returns ``images`` after ``steps`` steps of ``sampler`` down its energy, E(x) or E(x, y) of ``labels``.

    Args:
        images: ``[N, C, H, W]``.
        labels, seeds: int64 ``[N]``.
        clip: clip the images to [0, 1] after every step.
    """
    name = sampler.name or "langevin"
    energy = (
        objectives.joint_energy(clf, labels) if sampler.energy == "joint" else objectives.marginal_energy(clf)
    )
    with inner_loop(clf, sampler.mode or "eval"):
        settings = sampler.model_dump(include={"step_size", "noise_std", "clamp"}, exclude_none=True)
        generated = run_sampler(name, clf, images, energy, steps, seeds=seeds, clip=clip, **settings)
    return {"generated": generated, "generated_labels": labels if sampler.energy == "joint" else None}
