"""Base class of training methods: ``points`` makes the images of a step, ``terms`` computes the loss on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trilemma import shares
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import running_statistics_kept
from trilemma.classifier.memory_format import set_memory_format
from trilemma.config.config import MethodOptions
from trilemma.config.sections import AttackConfig, SamplerConfig
from trilemma.data.batch import Batch
from trilemma.data.image_set import ImageSet
from trilemma.errors import ConfigError
from trilemma.samplers.replay_buffer import ReplayBuffer
from trilemma.samplers.starts import TrainingStarts
from trilemma.threat import Threat


@dataclass(frozen=True)
class Points:
    """The images of one training step, made before the loss is computed (SAM and AWP compute it twice on them).

    Attributes:
        clean: x, ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``.
        adversarial: x*, ``[N, C, H, W]``, or ``None``.
        generated: x^, ``[N, C, H, W]``, or ``None``.
        generated_labels: int64 ``[N]``, the classes of chains that descend E(x, y); ``None`` for chains of E(x).
        data: the real images of the generative term (un-augmented), or ``None``.
        gradient: gradient of the attack objective with respect to the input at the attack's last step,
            ``[N, C, H, W]``, or ``None``; the gradient-cosine alarm compares it with ``adversarial.grad`` after the
            backward pass of the loss.
        extra: further tensors of one method (a second point, a weight from its state), by name.
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
    """Images ``[N, C, H, W]`` and their logits ``[N, K]`` from a forward pass of the loss, both detached.

    Monitors and figures read them, so that they need no forward pass of their own.
    """

    images: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Step:
    """The result of one evaluation of a method's loss.

    Attributes:
        loss: scalar with its graph.
        clean, adversarial, generated: images and logits, detached; ``None`` if the loss has no forward pass of them.
        metrics: the named terms of the loss, detached scalars.
        live: logits with their graph, by name (``clean``, ``adversarial``), for a regulariser on the same logits.
    """

    loss: Tensor
    clean: ForwardResult | None = None
    adversarial: ForwardResult | None = None
    generated: ForwardResult | None = None
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    live: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


