"""The oracle: logits and input gradients of a classifier for attacks, with forward and backward passes counted."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.output import logits_in
from trilemma.threat import Threat
from trilemma.walks.walk import input_gradient

# logits [n, K] to values [n], or several values [n, M]
Margin = Callable[[Tensor], Tensor]


class Passes:
    """Forward and backward passes, counted per image; several threads may add to it at once."""

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
        clf: the classifier, in eval mode and with ``requires_grad`` off for its weights.
        batch_size: largest number of images per forward pass; larger inputs are split. ``None`` for no limit.
        before_pass: called before each :meth:`logits` and :meth:`gradient`; an exception that it raises ends the
            attack.
        passes: counter to add to; by default a new one.
        expectation: number of forward passes whose mean is returned, for networks with random forward passes. The
            passes are separate, since a network may draw one random number for a whole batch.
    """

    def __init__(
        self,
        clf: Classifier,
        batch_size: int | None = None,
        before_pass: Callable[[], None] = lambda: None,
        passes: Passes | None = None,
        expectation: int = 1,
    ) -> None:
        self.clf = clf
        self.batch_size = batch_size
        self.before_pass = before_pass
        self.passes = Passes() if passes is None else passes
        self.expectation = expectation

    @property
    def forwards(self) -> int:
        """Forward passes so far, counted per image."""
        return self.passes.forwards

    @property
    def backwards(self) -> int:
        """Backward passes so far, counted per image."""
        return self.passes.backwards

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits ``[n, K]`` of images ``[n, C, H, W]``, detached; costs ``expectation`` forward passes per image."""
        (logits,) = self._mean(lambda: (self._logits(images),))
        return logits

    @torch.no_grad()
    def values_and_logits(self, images: Tensor, values_of: Margin) -> tuple[Tensor, Tensor]:
        """Values and logits as of :meth:`gradient`, without the gradient."""

        def once() -> tuple[Tensor, ...]:
            logits = self._logits(images)
            return values_of(logits), logits

        values, logits = self._mean(once)
        return values, logits

    def _mean(self, once: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The mean of ``expectation`` calls of ``once``, each tensor by itself."""
        total = once()
        for _ in range(self.expectation - 1):
            total = tuple(one + other for one, other in zip(total, once(), strict=True))
        return total if self.expectation == 1 else tuple(each / self.expectation for each in total)

    def _logits(self, images: Tensor) -> Tensor:
        self.before_pass()
        self.passes.add(forwards=len(images))
        if self.batch_size is None or len(images) <= self.batch_size:
            return self.clf.logits(images)
        return torch.cat([self.clf.logits(part) for part in images.split(self._part_size(len(images)))])

    def gradient(self, images: Tensor, values_of: Margin) -> tuple[Tensor, Tensor, Tensor]:
        """Values, logits, and the gradient of each value with respect to its own image.

        Costs one forward pass per image and one backward pass per value, ``expectation`` times.

        Args:
            images: ``[n, C, H, W]``.
            values_of: function from logits ``[n, K]`` to values ``[n]`` or ``[n, M]``; the values of an image may
                depend on its own logits only.

        Returns:
            ``values``, ``logits [n, K]`` and ``gradient [n, C, H, W]`` or ``[n, M, C, H, W]``, all detached.

        Raises:
            ConfigError: the logits are detached from the images.
        """
        values, logits, gradient = self._mean(lambda: self._gradient_in_parts(images, values_of))
        return values, logits, gradient

    def _gradient_in_parts(self, images: Tensor, values_of: Margin) -> tuple[Tensor, Tensor, Tensor]:
        self.before_pass()
        self.passes.add(forwards=len(images))
        if self.batch_size is None or len(images) <= self.batch_size:
            return self._gradient(images, values_of)

        def values_of_part(first: int) -> Margin:
            # values_of expects the logits of all images: the other images get zeros, and their values are dropped.
            def values(logits: Tensor) -> Tensor:
                after = len(images) - first - len(logits)
                return values_of(pad(logits, (0, 0, first, after)))[first : first + len(logits)]

            return values

        size = self._part_size(len(images))
        parts, starts = images.split(size), range(0, len(images), size)
        results = [
            self._gradient(part, values_of_part(first)) for part, first in zip(parts, starts, strict=True)
        ]
        values, logits, gradient = (torch.cat(pieces) for pieces in zip(*results, strict=True))
        return values, logits, gradient

    def _part_size(self, count: int) -> int:
        """Images per part, for parts of equal size: a small part would cost nearly as much as a full one."""
        assert self.batch_size is not None
        return -(-count // -(-count // self.batch_size))

    def _gradient(self, images: Tensor, values_of: Margin) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            points = images.detach().requires_grad_()
            logits = self.clf.logits(points)
            values = values_of(logits)
            *others, last = values.unbind(1) if values.dim() == 2 else (values,)
            gradients = [input_gradient(value, points, retain_graph=True) for value in others]
            gradients.append(input_gradient(last, points))
        self.passes.add(backwards=len(gradients) * len(images))
        gradient = torch.stack(gradients, 1) if values.dim() == 2 else gradients[0]
        return values.detach(), logits.detach(), gradient


class _CountingNetwork(nn.Module):
    """The network of an oracle's classifier, from its input to logits; the oracle counts its passes."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        self.network, self.output = oracle.clf.network, oracle.clf.output
        # In a tuple, as the oracle's classifier must not become a submodule.
        self.oracle = (oracle,)

    def forward(self, images: Tensor) -> Tensor:
        (oracle,) = self.oracle
        oracle.before_pass()
        oracle.passes.add(forwards=len(images))
        logits = logits_in(self.network(images), self.output)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: oracle.passes.add(backwards=len(images)))
        return logits


def search_from_attack(attack: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wraps a registered attack as a search function for the pool, so that an oracle counts its passes.

    Args:
        attack: ``(clf, images, labels, threat, generator) -> images``; the generator is seeded from the images' seeds.
    """

    def search(oracle: Oracle, images: Tensor, labels: Tensor, threat: Threat, seeds: Tensor) -> Tensor:
        clf = oracle.clf
        counting_clf = Classifier(
            _CountingNetwork(oracle),
            clf.num_classes,
            clf.mean,
            clf.std,
            class_names=clf.class_names,
            image_shape=clf.image_shape,
            threat=clf.threat,
        ).eval()
        generator = torch.Generator().manual_seed(int(seeds.sum()) % 2**62)
        return attack(counting_clf, images, labels, threat, generator)

    return search
