"""The description of a classifier that every command, :func:`trilemma.load` and training read: which one, and how.

Importing this module does not import torch, so that mistakes in a description are reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trilemma.config.registry import NETWORKS
from trilemma.errors import CheckpointError, ConfigError, nearest
from trilemma.runs.run_directory import RunDirectory, warn_once
from trilemma.text_files import present, read_text
from trilemma.units import MOST_CLASSES, MOST_PIXELS, count, number

if TYPE_CHECKING:
    import torch
    from torch import nn

    from trilemma.classifier.classifier import Classifier
    from trilemma.data.image_set import ImageSet

# Prefixes of sources that name a published network instead of a path.
PUBLISHERS = ("timm", "robustbench", "hub")
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class ClassifierSource:
    """Where a classifier comes from, and what its file does not say about it.

    Attributes:
        source: run folder, classifier file, file exported by ``trilemma export``, file of weights, ``timm:NAME``,
            ``robustbench:NAME``, ``hub:OWNER/NAME[@REVISION]``, or ``MODULE:FUNCTION`` as in ``model``.
        model: ``MODULE:FUNCTION``, a function without arguments, or a network; the network takes images in [0, 1] and
            returns logits. With ``source``, the weights are read from there.
        network: ``NAME[,key=value,...]``, a registered network and its options; requires weights in ``source``.
        mean, std: normalisation before the network, one number or one per channel.
        size: images are resized to ``size`` x ``size`` pixels for the network.
        classes: number of outputs, their names in order, or the path of a text file with one name per line. By
            default, the metadata of the file, the data or the shape of the weights determine them.
        output: key or index of the logits, for a network that returns a dictionary or a tuple.
        checkpoint: the checkpoint of a run; the last one if there is no best.
    """

    source: str | Path | None = None
    model: str | nn.Module | Callable[[], nn.Module] | None = None
    network: str | None = None
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    size: int | None = None
    classes: int | str | Path | Sequence[str] | None = None
    output: str | int | None = None
    checkpoint: Literal["best", "last"] = "best"

    @property
    def empty(self) -> bool:
        """Whether nothing names a classifier."""
        return self.source is None and self.model is None and self.network is None

    @property
    def publisher(self) -> str | None:
        """``timm``, ``robustbench`` or ``hub`` if ``source`` names a published network."""
        prefix, colon, _ = str(self.source).partition(":")
        return prefix if colon and prefix in PUBLISHERS else None

    @property
    def function(self) -> str | nn.Module | Callable[[], nn.Module] | None:
        """``model``, or ``source`` if it has the form ``MODULE:FUNCTION`` and is no path."""
        if self.model is not None or self.source is None or self.publisher is not None:
            return self.model
        text = str(self.source)
        return text if _FUNCTION.fullmatch(text) and not Path(text).exists() else None

    @property
    def path(self) -> Path | None:
        """``source`` as a path; ``None`` if it is something else."""
        if self.source is None or self.publisher is not None:
            return None
        return None if self.model is None and self.function is not None else Path(self.source)

    @property
    def run(self) -> RunDirectory | None:
        """The run whose classifier this is; ``None`` for other sources, and for a run that only provides weights."""
        if self.model is not None or self.network is not None or self.path is None or not self.path.is_dir():
            return None
        run = RunDirectory(self.path)
        if run.exists() or not run.classifiers():
            return RunDirectory.open(self.path)
        # Copied checkpoints without the rest of their run are files; with it, a file was lost.
        if present(run.status_file) or present(run.metrics_file):
            warn_once(f"{run.config_file}: is missing, so this run is read as a classifier file without data")
        return None

    def __str__(self) -> str:
        """The source as a short text, for messages."""
        if self.source is not None:
            return str(self.source)
        return self.model if isinstance(self.model, str) else type(self.model).__name__

    def check(self) -> None:
        """Checks what can be checked without reading a file. Does not import torch.

        Raises:
            CheckpointError: no such file or folder.
            RunError: a folder that is not a run.
            UnknownNameError: no such network.
            ConfigError: nothing names a classifier, or two arguments contradict each other.
        """
        if self.empty:
            raise ConfigError(
                "no classifier given; add a run folder, a classifier file, or --model MODULE:FUNCTION"
            )
        if self.model is not None and self.network is not None:
            raise ConfigError("--model and --network: both set the network; use one of them")
        if (self.mean is None) != (self.std is None):
            raise ConfigError("--mean, --std: give both mean and std, or neither")
        if self.size is not None:
            count("classifier", "size", self.size, at_most=MOST_PIXELS)
        if self.mean is not None:
            for name, values in (("mean", self.mean), ("std", self.std)):
                for value in values if isinstance(values, Sequence) else (values,):
                    number("classifier", name, value)
        if self.network is not None:
            self._check_network(self.network)
        if self.publisher is not None and self.model is not None:
            raise ConfigError(f"--model: {self.source} is a network of its own; remove --model")
        if self.path is not None:
            self._check_path(self.path)
        if self.run is not None:
            for name in ("mean", "std", "size", "classes", "output"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"--{name}: {self.source} is a run, which stores it; remove --{name}")

    def _check_network(self, network: str) -> None:
        NETWORKS.row(network.partition(",")[0])
        if self.source is None:
            raise ConfigError(
                f"--network {network}: has no weights; add a weights file, such as weights.pt --network {network}"
            )
        if self.publisher is not None or self.function is not None:
            raise ConfigError(f"--network {network}: {self.source} is a network of its own; remove --network")
        if self.path is not None and self.path.is_dir():
            raise ConfigError(
                f"--network {network}: {self.source} is a run, which stores its network; remove --network"
            )

    def _check_path(self, path: Path) -> None:
        if path.is_dir():
            self.classifier_file()
        elif path.exists() and not path.is_file():
            raise CheckpointError(
                f"{self.source}: is not a regular file; give a run folder or a classifier file"
            )
        elif not path.is_file():
            siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            raise CheckpointError(
                f"{self.source}: no such run folder or classifier file.{nearest(path.name, siblings)} "
                "`trilemma train RECIPE` creates a run"
            )

    def classifier_file(self) -> Path | None:
        """The file of the classifier or the weights; of a run, that of the checkpoint.

        ``None`` if ``source`` is not a path.

        Raises:
            CheckpointError: a folder without a classifier, or without this checkpoint.
        """
        path = self.path
        if path is None or not path.is_dir():
            return path
        run = RunDirectory(path)
        files = run.classifiers()
        if self.checkpoint == "last" and files and "last" not in files:
            raise CheckpointError(f"{path}: has no last classifier, only best; leave --checkpoint out")
        if files:
            return files.get(self.checkpoint) or files["last"]
        if run.exists():
            raise CheckpointError(
                f"{path}: this run has no finished classifier yet; resume it with `trilemma train --resume`"
            )
        raise CheckpointError(
            f"{path}: not a run folder (no config.yaml); give one that `trilemma train` wrote, or a classifier file"
        )

    def class_names(self) -> tuple[int, tuple[str, ...] | None] | None:
        """Number and names of ``classes``; the names are ``None`` if only the number is given.

        Raises:
            ConfigError: neither a number, nor at least two names, nor a readable file.
        """
        classes = self.classes
        if classes is None:
            return None
        if isinstance(classes, int | Real):
            return count("classifier", "classes", classes, 2, MOST_CLASSES), None
        text = str(classes) if isinstance(classes, str | Path) else None
        if text is None:
            assert not isinstance(classes, str | Path)
            names = [str(name) for name in classes]
        elif re.fullmatch(r"-?[0-9]+", text.strip()):
            # Python converts no integer of more than 4300 digits.
            known = int(text) if len(text) < 10 else MOST_CLASSES + 1
            if not 2 <= known <= MOST_CLASSES:
                raise ConfigError(f"--classes {text[:20]}: a classifier has 2 to {MOST_CLASSES:,} classes")
            return known, None
        elif "," in text:
            names = [name.strip() for name in text.split(",")]
        else:
            names = _lines(Path(text))
        if len(names) < 2 or not all(names):
            raise ConfigError(f"--classes {text or names}: needs at least 2 names, none of them empty")
        return len(names), tuple(names)

    def open(
        self, device: torch.device | str = "cpu", data: str | Path | ImageSet | None = None
    ) -> Classifier:
        """Loads the classifier.

        What is decided on the way (a normalisation or an average found in the file, converted weights) is printed on
        standard error.

        Args:
            device: the device to move it to.
            data: name of a data set, a path or an image set. Read only if nothing else states classes and image shape.

        Returns:
            A classifier in eval mode. ``about["source"]`` describes where it comes from, except for a run folder.

        Raises:
            UserError: see :meth:`check`; or the file, the network, its weights and the arguments do not fit together.
        """
        from trilemma.classifier.foreign_weights import check_weights
        from trilemma.classifier.opening import from_function, from_name, from_weights, with_options

        self.check()
        given: dict[str, Any] = {
            "classes": self.class_names(),
            "normalisation": None if self.mean is None else (_numbers(self.mean), _numbers(self.std)),
            "size": self.size,
            "output": self.output,
        }
        file = self.classifier_file()
        if self.function is not None:
            clf = from_function(self.function, file, data, **given)
            check_weights(clf.network, self)
        elif self.network is not None and file is not None:
            clf = from_name(self.network, file, data, **given)
        else:
            clf = with_options(from_weights(str(self.source), file), str(self.source), **given)
        if self.path is None or not self.path.is_dir():
            clf.about["source"] = self._describe(clf, file)
        return clf.to(device).eval()

    def _describe(self, clf: Classifier, file: Path | None) -> dict[str, Any]:
        """What was opened, for result rows: texts of the arguments, SHA-256 of the file, and the resulting values."""
        from trilemma.files import file_sha256

        described = {
            "source": None if self.source is None else str(self.source),
            "model": None if self.function is None else _name(self.function),
            "network": clf.network_config if self.network is None else self.network,
            # Of a published network, where its file is and which version it has.
            **{key: clf.about.pop(key, None) for key in ("file", "revision", "sha256") if file is None},
            **({} if file is None else {"sha256": file_sha256(file)}),
            "mean": None if clf.mean is None else clf.mean.flatten().tolist(),
            "std": None if clf.std is None else clf.std.flatten().tolist(),
            "size": self.size,
            "classes": clf.num_classes,
            "output": self.output,
        }
        return {key: value for key, value in described.items() if value is not None}


def _name(function: str | nn.Module | Callable[[], nn.Module]) -> str:
    if isinstance(function, str):
        return function
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def _numbers(values: float | Sequence[float] | None) -> list[float]:
    if values is None or isinstance(values, float | Real):
        return [] if values is None else [float(values)]
    return [float(value) for value in values]


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, without surrounding spaces."""
    try:
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except ValueError as error:
        raise ConfigError(
            f"--classes {path}: neither a number, nor NAME,NAME,..., nor a text file with one name per line ({error})"
        ) from None
