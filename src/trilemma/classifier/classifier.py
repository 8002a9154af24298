"""The classifier: a network with its normalisation, input checks, class names and threat model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from trilemma.classifier import file
from trilemma.classifier.foreign_weights import fit_weights
from trilemma.classifier.output import as_module, check_logits, logits_in, raised
from trilemma.classifier.statistics import PREFIX, as_computed
from trilemma.data.class_names import distinct_names, numbers
from trilemma.errors import CheckpointError, ConfigError, ImageError
from trilemma.files import CLASSIFIER
from trilemma.printing import quoted
from trilemma.runs.digests import WEIGHTS, classes_digest
from trilemma.threat import Threat
from trilemma.units import MOST_CLASSES, count

TOLERANCE = 1e-4


def check_returned(what: str, images: object, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Checks that a registered function returned float images of ``shape``, and returns them.

    Args:
        what: the registry row, for the message: ``"attack 'mine'"``.
        images: the returned value.
        shape: the expected shape, ``[N, C, H, W]``.

    Raises:
        ConfigError: something else was returned.
    """
    if isinstance(images, Tensor) and images.shape == tuple(shape) and images.is_floating_point():
        return images
    returned = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
    raise ConfigError(f"{what}: returned {returned}; its function returns float images {list(shape)}")


def check_type(images: object) -> None:
    """Checks that images are a float32 or float64 tensor ``[N, C, H, W]``.

    Raises:
        ImageError: they are not.
    """
    # Half precision is refused: its spacing near 1 is 1/2048, too coarse for perturbations of 8/255.
    if not isinstance(images, Tensor) or images.dtype not in (torch.float32, torch.float64):
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ImageError(f"images: {kind} given; pass a float32 tensor in [0, 1] (integers: .float() / 255)")
    if images.dim() != 4:
        raise ImageError(
            f"images: shape {list(images.shape)} given; pass [N, C, H, W] (one image: image[None])"
        )


def check_range(images: Tensor) -> None:
    """Checks that all values are in [0, 1], with a tolerance of 1e-4, and that none is NaN.

    Raises:
        ImageError: a value is NaN or out of range.
    """
    if images.numel() == 0:
        return
    low, high = (value.item() for value in images.detach().aminmax())
    if low != low or high != high:
        raise ImageError("images: some values are NaN; check how they were decoded or generated")
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        remedy = (
            "divide by 255"
            if high > 2 and low >= 0
            else "pass images in [0, 1]; the Classifier applies mean and std itself"
        )
        raise ImageError(f"images: values span [{low:.4g}, {high:.4g}], outside [0, 1]; {remedy}")


