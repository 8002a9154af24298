"""RUN_OR_FILE: the classifier it names, its run folder if it is one, and the images that go with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trilemma.errors import ConfigError, DataError, RunError, nearest
from trilemma.training.run_directory import RunDirectory

if TYPE_CHECKING:
    import torch

    from trilemma.classifier import Classifier
    from trilemma.data.image_set import ImageSet


PUBLISHED = ("timm:", "robustbench:")


def find_source(source: str) -> RunDirectory | None:
    """The run folder that ``source`` is, or ``None`` for a file or a published network's name. Needs no torch.

    Raises:
        RunError: nothing is there, or the folder is not a run.
    """
    path = Path(source)
    if source.startswith(PUBLISHED) or path.is_file():
        return None
    if path.is_dir():
        return RunDirectory.open(path)
    around = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = nearest(path.name, around)
    raise RunError(
        f"{source}: no such run folder or classifier file.{hint} `trilemma train RECIPE` makes a run"
    )


def load_classifier(source: str, device: str | None) -> Classifier:
    """The classifier of ``source`` on the device asked for, in eval mode."""
    from trilemma.loading import load

    chosen = choose_device(device)
    return load(source).to(chosen).eval()


def choose_device(name: str | None) -> torch.device:
    """The device called ``name``; by default the accelerator if there is one.

    Raises:
        ConfigError: no such device here.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name}: unknown; use cpu, cuda or cuda:N") from None
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        there = f"cuda:0 to cuda:{count - 1}" if count else "only the CPU"
        raise ConfigError(f"--device {name}: this machine has {there}; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: not supported; use cpu, cuda or cuda:N")
    return device


def images_for(clf: Classifier, run: RunDirectory | None, name: str | None) -> ImageSet:
    """The test images a classifier is judged on: ``name`` (a data set or a path), else the run's own data.

    A classifier file knows the name of its data only; a run knows their place and size too.

    Args:
        clf: its class names give the label order, its image size the size of other data.
        run: the run it comes from, or ``None``.
        name: what ``--data`` says.

    Raises:
        DataError: no data are known, or they are at fault.
    """
    from trilemma.data.catalogue import NAMES
    from trilemma.data.image_set import source_name
    from trilemma.evaluation.runner import open_data

    own = None if run is None else run.config().data
    if own is not None and name in (None, own.name):
        return open_data(clf, own.name, own.root, own.size)
    if name is None:
        name = source_name(str(clf.about.get("data", "no data it names")))
        if name not in NAMES:
            raise DataError(
                f"this classifier was trained on {name}; say with --data where they are (a name or a path)"
            )
    found = open_data(clf, name)
    if clf.image_shape is None or found.image_shape == clf.image_shape:
        return found
    return open_data(clf, name, size=clf.image_shape[1])
