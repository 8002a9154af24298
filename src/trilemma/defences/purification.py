"""Purification: Langevin steps down E(x) before an image is classified (Hill et al. 2021, arXiv 2005.13525)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trilemma import noise
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.wrap import Images, Network, as_classifier, as_images, check_generator, on_device_of
from trilemma.energies import marginal_energy
from trilemma.errors import ImageError
from trilemma.samplers.samplers import langevin
from trilemma.units import choice, count, length
from trilemma.walks import objectives
from trilemma.walks.walk import input_gradient

# Ways to get the gradient of an adaptive attack through the purifier.
GRADIENTS = ("bpda", "unrolled")
BOTH = "both"


@dataclass(frozen=True)
class Purification:
    """Settings of a purification and of its evaluation.

    Attributes:
        steps: Langevin steps, ``x <- clip(x - step_size grad E(x) + noise_std n)``; 0 leaves images unchanged.
        step_size: factor of the gradient, for images in [0, 1]; the default is that of JEM.
        noise_std: standard deviation of the noise of each step, pixel units; the default is that of JEM.
        draws: number of purifications of an image with different noise over which an attack averages the gradient at
            every step (expectation over transformations), and by which it chooses the strongest images.
        gradient: of the attack: ``"bpda"`` (that at the purified image, with the identity as derivative of the
            purifier), ``"unrolled"`` (exact, through all steps), or ``"both"``: both attacks, of which the stronger
            counts for each image.
        judgements: number of purifications with new noise by which the accuracy is measured.

    Raises:
        ConfigError: a value of a wrong type or range.
    """

    steps: int
    step_size: float = 0.25
    noise_std: float = 0.005
    draws: int = 10
    gradient: Literal["both", "bpda", "unrolled"] = "both"
    judgements: int = 10

    def __post_init__(self) -> None:
        count("purify", "steps", self.steps, 0)
        for name, zero in (("step_size", False), ("noise_std", True)):
            object.__setattr__(self, name, length("purify", name, getattr(self, name), zero=zero))
        count("purify", "draws", self.draws)
        choice("purify", "gradient", self.gradient, (BOTH, *GRADIENTS))
        count("purify", "judgements", self.judgements)

    @classmethod
    def of(cls, value: int | Purification) -> Purification:
        """``value`` itself, or the purification of that number of steps with the default settings."""
        return value if isinstance(value, Purification) else cls(value)

    @property
    def random(self) -> bool:
        """Whether two purifications of an image differ."""
        return self.steps > 0 and self.noise_std > 0

    @property
    def gradients(self) -> tuple[str, ...]:
        """The gradients of the attack; none with 0 steps, where the plain attack is the attack through the purifier."""
        if not self.steps:
            return ()
        return GRADIENTS if self.gradient == BOTH else (self.gradient,)

    def row_name(self, protocol: str, attacks: bool) -> str:
        """The name of the result row of a protocol: ``purify-10:pgd-20:eot-10``; settings other than the default are
        part of it: ``purify-10,step-0.1,noise-0:clean``.

        Args:
            protocol: name of the protocol.
            attacks: whether it attacks.
        """
        default = Purification(self.steps)
        parts = [f"purify-{self.steps}"]
        if self.step_size != default.step_size:
            parts.append(f"step-{self.step_size:g}")
        if self.noise_std != default.noise_std:
            parts.append(f"noise-{self.noise_std:g}")
        name = f"{','.join(parts)}:{protocol}"
        attack = list(self.gradients) if self.gradient != BOTH else []
        attack += [f"eot-{self.draws}"] if self.random else []
        return f"{name}:{','.join(attack)}" if attacks and attack else name

    def record(self, attacks: bool) -> dict[str, Any]:
        """The JSON-like entry ``purification`` of a result row.

        Args:
            attacks: whether the row is of an attack, which then went through the purifier.
        """
        settings = {"steps": self.steps, "step_size": self.step_size, "noise_std": self.noise_std}
        judged = {"judgements": self.judgements if self.random else 1}
        if not attacks:
            return {**settings, **judged, "attack": None}
        draws = {"draws": self.draws if self.random else 1, "gradients": list(self.gradients)}
        return {**settings, **judged, "attack": ADAPTIVE, **draws}


# The value of ``purification.attack`` in rows whose attack went through the purifier.
ADAPTIVE = "adaptive"


@torch.inference_mode(False)
def purify(
    clf: Network,
    images: Images,
    steps: int = 10,
    step_size: float = 0.25,
    noise_std: float = 0.005,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images after Langevin steps down E(x), ``x <- clip(x - step_size grad E(x) + noise_std n)``.

    An adversarial image is expected to lose its perturbation on the way to low energy. Whether it does cannot be seen
    from an attack on the classifier alone: attack through the purifier (:func:`trilemma.defences.purified_pgd`,
    ``trilemma evaluate --purify``). Each image has its own random numbers, so the result does not depend on the batch.

    Args:
        clf: the classifier, or a network or function from images in [0, 1] to logits; its state is restored.
        images: ``[N, C, H, W]`` in [0, 1].
        steps: number of steps; 0 returns the images.
        step_size: factor of the gradient, for images in [0, 1].
        noise_std: standard deviation of the noise of each step, pixel units; 0 for none.
        generator: source of the noise.

    Returns:
        Purified images ``[N, C, H, W]`` in [0, 1], without a graph, on the device of ``images``.

    Raises:
        ImageError: images outside [0, 1] or of a wrong type or shape, or images that became NaN.
        ConfigError: a number of a wrong type or range, or a classifier without a gradient.
    """
    settings = Purification(steps, step_size, noise_std)
    given = as_images(images)
    clf = as_classifier(clf, given)
    moved = on_device_of(clf, given)
    clf.check(moved)
    check_generator("purify", generator)
    # Drawn only if used, as without a generator they come from torch's global one.
    seeds = noise.image_seeds(len(moved), generator, moved.device) if settings.random else None
    with inner_loop(clf, "eval"):
        return purified(clf, moved, settings, seeds).to(given.device)


def purified(clf: Classifier, images: Tensor, settings: Purification, seeds: Tensor | None) -> Tensor:
    """:func:`purify` of checked images; call it inside ``inner_loop``.

    Args:
        seeds: int64 ``[N]``, one noise seed per image; ``None`` only if the purification is not random.

    Raises:
        ImageError: images became NaN.
    """
    if not settings.steps or not len(images):
        return images.detach()
    energy = objectives.marginal_energy(clf)
    moved = langevin(clf, images, energy, settings.steps, settings.step_size, settings.noise_std, seeds=seeds)
    if not bool(torch.isfinite(moved).all()):
        raise ImageError(
            "purify: images became NaN, as E(x) or its gradient is not finite; use a smaller step_size"
        )
    return moved


def unrolled(clf: Classifier, images: Tensor, settings: Purification, seeds: Tensor | None) -> Tensor:
    """:func:`purified` with a graph through all steps, for the exact gradient; memory grows with the steps.

    Args:
        images: ``[N, C, H, W]``, with ``requires_grad``; call it inside ``inner_loop``, with gradients enabled.

    Raises:
        ConfigError: E(x) has no gradient.
        NetworkError: the network cannot be differentiated twice.
    """
    points = images
    for step in range(settings.steps):
        gradient = input_gradient(marginal_energy(clf.logits(points)), points, create_graph=True)
        points = points - settings.step_size * gradient
        if settings.noise_std and seeds is not None:
            points = points + settings.noise_std * noise.normal(seeds, step + 1, images.shape[1:]).to(images)
        points = points.clamp(0.0, 1.0)
    return points