def check_labels(labels: Tensor, images: Tensor, num_classes: int, name: str = "labels") -> None:
    """Checks that labels are int64, one per image, and in 0 to ``num_classes - 1``.

    Args:
        labels: to be checked.
        images: ``[N, C, H, W]``.
        num_classes: K.
        name: the argument's name, for the error message.

    Raises:
        ImageError: wrong type, shape or range.
    """
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ImageError(
            f"{name}: {labels.dtype} of shape {list(labels.shape)} given for {len(images)} images; "
            f"pass an int64 tensor of shape [{len(images)}]"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ImageError(
            f"{name}: values {int(labels.min())}..{int(labels.max())}, but classes are 0..{num_classes - 1}; "
            "use labels of this classifier"
        )


class Classifier(nn.Module):
    """A module from images in [0, 1] to logits, with normalisation, class names and what evaluation needs to know.

    Calling it checks the images' shape, type and range. Attacks, samplers and training losses check their arguments
    once and then call :meth:`logits`, which does not check the range.

    The network gets a tensor of its own, so that it may write on its input. An exception in its forward pass is raised
    as a :class:`trilemma.errors.NetworkError` of one line.

    Args:
        network: any module, or function, from ``[N, C, H, W]`` to logits ``[N, K]`` (not probabilities), in any
            floating-point type; the logits of a classifier are float32.
        num_classes: K.
        mean, std: per-channel normalisation, applied to the images first; ``None`` for none.
        class_names: K different names; ``None`` for the class numbers. Bytes are decoded as UTF-8.
        image_shape: the only accepted ``(C, H, W)``; ``None`` for any shape that the network accepts.
        threat: the threat model it was trained for; the default threat of ``trilemma.evaluate``.
        network_config: registry name and options of the network, from which :meth:`load` rebuilds it.
        output: key, index or attribute of the logits in what the network returns; ``None`` if it returns the logits.

    Attributes:
        statistics: named tensors about the training data (class means, PCA, mean energies).
        about: free-form metadata stored with the file (recipe, data name).

    Raises:
        ConfigError: an argument of a wrong type or range, mean without std, a std of 0, constants for another number of
            channels, or class names that are not K different ones.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        network: nn.Module | Callable[[Tensor], Any],
        num_classes: int = 10,
        mean: Sequence[float] | Tensor | None = None,
        std: Sequence[float] | Tensor | None = None,
        *,
        class_names: Sequence[str] | None = None,
        image_shape: tuple[int, int, int] | None = None,
        threat: Threat | None = None,
        network_config: dict[str, Any] | None = None,
        output: str | int | None = None,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise ConfigError("classifier: give both mean and std, or neither")
        if threat is not None and not isinstance(threat, Threat):
            raise ConfigError(f"classifier: threat={threat!r}; pass trilemma.Threat(norm, radius)")
        if isinstance(output, bool) or not isinstance(output, str | int | None):
            raise ConfigError(f"classifier: output={output!r}; pass a key, an index or None")
        self.network = as_module(network)
        self.num_classes = count("classifier", "num_classes", num_classes, 2, MOST_CLASSES)
        self.class_names = _names(class_names, self.num_classes)
        self.image_shape = None if image_shape is None else _shape(image_shape)
        self.threat = threat
        self.network_config = network_config
        self.output = output
        self.statistics: dict[str, Tensor] = {}
        self.about: dict[str, Any] = {}
        for name, values in (("mean", mean), ("std", std)):
            constants = None if values is None else _constants(name, values, self.image_shape)
            self.register_buffer(name, constants, persistent=False)
        if self.std is not None and not bool((self.std > 0).all()):
            raise ConfigError("classifier: every std must be above 0")
        if self.mean is not None and self.std is not None and 1 != self.mean.numel() != self.std.numel() != 1:
            raise ConfigError(
                f"classifier: {self.mean.numel()} values of mean and {self.std.numel()} of std; give one per channel"
            )

    @property
    def device(self) -> torch.device:
        """The device of the weights; the CPU for a network without parameters and buffers."""
        return next((value.device for value in chain(self.parameters(), self.buffers())), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first floating-point parameter; float32 for a network without any."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of the network, except of a graph made by ``torch.export``, whose mode is fixed."""
        # Those graphs raise NotImplementedError.
        with suppress(NotImplementedError):
            return super().train(mode)
        return self

    def _check_form(self, images: Tensor) -> None:
        """Checks type and shape of ``images``; raises :class:`ImageError`."""
        check_type(images)
        channels = len(self.mean.flatten()) if self.mean is not None else None
        expected = self.image_shape or (
            (channels, *images.shape[2:]) if channels is not None and channels > 1 else None
        )
        if expected is not None and tuple(images.shape[1:]) != tuple(expected):
            raise ImageError(
                f"images: {list(images.shape[1:])} per image given, but this classifier takes "
                f"{list(expected)} (C, H, W); convert channels or resize first"
            )

    def check(self, images: Tensor) -> None:
        """Checks images before use: type, shape, and values in [0, 1] without NaN.

        Raises:
            ImageError: wrong type, shape or range.
        """
        self._check_form(images)
        check_range(images)

    def logits(self, images: Tensor) -> Tensor:
        """Logits ``[N, K]`` float32 of images ``[N, C, H, W]``; only shape and type are checked."""
        self._check_form(images)
        # Always a tensor that is not the caller's, since a network may write on its input.
        if self.mean is not None and self.std is not None:
            inputs = (images - self.mean).div_(self.std).to(self.dtype)
        else:
            inputs = images.to(self.dtype, copy=True)
        try:
            output = self.network(inputs)
        except Exception as error:
            raise raised(error, images) from error
        logits = logits_in(output, self.output)
        check_logits(logits, images, self.num_classes)
        return logits.float()

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[N, K]`` of images ``[N, C, H, W]`` in [0, 1], checked as in :meth:`check`."""
        if not torch.compiler.is_compiling():
            self.check(images)
        return self.logits(images)

    def weights_digest(self) -> str | None:
        """SHA-256 of what the logits depend on: the weights, the normalisation and the output.

        Equal for the same weights on every device. ``None`` for a network without weights, or whose weights a
        classifier file cannot hold.
        """
        try:
            weights = file.weights_of(self.network, "")
        except CheckpointError:
            return None
        return file.weights_digest(weights, *self._normalisation(), self.output) if weights else None

    def provenance(self) -> dict[str, Any]:
        """What a result records of its classifier: ``about``, and digests of its ``weights`` and its ``classes``.

        The weights have none if :meth:`weights_digest` is ``None``.
        """
        digest = self.weights_digest()
        weights = {} if digest is None else {"weights": digest}
        return {**self.about, **weights, "classes": classes_digest(self.class_names)}

    def _normalisation(self) -> tuple[list[float] | None, list[float] | None]:
        mean, std = (None if value is None else value.flatten().tolist() for value in (self.mean, self.std))
        return mean, std

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file with weights, threat, classes, statistics and format version, atomically.

        Raises:
            CheckpointError: the network hides its weights, or holds some that are no tensors of numbers.
            NotStoredError: the file cannot be written.
        """
        weights, (mean, std) = file.weights_of(self.network, path), self._normalisation()
        tensors = {f"{WEIGHTS}{name}": value for name, value in weights.items()}
        tensors |= {f"{PREFIX}{name}": value for name, value in self.statistics.items()}
        header = {
            "num_classes": self.num_classes,
            "class_names": self.class_names,
            "image_shape": self.image_shape,
            "mean": mean,
            "std": std,
            "threat": None
            if self.threat is None
            else {"norm": self.threat.norm, "radius": self.threat.radius},
            "network": self.network_config,
            "about": self.about,
            "output": self.output,
            "weights": file.weights_digest(weights, mean, std, self.output),
        }
        CLASSIFIER.write(Path(path), tensors, header)

    @classmethod
    def load(cls, path: str | Path, network: nn.Module | None = None) -> Self:
        """Loads a classifier from a file written by :meth:`save`, in eval mode on the CPU.

        Args:
            path: a classifier file.
            network: required if the file's network is not in the registry; its weights are overwritten.

        Raises:
            CheckpointError: no such file, another format, a newer version, an invalid header, two classes of one name,
                or weights that do not fit the network or have diverged.
        """
        header, tensors = file.read(path)
        weights = _with_prefix(tensors, WEIGHTS)
        network = file.rebuild_network(header, path, weights) if network is None else as_module(network)
        fit_weights(network, weights, path)
        threat = header.threat
        try:
            clf = cls(
                network,
                header.num_classes,
                header.mean,
                header.std,
                class_names=distinct_names(header.class_names, str(path), CheckpointError),
                image_shape=header.shape,
                threat=None if threat is None else Threat(threat.norm, threat.radius),
                network_config=None if header.network is None else header.network.options(),
                output=header.output,
            )
        except ConfigError as error:
            raise CheckpointError(f"{path}: {error}; copy the file again or train again") from None
        clf.statistics = as_computed(_with_prefix(tensors, PREFIX))
        clf.about = header.about.content()
        return clf.eval()

    def __repr__(self) -> str:
        """One line; ``print(clf.network)`` shows the layers."""
        name = (self.network_config or {}).get("name") or type(self.network).__name__
        texts = [name, self.extra_repr(), f"{sum(p.numel() for p in self.parameters()):,} parameters"]
        if self.class_names != tuple(map(str, range(self.num_classes))):
            names = ", ".join(self.class_names[:5]) + (", ..." if self.num_classes > 5 else "")
            texts.append(f"class_names=({names})")
        origin = [str(self.about[key]) for key in ("recipe", "checkpoint") if key in self.about]
        return f"Classifier({', '.join(texts)}{'; ' + ', '.join(origin) if origin else ''})"

    def extra_repr(self) -> str:
        shape = "any" if self.image_shape is None else "x".join(map(str, self.image_shape))
        return f"num_classes={self.num_classes}, image_shape={shape}, threat={self.threat}"


def _names(class_names: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
    """The class names as text in one Unicode form; the class numbers for ``None``.

    Raises:
        ConfigError: not one different name per class.
    """
    if class_names is None:
        return numbers(num_classes)
    if isinstance(class_names, bytes) or not isinstance(class_names, Iterable):
        raise ConfigError(f"classifier: class_names={class_names!r}; pass a list with one name per class")
    names = distinct_names(class_names, "classifier", ConfigError)
    if len(names) != num_classes:
        raise ConfigError(f"classifier: {len(names)} class names for {num_classes} classes")
    return names


def _shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """Checks an image shape (C, H, W); raises :class:`ConfigError`."""
    if isinstance(image_shape, str) or not isinstance(image_shape, Sequence) or len(image_shape) != 3:
        raise ConfigError(
            f"classifier: image_shape={image_shape!r}; pass (channels, height, width) in pixels"
        )
    channels, height, width = (count("classifier", "image_shape", side) for side in image_shape)
    return channels, height, width


def _constants(name: str, values: Any, image_shape: tuple[int, int, int] | None) -> Tensor:
    """Mean or std as ``[1, C, 1, 1]``, one value per channel or one for all.

    Raises:
        ConfigError: not finite numbers, or not one per channel.
    """
    try:
        constants = torch.as_tensor(values, dtype=torch.float32).detach().clone().view(1, -1, 1, 1)
    # torch raises different types for text, for None and for lists of lists.
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ConfigError(f"classifier: {name}={quoted(values)}; pass one number per channel") from None
    if not constants.numel() or not bool(torch.isfinite(constants).all()) or isinstance(values, bool):
        raise ConfigError(f"classifier: {name}={quoted(values)}; pass one finite number per channel")
    if image_shape is not None and constants.numel() not in (1, image_shape[0]):
        raise ConfigError(
            f"classifier: {constants.numel()} values of {name} for images of {image_shape[0]} channels; "
            "give one per channel"
        )
    return constants


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, by name without the prefix."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
