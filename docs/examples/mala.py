"""MALA: a sampler of one's own, outside the package, in one file.

python docs/examples/mala.py runs/digits-jem
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

import trilemma
from trilemma.config.registry import SAMPLERS
from trilemma.errors import ConfigError
from trilemma.walks.steps import descend
from trilemma.walks.walk import Callback, Objective, Walkers


def mala(
    clf: trilemma.Classifier,
    images: Tensor,
    energy: Objective,
    steps: int,
    step_size: float = 0.25,
    noise_std: float = 0.005,
    clamp: float | None = None,
    seeds: Tensor | None = None,
    *,
    clip: bool = True,
    callback: Callback | None = None,
    **options: Any,
) -> Tensor:
    """Metropolis-adjusted Langevin: draws from ``exp(-U(x) / T)`` with ``T = noise_std^2 / (2 step_size)``.

    One step proposes what ``langevin`` would move to, ``x' = x - step_size grad U(x) + noise_std n``, and moves there
    with probability ``min(1, exp((U(x) - U(x')) / T) q(x | x') / q(x' | x))``, where q is the density of the proposal
    (Roberts and Tweedie 1996). So the step size changes how fast the chain mixes, but not what it draws from.

    The images stay in [0, 1] by reflection at 0 and 1, which q takes into account; clipping would put mass on the
    border.

    Args:
        clf: the classifier; call inside :func:`trilemma.classifier.contexts.inner_loop`.
        images: starting images, ``[N, C, H, W]``.
        energy: the objective U to descend (see :mod:`trilemma.walks.objectives`).
        steps: number of proposals.
        step_size: factor of the gradient.
        noise_std: standard deviation of the noise of each proposal, pixel units; above 0.
        clamp: largest magnitude of each entry of the gradient in the proposal; the chain stays exact.
        seeds: int64 ``[N]``, one noise seed per image.
        clip: draw from the density on [0, 1]; without it, on all real numbers.
        callback: called after each step (see :func:`trilemma.walks.walk.walk`).
        options: ``clean``, ``budget`` and ``stop``, which :func:`trilemma.samplers.generate` passes to every sampler.

    Raises:
        ConfigError: ``noise_std`` of 0, or a budget or stopping rule, with which the draws would be others.
    """
    if not noise_std > 0:
        raise ConfigError(f"mala: noise_std={noise_std}; give a noise above 0, which sets the temperature")
    if options.get("budget") is not None or options.get("stop") is not None:
        raise ConfigError("mala: a budget or a stopping rule changes what is drawn; use langevin with them")
    temperature = noise_std**2 / (2 * step_size)

    def log_proposal(to: Tensor, mean: Tensor) -> Tensor:
        """log q of each image up to a constant, ``[n]``; all points that reflect onto ``to`` count."""
        sources = [to, -to, 2 - to] if clip else [to]
        exponents = torch.stack([-(source - mean).square() / (2 * noise_std**2) for source in sources])
        return exponents.logsumexp(0).flatten(1).sum(1)

    def step(walkers: Walkers, gradient: Tensor) -> Tensor:
        # walkers.images is the last proposal x', walkers.values its energy; the state holds the x it started from
        drift = gradient if clamp is None else gradient.clamp(-clamp, clamp)
        mean = walkers.images - step_size * drift
        assert walkers.values is not None
        current = {"images": walkers.images, "values": walkers.values, "mean": mean}
        if walkers.state:
            previous = walkers.state
            log_ratio = (previous["values"] - walkers.values) / temperature
            log_ratio += log_proposal(previous["images"], mean)
            log_ratio -= log_proposal(walkers.images, previous["mean"])
            accepted = walkers.uniform().log() < log_ratio
            current = {
                name: torch.where(accepted.view(-1, *[1] * (value.dim() - 1)), value, previous[name])
                for name, value in current.items()
            }
        walkers.state = current
        # the last step only decides about the last proposal
        if walkers.step == steps:
            return current["images"]
        proposal = current["mean"] + noise_std * walkers.normal()
        return _reflected(proposal) if clip else proposal

    return descend(clf, images, energy, step, steps + 1, seeds=seeds, clip=clip, callback=callback)


def _reflected(images: Tensor) -> Tensor:
    """Mirrors each value at 0 and 1 until it lies between them."""
    return 1 - (images.remainder(2) - 1).abs()


SAMPLERS.add(
    "mala",
    f"{__name__}:mala",
    summary="Langevin proposals with a Metropolis test",
    paper="Roberts and Tweedie 1996",
)

if __name__ == "__main__":
    clf = trilemma.load(sys.argv[1])
    images = trilemma.samplers.generate(
        clf, torch.arange(10), start="class-pca", sampler="mala", energy="joint", steps=100
    )
    energy = trilemma.energies.joint_energy(clf(images).detach(), torch.arange(10))
    print(f"mean E(x, y) of 10 images after 100 steps: {float(energy.mean()):.2f}")