class MethodState:
    """State that a method keeps from step to step, saved in every checkpoint.

    Of several processes all have the same state, apart from their parts of the replay buffer and of the tensors named
    in ``per_image``. A checkpoint holds the whole, so that any number of processes can resume it.

    Attributes:
        generator: source of every random number of the method, in the same state in all processes
            (:func:`trilemma.methods.inner.fresh_seeds` draws from it).
        buffer: replay buffer of persistent chains, or ``None``.
        starts: draws new starts of chains, or ``None``.
        extra: further tensors of the method, by name.
        per_image: names of the tensors of ``extra`` with one row for each image of this process's part of the batch.
        modules: networks that the method owns, by name, such as a guide or a teacher. The optimiser updates their
            trainable weights with the classifier's, their gradients are averaged over the processes, and all their
            weights are saved. They have to be on the classifier's device (:meth:`to`).
    """

    def __init__(
        self, seed: int, buffer: ReplayBuffer | None = None, starts: TrainingStarts | None = None
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.buffer = buffer
        self.starts = starts
        self.extra: dict[str, Tensor] = {}
        self.per_image: tuple[str, ...] = ()
        self.modules: dict[str, nn.Module] = {}

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yields the trainable weights of ``modules``."""
        for module in self.modules.values():
            yield from (weight for weight in module.parameters() if weight.requires_grad)

    def to(self, device: torch.device | str, memory_format: torch.memory_format | None = None) -> None:
        """Moves ``modules`` to ``device`` and, if given, to ``memory_format``, in place."""
        for module in self.modules.values():
            module.to(device)
            if memory_format is not None:
                set_memory_format(module, memory_format)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as tensors and plain values only, so that loading it runs no code.

        To be called by all processes.
        """
        share = shares.current()
        extra = {name: share.whole(v) if name in self.per_image else v for name, v in self.extra.items()}
        state: dict[str, Any] = {
            "generator": self.generator.get_state(),
            "buffer": None if self.buffer is None else self.buffer.state_dict(),
            "starts": None if self.starts is None else self.starts.state_dict(),
            "extra": extra,
        }
        # Key absent without modules: states of earlier versions have no such key.
        return state | (
            {"modules": {name: module.state_dict() for name, module in self.modules.items()}}
            if self.modules
            else {}
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that :meth:`state_dict` returned."""
        self.generator.set_state(state["generator"])
        if self.buffer is not None:
            self.buffer.load_state_dict(state["buffer"])
        if self.starts is not None:
            self.starts.load_state_dict(state["starts"])
        share, extra = shares.current(), state["extra"]
        parts = {name: share.part(extra[name]) for name in self.per_image if name in extra}
        self.extra = {name: value.clone() for name, value in {**extra, **parts}.items()}
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])


class Method(ABC):
    """Base class of every training method. A subclass implements ``terms``, and ``points`` if it makes images.

    Args:
        options: an instance of the class's ``Options``.
        threat: norm and radius of the adversarial images; ``None`` for a method without an attack.
        attack, sampler: resolved settings: the user's values, and the method's defaults for the others.

    Class attributes:
        Options: the frozen option class.
        views: names of the views of a batch that the method reads beside the images (see
            :class:`trilemma.data.batch.Batch`).
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
        """The threat model. A method with an attack cannot be created without one.

        Raises:
            ConfigError: the options class states no attack.
        """
        if self._threat is None:
            raise ConfigError(
                f"method {self.options.name!r}: it has no threat; an attack needs "
                "`uses_attack: ClassVar[bool] = True` in its options class"
            )
        return self._threat

    @property
    def trains_on_adversarial(self) -> bool:
        """Whether the loss contains adversarial images."""
        return self.options.uses_attack is True

    # Optional hook: a subclass need not override it, hence no abstract method.
    def check(self, data: ImageSet) -> None:  # noqa: B027
        """Checks the options against the training images, before a run writes anything.

        Raises:
            UserError: options and training images do not fit together.
        """

    def init_state(self, clf: Classifier, data: ImageSet, seed: int) -> MethodState:
        """Returns the state before the first step.

        Args:
            clf: the classifier; its device is used.
            data: training images, for starts that depend on the class.
            seed: seed of every random number of the method.
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
        """Returns the images of this step, by default the clean batch alone.

        Attacks and chains run in :func:`trilemma.classifier.contexts.inner_loop`.
        """
        return Points(batch.images, batch.labels)

    @abstractmethod
    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        """Returns the loss at ``points`` and the logits that it was computed from.

        SAM and AWP call it twice on the same points, so it must not change ``state``; ``points`` and
        ``after_backward`` may.
        """

    def loss(self, clf: Classifier, batch: Batch, state: MethodState) -> Step:
        """Returns ``terms`` at the ``points`` of a batch."""
        return self.terms(clf, self.points(clf, batch, state), state)

    def loss_context(self, clf: Classifier) -> AbstractContextManager[None]:
        """Returns the context in which the loss runs its forward passes; any further forward pass has to use it too."""
        return nullcontext()

    # Optional hook: a subclass need not override it, hence no abstract method.
    def after_backward(self, points: Points, state: MethodState, step: Step) -> None:  # noqa: B027
        """Updates the state after the weight step; the training loop calls it once per step.

        Args:
            points: the points of the step; ``points.adversarial.grad`` is set.
            state: may be changed.
            step: the return value of ``terms``.
        """


def check_state(name: str, state: object) -> MethodState:
    """Checks what ``init_state`` of the method ``name`` returned, and returns it.

    Raises:
        ConfigError: no :class:`MethodState`.
    """
    if not isinstance(state, MethodState):
        raise ConfigError(
            f"method {name!r}: init_state returned {type(state).__name__}; it returns a MethodState"
        )
    return state


def check_step(name: str, step: object) -> Step:
    """Checks what ``terms`` of the method ``name`` returned, and returns it.

    Raises:
        ConfigError: no :class:`Step`, or a loss that is no scalar or has no gradient.
    """
    if not isinstance(step, Step):
        raise ConfigError(f"method {name!r}: terms returned {type(step).__name__}; it returns a Step")
    if step.loss.shape != () or not step.loss.requires_grad:
        problem = f"has shape {list(step.loss.shape)}" if step.loss.shape != () else "has no gradient"
        raise ConfigError(f"method {name!r}: Step.loss {problem}; it is a scalar with its graph")
    return step


def detached(images: Tensor, logits: Tensor) -> ForwardResult:
    """Returns images and logits detached from the graph, for monitors."""
    return ForwardResult(images.detach(), logits.detach())


def forward_sets(clf: Classifier, clean: Tensor | None, *others: Tensor) -> list[Tensor]:
    """Returns the logits ``[N, K]`` of several image sets; only ``clean`` updates BatchNorm's running statistics.

    Each set has its own forward pass, so that BatchNorm normalises it by its own batch statistics, as in the papers.

    Args:
        clean: clean images, or ``None`` if the loss has none; then the first of ``others`` updates the statistics.
        others: adversarial, generated or un-augmented images.
    """
    logits = []
    first, remaining = (clean, others) if clean is not None else (others[0], others[1:])
    logits.append(clf.logits(first))
    if remaining:
        with running_statistics_kept(clf):
            logits.extend(clf.logits(images) for images in remaining)
    return logits
