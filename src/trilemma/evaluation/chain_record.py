"""What chains looked like on their way: images and joint energies of a few of them at a few steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.figures.sample_grid import ROWS, first_of_each_class

# Images per chain, the start included.
POINTS = 12


@dataclass(frozen=True)
class ChainRecord:
    """Chains at recorded steps.

    Attributes:
        steps: T numbers of steps, ascending, 0 for the start. A chain that stopped early stays where it stopped.
        images: float32 ``[T, n, C, H, W]`` in [0, 1], on the CPU.
        labels: int64 ``[n]``, the class of each chain.
    """

    steps: tuple[int, ...]
    images: Tensor
    labels: Tensor

    @torch.no_grad()
    def joint_energies(self, clf: Classifier) -> Tensor:
        """E(x, y) of each chain at each step, ``[T, n]`` on the CPU."""
        rows = []
        with inner_loop(clf, "eval"):
            for images in self.images:
                logits = clf.logits(images.to(clf.device))
                rows.append(energies.joint_energy(logits, self.labels.to(clf.device)).cpu())
        return torch.stack(rows)


def recorded_steps(steps: int) -> tuple[int, ...]:
    """At most :data:`POINTS` steps from 0 to ``steps``, close together where a chain moves most."""
    points = np.geomspace(1, max(steps, 1), POINTS - 1).round().astype(int)
    return tuple(sorted({0, *(int(point) for point in points if point <= steps)}))


def recorded_chains(labels: Tensor) -> Tensor:
    """The first chain of every class, or the first two if there is room: positions, int64, ascending.

    Args:
        labels: int64 ``[N]``, ascending.
    """
    each = max(1, min(2, ROWS // len(labels.unique())))
    return torch.cat([*first_of_each_class(labels, each).values()])


class ChainRecorder:
    """A callback of :func:`trilemma.samplers.generate` that follows some chains of a batch.

    Args:
        starts: the first images of the batch, ``[N, C, H, W]``.
        positions: int64 ``[n]``, ascending, the chains to follow.
        steps: of :func:`recorded_steps`.
    """

    def __init__(self, starts: Tensor, positions: Tensor, steps: tuple[int, ...]) -> None:
        self.positions, self.steps = positions, steps
        self.now = starts[positions.to(starts.device)].cpu().clone()
        self.kept = {0: self.now.clone()}

    def __call__(self, step: dict[str, Any]) -> None:
        index, done = step["index"].cpu(), step["step"] + 1
        # Chains that stopped are not in the batch any more, and stay where they are.
        at = torch.searchsorted(index, self.positions).clamp_max(len(index) - 1)
        alive = index[at] == self.positions
        self.now[alive] = step["images"][at[alive].to(step["images"].device)].detach().cpu()
        if done in self.steps:
            self.kept[done] = self.now.clone()

    def images(self, final: Tensor) -> Tensor:
        """The images at every step, ``[T, n, C, H, W]``; ``final``, those of the whole batch, after the last one."""
        last = final[self.positions.to(final.device)].cpu()
        return torch.stack([self.kept.get(step, last) for step in self.steps])
