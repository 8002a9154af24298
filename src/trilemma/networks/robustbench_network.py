"""Published robust networks of RobustBench; needs the extra ``robustbench``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from trilemma.data.cache import cache_folder
from trilemma.errors import MissingExtraError, UnknownNameError, nearest
from trilemma.threat import Threat

# The benchmark's data sets with their number of classes, and the radius of each pair of data set and norm.
CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
RADII = {
    ("cifar10", "Linf"): "8/255",
    ("cifar10", "L2"): "0.5",
    ("cifar100", "Linf"): "8/255",
    ("imagenet", "Linf"): "4/255",
}


def robustbench_network(name: str) -> tuple[nn.Module, int, Threat]:
    """Loads a network of RobustBench; returns the network, its number of classes and its threat.

    The network includes its normalisation and takes images in [0, 1]. The weights are downloaded into trilemma's cache
    folder on first use.

    Args:
        name: ``NAME`` in RobustBench's model zoo (for cifar10 and Linf), or ``DATA/NORM/NAME``.

    Raises:
        MissingExtraError: robustbench cannot be imported.
        UnknownNameError: no such pair of data and norm, or no such network for it.
    """
    *setting, model = name.split("/")
    data, norm = setting if len(setting) == 2 else ("cifar10", "Linf")
    if len(setting) not in (0, 2) or (data, norm) not in RADII:
        known = ", ".join("/".join(pair) for pair in RADII)
        raise UnknownNameError(
            f"robustbench:{name}: write robustbench:DATA/NORM/NAME, DATA/NORM one of {known}"
        )
    try:
        utils = import_module("robustbench.utils")
        zoo: Any = import_module("robustbench.model_zoo").model_dicts
    except ImportError as error:
        raise MissingExtraError(
            f"robustbench:{name} needs robustbench, which cannot be imported ({error}); pip install -e "
            f"'.[robustbench]' in the clone"
        ) from error
    names = _names(zoo, data, norm)
    if model not in names:
        raise UnknownNameError(
            f"robustbench:{name}: no network {model!r} for {data}, {norm}.{nearest(model, names)}"
        )
    network: nn.Module = utils.load_model(
        model_name=model, dataset=data, threat_model=norm, model_dir=str(cache_folder() / "robustbench")
    )
    return network, CLASSES[data], Threat(norm.lower(), RADII[data, norm])


def _names(zoo: Any, data: str, norm: str) -> list[str]:
    """The names of the networks for ``data`` and ``norm``, sorted."""
    # The keys of the zoo are enumeration members whose values are the names of data sets and norms.
    by_norm = {key.value: value for key, value in zoo.items()}.get(data, {})
    return sorted({key.value: value for key, value in by_norm.items()}.get(norm, ()))
