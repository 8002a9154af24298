"""The two halves of a training method: ``points`` makes the images, ``terms`` is the equation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import running_statistics_kept
from trilemma.classifier.memory_format import set_memory_format
from trilemma.config.config import MethodOptions
from trilemma.config.sections import AttackConfig, SamplerConfig
from trilemma.data.batch import Batch
from trilemma.data.image_set import ImageSet
from trilemma.samplers.replay_buffer import ReplayBuffer
from trilemma.samplers.starts import TrainingStarts
from trilemma.threat import Threat


@dataclass(frozen=True)
class Points:
    """The images of one step, fixed before the loss is built (SAM builds it twice on the same points).

    Attributes:
        clean: x, ``[N, C, H, W]``.
        labels: int64 ``[N]``.
        adversarial: x*, or ``None``.
        generated: x^, or ``None``.
        generated_labels: int64 ``[N]``, the classes of chains that descend E(x, y); ``None`` for chains of E(x).
        data: the real images of the generative term (un-augmented), or ``None``.
        gradient: input gradient of the attack's last step, ``[N, C, H, W]``; the gradient-cosine alarm compares it
            with the one that the loss leaves in ``adversarial.grad``.
        extra: what else one method needs (a second point, a weight from its state), named by it.
    """

    clean: Tensor
    labels: Tensor
    adversarial: Tensor | None = None
    generated: Tensor | None = None
    generated_labels: Tensor | None = None
    data: Tensor | None = None
    gradient: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ForwardResult:
    """Images and their logits from a loss forward, detached: monitors and figures read them for free."""

    images: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Step:
    """What one evaluation of a method's equation gives.

    Attributes:
        loss: scalar with its graph.
        clean, adversarial, generated: what was seen, detached; ``None`` where the method has none.
        metrics: the named terms of the loss, detached scalars.
        live: logits with their graph, for a regulariser that needs the same ones.
    """

    loss: Tensor
    clean: ForwardResult | None = None
    adversarial: ForwardResult | None = None
    generated: ForwardResult | None = None
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    live: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


class MethodState:
    """What lives across steps: generators, replay buffer, and what a method adds to ``extra`` and ``modules``.

    Attributes:
        generator: source of every random number of the method.
        buffer: persistent chains, or ``None``.
        starts: fresh starts of chains, or ``None``.
        extra: further tensors, by name.
        modules: networks that the method owns, by name, such as a guide or a teacher. Their trainable weights are
            optimised with the classifier's, their gradients averaged over the processes, and all of them are saved.
            They belong on the classifier's device (:meth:`to`).
    """

    def __init__(
        self, seed: int, buffer: ReplayBuffer | None = None, starts: TrainingStarts | None = None
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.buffer = buffer
        self.starts = starts
        self.extra: dict[str, Tensor] = {}
        self.modules: dict[str, nn.Module] = {}

    def parameters(self) -> Iterator[nn.Parameter]:
        """Trainable weights that the method owns, beside the classifier's."""
        for module in self.modules.values():
            yield from (weight for weight in module.parameters() if weight.requires_grad)

    def to(self, device: torch.device | str, memory_format: torch.memory_format | None = None) -> None:
        """Moves the networks that the method owns, in place."""
        for module in self.modules.values():
            module.to(device)
            if memory_format is not None:
                set_memory_format(module, memory_format)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that it loads without running code."""
        state: dict[str, Any] = {
            "generator": self.generator.get_state(),
            "buffer": None if self.buffer is None else self.buffer.state_dict(),
            "starts": None if self.starts is None else self.starts.state_dict(),
            "extra": dict(self.extra),
        }
        # absent without networks, as in states of earlier versions
        return state | (
            {"modules": {name: module.state_dict() for name, module in self.modules.items()}}
            if self.modules
            else {}
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what :meth:`state_dict` returned."""
        self.generator.set_state(state["generator"])
        if self.buffer is not None:
            self.buffer.load_state_dict(state["buffer"])
        if self.starts is not None:
            self.starts.load_state_dict(state["starts"])
        self.extra = {name: value.clone() for name, value in state["extra"].items()}
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])


