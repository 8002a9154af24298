"""What an attack may ask of a classifier, and how much it has asked: forward and backward passes, counted per image."""

from __future__ import annotations

import threading
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from trilemma.classifier.classifier import Classifier
from trilemma.threat import Threat
from trilemma.walks.walk import input_gradient

# logits [n, K] to values [n], or several values [n, M]
Margin = Callable[[Tensor], Tensor]


class Passes:
    """Images that went through a network, each way; several threads may count at once."""

    def __init__(self) -> None:
        self.forwards = 0
        self.backwards = 0
        self._lock = threading.Lock()

    def add(self, forwards: int = 0, backwards: int = 0) -> None:
        with self._lock:
            self.forwards += forwards
            self.backwards += backwards


class Oracle:
    """Logits and input gradients of a classifier; use it inside :func:`trilemma.classifier.contexts.inner_loop`.

    Args:
        clf: in eval mode, its weights without gradient.
        batch_size: most images in the network at once; more are asked for in parts. ``None`` for no limit.
        before: called before each question; what it raises ends the attack.
        passes: to go on counting in; a count of its own by default.
    """

    def __init__(
        self,
        clf: Classifier,
        batch_size: int | None = None,
        before: Callable[[], None] = lambda: None,
        passes: Passes | None = None,
    ) -> None:
        self.clf = clf
        self.batch_size = batch_size
        self.before = before
        self.passes = Passes() if passes is None else passes

    @property
    def forwards(self) -> int:
        """Images that went through the network so far."""
        return self.passes.forwards

    @property
    def backwards(self) -> int:
        """Images that went through it backwards so far."""
        return self.passes.backwards

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits ``[n, K]`` of images ``[n, C, H, W]``, without a graph: one forward pass each."""
        self.before()
        self.passes.add(forwards=len(images))
        if self.batch_size is None or len(images) <= self.batch_size:
            return self.clf.logits(images)
        return torch.cat([self.clf.logits(part) for part in images.split(self._size(len(images)))])

    def gradient(self, images: Tensor, values_of: Margin) -> tuple[Tensor, Tensor, Tensor]:
        """Values, logits, and the gradient of each value by its own image.

        One forward pass for each image, and one backward pass for each of its values.

        Args:
            images: ``[n, C, H, W]``.
            values_of: from logits ``[n, K]`` to values ``[n]`` or ``[n, M]``, row by row.

        Returns:
            ``values``, ``logits [n, K]`` and ``gradient [n, C, H, W]`` or ``[n, M, C, H, W]``, all detached.

        Raises:
            ConfigError: the network cuts its logits from the images.
        """
        self.before()
        self.passes.add(forwards=len(images))
        if self.batch_size is None or len(images) <= self.batch_size:
            return self._gradient(images, values_of)

        def values_of_rows(first: int) -> Margin:
            # values_of wants a row for each image: the others get zeros, and their values are not read
            def values(logits: Tensor) -> Tensor:
                after = len(images) - first - len(logits)
                return values_of(pad(logits, (0, 0, first, after)))[first : first + len(logits)]

            return values

        size = self._size(len(images))
        parts, firsts = images.split(size), range(0, len(images), size)
        found = [
            self._gradient(part, values_of_rows(first)) for part, first in zip(parts, firsts, strict=True)
        ]
        values, logits, gradient = (torch.cat(pieces) for pieces in zip(*found, strict=True))
        return values, logits, gradient

    def _size(self, count: int) -> int:
        """Of parts as equal as possible: a small one would cost nearly as much as a whole one."""
        assert self.batch_size is not None
        return -(-count // -(-count // self.batch_size))

    def _gradient(self, images: Tensor, values_of: Margin) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            here = images.detach().requires_grad_()
            logits = self.clf.logits(here)
            values = values_of(logits)
            *others, last = values.unbind(1) if values.dim() == 2 else (values,)
            gradients = [input_gradient(value, here, retain_graph=True) for value in others]
            gradients.append(input_gradient(last, here))
        self.passes.add(backwards=len(gradients) * len(images))
        gradient = torch.stack(gradients, 1) if values.dim() == 2 else gradients[0]
        return values.detach(), logits.detach(), gradient


class _Counting(nn.Module):
    """A network whose passes an oracle counts."""

    def __init__(self, network: nn.Module, oracle: Oracle) -> None:
        super().__init__()
        self.network = network
        # in a tuple: an oracle holds a classifier, which must not become a submodule
        self.oracle = (oracle,)

    def forward(self, images: Tensor) -> Tensor:
        (oracle,) = self.oracle
        oracle.before()
        oracle.passes.add(forwards=len(images))
        logits: Tensor = self.network(images)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: oracle.passes.add(backwards=len(images)))
        return logits


def searching(attack: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The form of a registered attack that an ensemble calls: through an oracle, which counts its passes.

    Args:
        attack: ``(clf, images, labels, threat, **settings) -> images``, with ``generator`` among its arguments if it
            draws random numbers.
    """
    takes_generator = "generator" in signature(attack).parameters

    def search(
        oracle: Oracle, images: Tensor, labels: Tensor, threat: Threat, seeds: Tensor, **settings: Any
    ) -> Tensor:
        clf = oracle.clf
        counted = Classifier(
            _Counting(clf.network, oracle),
            clf.num_classes,
            clf.mean,
            clf.std,
            class_names=clf.class_names,
            image_shape=clf.image_shape,
            threat=clf.threat,
        ).eval()
        if takes_generator:
            # a function of the images' seeds
            settings["generator"] = torch.Generator().manual_seed(int(seeds.sum()) % 2**62)
        return attack(counted, images, labels, threat, **settings).detach()

    return search
