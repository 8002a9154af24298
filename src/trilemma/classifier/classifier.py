"""The classifier: a network with its normalisation, input checks, class names and threat model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from trilemma.classifier import file
from trilemma.classifier.foreign_weights import fit_weights
from trilemma.errors import ConfigError, ImageError
from trilemma.files import CLASSIFIER
from trilemma.threat import Threat

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

    Args:
        network: any module from ``[N, C, H, W]`` to logits ``[N, K]`` (not probabilities).
        num_classes: K.
        mean, std: per-channel normalisation, applied to the images first; ``None`` for none.
        class_names: K names; ``None`` for the class numbers.
        image_shape: the only accepted ``(C, H, W)``; ``None`` for any shape that the network accepts.
        threat: the threat model it was trained for; the default threat of ``trilemma.evaluate``.
        network_config: registry name and options of the network, from which :meth:`load` rebuilds it.

    Attributes:
        statistics: named tensors about the training data (class means, PCA, mean energies).
        about: free-form metadata stored with the file (recipe, data name).

    Raises:
        ConfigError: mean without std, a std of 0, or the wrong number of class names.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        num_classes: int = 10,
        mean: Sequence[float] | Tensor | None = None,
        std: Sequence[float] | Tensor | None = None,
        *,
        class_names: Sequence[str] | None = None,
        image_shape: tuple[int, int, int] | None = None,
        threat: Threat | None = None,
        network_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise ConfigError("classifier: give both mean and std, or neither")
        names = [str(k) for k in range(num_classes)] if class_names is None else list(class_names)
        if len(names) != num_classes:
            raise ConfigError(f"classifier: {len(names)} class names for {num_classes} classes")
        self.network = network
        self.num_classes = num_classes
        self.class_names = tuple(names)
        self.image_shape = image_shape
        self.threat = threat
        self.network_config = network_config
        self.statistics: dict[str, Tensor] = {}
        self.about: dict[str, Any] = {}
        for name, values in (("mean", mean), ("std", std)):
            tensor = (
                None if values is None else torch.as_tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            )
            self.register_buffer(name, tensor, persistent=False)
        if self.std is not None and not bool((self.std > 0).all()):
            raise ConfigError("classifier: every std must be above 0")

    @property
    def device(self) -> torch.device:
        """The device of the parameters; the CPU for a network without parameters."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters; float32 for a network without parameters."""
        return next((p.dtype for p in self.parameters()), torch.float32)

    def _check_form(self, images: Tensor) -> None:
        """Checks type and shape of ``images``; raises :class:`ImageError`."""
        # Half precision is refused: its spacing near 1 is 1/2048, too coarse for perturbations of 8/255.
        if not isinstance(images, Tensor) or images.dtype not in (torch.float32, torch.float64):
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise ImageError(
                f"images: {kind} given; pass a float32 tensor in [0, 1] (integers: .float() / 255)"
            )
        if images.dim() != 4:
            raise ImageError(
                f"images: shape {list(images.shape)} given; pass [N, C, H, W] (one image: image[None])"
            )
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
        if self.mean is not None and self.std is not None:
            images = (images - self.mean) / self.std
        logits: Tensor = self.network(images.to(self.dtype))
        return logits.float()

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[N, K]`` of images ``[N, C, H, W]`` in [0, 1], checked as in :meth:`check`."""
        if not torch.compiler.is_compiling():
            self.check(images)
        return self.logits(images)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file with weights, threat, classes, statistics and format version, atomically.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"statistics.{name}": value for name, value in self.statistics.items()}
        header = {
            "num_classes": self.num_classes,
            "class_names": self.class_names,
            "image_shape": self.image_shape,
            "mean": None if self.mean is None else self.mean.flatten().tolist(),
            "std": None if self.std is None else self.std.flatten().tolist(),
            "threat": None
            if self.threat is None
            else {"norm": self.threat.norm, "radius": self.threat.radius},
            "network": self.network_config,
            "about": self.about,
        }
        CLASSIFIER.write(Path(path), tensors, header)

    @classmethod
    def load(cls, path: str | Path, network: nn.Module | None = None) -> Self:
        """Loads a classifier from a file written by :meth:`save`, in eval mode on the CPU.

        Args:
            path: a classifier file.
            network: required if the file's network is not in the registry; its weights are overwritten.

        Raises:
            CheckpointError: no such file, another format, a newer version, or weights that do not fit the network.
        """
        header, tensors = file.read(path)
        if network is None:
            network = file.rebuild_network(header, path)
        fit_weights(network, _with_prefix(tensors, "network."), path)
        clf = cls(
            network,
            header["num_classes"],
            header["mean"],
            header["std"],
            class_names=header["class_names"],
            image_shape=None if header["image_shape"] is None else tuple(header["image_shape"]),
            threat=None if header["threat"] is None else Threat(**header["threat"]),
            network_config=header["network"],
        )
        clf.statistics = _with_prefix(tensors, "statistics.")
        clf.about = header["about"]
        return clf.eval()

    def extra_repr(self) -> str:
        shape = "any" if self.image_shape is None else "x".join(map(str, self.image_shape))
        return f"num_classes={self.num_classes}, image_shape={shape}, threat={self.threat}"


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, by name without the prefix."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