class Method(ABC):
    """Base of every training method. A subclass writes ``points`` (if it makes images) and ``terms``.

    Args:
        options: an instance of the class's ``Options``.
        threat: the ball of the adversarial images; ``None`` for methods without.
        attack, sampler: resolved settings (the method's own where the user was silent).

    Class attributes:
        Options: the frozen option class.
        views: names of the views of a batch that it reads beside the images (see :class:`trilemma.data.batch.Batch`).
    """

    Options: ClassVar[type[MethodOptions]]
    views: tuple[str, ...] = ()

    def __init__(
        self, options: Any, threat: Threat | None, attack: AttackConfig, sampler: SamplerConfig
    ) -> None:
        self.options = options
        self.attack = attack
        self.sampler = sampler
        self._threat = threat

    @property
    def threat(self) -> Threat:
        """The threat model; only methods with an attack ask for it, and those cannot be built without."""
        assert self._threat is not None
        return self._threat

    @property
    def trains_on_adversarial(self) -> bool:
        return self.options.uses_attack is True

    def check(self, data: ImageSet) -> None:  # noqa: B027  a hook, not a duty
        """Refuses training images or options that cannot go together, before anything is written.

        Raises:
            UserError: what is wrong, in one line.
        """

    def init_state(self, clf: Classifier, data: ImageSet, seed: int) -> MethodState:
        """The state before the first step.

        Args:
            clf: for its device.
            data: training images, for class-informed starts.
            seed: of every random number of the method.
        """
        if not self.options.uses_sampler:
            return MethodState(seed)
        starts = TrainingStarts(self.sampler.start or "uniform", data, seed, clf.device)
        size = self.sampler.buffer_size or 0
        buffer = (
            ReplayBuffer(starts, size, data.num_classes, self.sampler.reinit or 0.0, clf.device)
            if size
            else None
        )
        return MethodState(seed, buffer, starts)

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        """The images of this step; walks run in :func:`trilemma.classifier.contexts.inner_loop`."""
        return Points(batch.images, batch.labels)

    @abstractmethod
    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        """The equation: the loss at these points, with the logits it was made from.

        Called twice on the same points by SAM and AWP, so ``state`` is read here and changed in ``points`` and
        ``after_backward`` alone.
        """

    def loss(self, clf: Classifier, batch: Batch, state: MethodState) -> Step:
        """``terms`` at ``points``."""
        return self.terms(clf, self.points(clf, batch, state), state)

    def loss_context(self, clf: Classifier) -> AbstractContextManager[None]:
        """The state of the network in the loss's forwards, for whoever adds one of their own to them."""
        return nullcontext()

    def after_backward(self, points: Points, state: MethodState, step: Step) -> None:  # noqa: B027  a hook
        """Called once after the weight step, by every training loop.

        Args:
            points: of the step; x* holds its gradient.
            state: may be changed.
            step: what ``terms`` returned.
        """


def detached(images: Tensor, logits: Tensor) -> ForwardResult:
    """What monitors read, cut from the graph."""
    return ForwardResult(images.detach(), logits.detach())


def forward_sets(clf: Classifier, clean: Tensor | None, *others: Tensor) -> list[Tensor]:
    """Logits of several image sets; only ``clean`` moves BatchNorm's running statistics.

    Each set is normalised by its own batch statistics, as in the papers: one forward per set.

    Args:
        clean: clean images, or ``None`` if the method forwards none (then the first of ``others`` counts).
        others: adversarial, generated or un-augmented images.
    """
    logits = []
    first, rest = (clean, others) if clean is not None else (others[0], others[1:])
    logits.append(clf.logits(first))
    if rest:
        with running_statistics_kept(clf):
            logits.extend(clf.logits(images) for images in rest)
    return logits
