"""``trilemma.load``: loads a classifier from a run folder, a file, or the name of a published network."""

from __future__ import annotations

from pathlib import Path

from trilemma.classifier.classifier import Classifier
from trilemma.errors import CheckpointError


def load(source: str | Path) -> Classifier:
    """Loads the classifier of a run folder, of a file or of a published network; of a run, the best, else the last one.

    Args:
        source: a run folder, a classifier file, ``timm:NAME`` or ``robustbench:NAME``.

    Returns:
        A classifier in eval mode on the CPU.

    Raises:
        CheckpointError: no such run or file, no finished classifier, or not a classifier file.
        MissingExtraError: the package of the published network is not installed.
        UnknownNameError: no published network of this name.
    """
    publisher, _, name = str(source).partition(":")
    if publisher in PUBLISHERS:
        return PUBLISHERS[publisher](name)
    path = Path(source)
    if not path.is_dir():
        return Classifier.load(path)
    for checkpoint in ("best", "last"):
        file = path / "checkpoints" / checkpoint / "classifier.safetensors"
        if file.is_file():
            return Classifier.load(file)
    if (path / "config.yaml").is_file():
        raise CheckpointError(
            f"{path}: this run has no finished classifier yet; resume it with `trilemma train --resume`"
        )
    raise CheckpointError(
        f"{path}: not a run folder; give one that `trilemma train` wrote, or a classifier file"
    )


def _from_timm(name: str) -> Classifier:
    from trilemma.networks.timm_network import timm_classifier_parts

    network, num_classes, mean, std, shape = timm_classifier_parts(name)
    # A saved classifier file contains the weights, so that loading it must not download timm's weights again.
    config = {"name": "timm", "model": name, "pretrained": False}
    return Classifier(network, num_classes, mean, std, image_shape=shape, network_config=config).eval()


def _from_robustbench(name: str) -> Classifier:
    from trilemma.networks.robustbench_network import robustbench_network

    network, num_classes, threat = robustbench_network(name)
    return Classifier(network, num_classes, threat=threat).eval()


PUBLISHERS = {"timm": _from_timm, "robustbench": _from_robustbench}
