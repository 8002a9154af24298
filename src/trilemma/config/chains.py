"""Settings of chains: published presets by name, and which settings a chain is run with. Needs no torch.

A preset is the only place of its numbers: the defaults of the samplers, and of the chains of training methods, are read
from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from trilemma.errors import UnknownNameError, nearest

# Energies that a chain can descend.
ENERGIES = ("joint", "marginal", "ce", "reference", "mahalanobis")
# Of the network while a chain runs.
PRECISIONS = ("fp32", "bf16")
# Factor of the step size or of the noise at the fraction t of the steps that are done, 0 <= t < 1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "linear": lambda t: 1.0 - t,
    "cosine": lambda t: (1.0 + math.cos(math.pi * t)) / 2,
}
# Settings of a step, which belong to one sampler: another sampler has its own defaults.
STEP_SETTINGS = ("step_size", "noise_std", "clamp", "zeta", "step_schedule", "noise_schedule")


@dataclass(frozen=True)
class SamplerPreset:
    """A chain as published, for images in [0, 1] (``docs/generation.md`` converts the units of the papers).

    Attributes:
        sampler, start, energy: names, as of :func:`trilemma.samplers.generate`.
        steps: number of steps of one draw.
        step_size, noise_std, clamp, zeta: settings of a step; ``zeta`` is 0 for samplers without momentum.
        stop: whether a chain ends at the energy of real images.
        summary: one line for ``trilemma list samplers``.
        source: the paper, and the units in which it states the numbers.
    """

    sampler: str
    start: str
    energy: str
    steps: int
    step_size: float
    noise_std: float
    summary: str
    source: str
    clamp: float | None = None
    zeta: float = 0.0
    stop: bool = False

    def step(self) -> dict[str, float]:
        """Returns the settings of a step that this sampler has, as keyword arguments."""
        optional = {"clamp": self.clamp, "zeta": self.zeta}
        return {
            "step_size": self.step_size,
            "noise_std": self.noise_std,
            **{name: value for name, value in optional.items() if value},
        }

    def chain(self) -> dict[str, Any]:
        """Returns the whole chain as keyword arguments of :func:`trilemma.samplers.generate`."""
        named = {"start": self.start, "sampler": self.sampler, "energy": self.energy, "steps": self.steps}
        return {**named, "stop": self.stop, **self.step()}

    def training(self, **settings: Any) -> dict[str, Any]:
        """Returns the chain as keys of the section ``sampler`` of a recipe, and ``settings`` of a replay buffer."""
        chain = self.chain()
        del chain["stop"]
        return {"name": chain.pop("sampler"), **chain, **settings}


JEM = SamplerPreset(
    "langevin", "uniform", "marginal", steps=20, step_size=0.25, noise_std=0.005,
    summary="Langevin steps down E(x) from uniform noise",
    source="arXiv 1912.03263, Algorithm 1: step 1, noise 0.01, 20 steps on [-1, 1]",
)  # fmt: skip
JEM_PLUS_PLUS = SamplerPreset(
    "proximal", "class-gaussian", "marginal", steps=10, step_size=0.25, noise_std=0.0, clamp=2.0,
    summary="clamped noiseless steps down E(x) from class Gaussians",
    source="arXiv 2109.09032, proximal SGLD: step 1, clamp 1, 10 steps on [-1, 1]",
)  # fmt: skip
SADA_JEM = replace(
    JEM_PLUS_PLUS,
    summary="the steps of jem++, which SADA-JEM keeps",
    source="Yang et al. 2023, release: step 1, clamp 1, 5 or 10 steps on [-1, 1]",
)
WEAT = SamplerPreset(
    "momentum", "class-pca", "joint", steps=500, step_size=0.0125, noise_std=0.001, zeta=0.8,
    summary="momentum down E(x, y) from the principal components of the class",
    source="arXiv 2407.06315, generation: s 0.025 (s / 2 here), noise 0.001, zeta 0.8, 500 steps on [0, 1]",
)  # fmt: skip
DAT = SamplerPreset(
    "normalised", "phase-scrambled", "joint", steps=35, step_size=0.2, noise_std=0.0,
    summary="L2 steps up the logit of the class, from images outside the training distribution",
    source="arXiv 2510.13872, FID: 32 to 35 steps of 0.2 on [0, 1]; published from natural images of other data",
)  # fmt: skip
DER = SamplerPreset(
    "momentum", "local-pca", "reference", steps=WEAT.steps, step_size=WEAT.step_size, noise_std=WEAT.noise_std,
    zeta=WEAT.zeta, stop=True,
    summary="local PCA start, energy guidance and adaptive stopping, with the steps of weat",
    source="arXiv 2505.22486, generation: start, guidance and stopping; step sizes are not published",
)  # fmt: skip
PRESETS = {
    "weat": WEAT, "jem": JEM, "jem++": JEM_PLUS_PLUS, "sada-jem": SADA_JEM, "dat": DAT, "der": DER,
}  # fmt: skip
# The chain of a classifier that was trained without one.
DEFAULTS: dict[str, Any] = {
    "start": "class-pca", "sampler": "momentum", "energy": "joint", "steps": 100, "stop": False,
}  # fmt: skip


def find_sampler_preset(name: object) -> SamplerPreset:
    """Returns the preset called ``name``.

    Raises:
        UnknownNameError: there is none; the message has all names and the nearest one.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise UnknownNameError(
            f"unknown preset {name!r}.{nearest(str(name), PRESETS)} Presets: {', '.join(PRESETS)}"
        )
    return PRESETS[name]


def choose_chain(
    given: Mapping[str, Any], preset: str | None = None, trained: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the settings of a chain: those given, then those of the preset, or else of training, or the defaults.

    If another sampler is given, the settings of a step that belong to the replaced sampler are dropped.

    Args:
        given: keyword arguments of :func:`trilemma.samplers.generate`; for all but the settings of a step, ``None``
            stands for a value not given.
        preset: name of a preset, or ``None``.
        trained: the chain that the classifier was trained with, as its ``about`` records it (``name`` is that of the
            sampler); without effect beside a preset.

    Raises:
        UnknownNameError: unknown preset.
    """
    if preset is None:
        chain = dict(trained or {})
        base = {**DEFAULTS, **({"sampler": chain.pop("name")} if "name" in chain else {}), **chain}
    else:
        base = find_sampler_preset(preset).chain()
    # For a step, ``None`` is a value: no clamp.
    chosen = {name: value for name, value in given.items() if value is not None or name in STEP_SETTINGS}
    if chosen.get("sampler", base["sampler"]) != base["sampler"]:
        base = {name: value for name, value in base.items() if name not in STEP_SETTINGS}
    return {**base, **chosen}
