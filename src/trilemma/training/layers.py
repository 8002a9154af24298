"""Layers of a network for fine-tuning: frozen ones, and learning rates that differ from layer to layer.

A *layer* is a child of the network, or an element of a child that is a sequence of modules (``blocks.0``), in the order
of registration, which is the order of the forward pass in usual networks.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from trilemma.classifier.contexts import freeze_batch_norms
from trilemma.config.sections import TrainingConfig
from trilemma.errors import ConfigError, nearest


def layers(network: nn.Module) -> list[str]:
    """Names of the layers that have parameters, from the input to the output."""
    names: list[str] = []

    def add(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            if isinstance(child, nn.Sequential | nn.ModuleList):
                add(child, f"{prefix}{name}.")
            elif any(True for _ in child.parameters()):
                names.append(prefix + name)

    add(network, "")
    return names


def freeze(network: nn.Module, what: int | tuple[str, ...]) -> None:
    """Freezes parameters, and keeps BatchNorm layers all of whose parameters are frozen in eval mode.

    Args:
        network: changed in place.
        what: number of layers from the input on, or patterns as of :func:`matching`.

    Raises:
        ConfigError: more layers than there are, a pattern that matches nothing, or nothing is left to train.
    """
    if not what:
        return
    names = layers(network)
    if isinstance(what, int) and what >= len(names):
        raise ConfigError(
            f"training.freeze: {what} layers given, but the network has {len(names)} ({_listed(names)}) and at least "
            "one has to be trained"
        )
    frozen = matching(network, names[:what] if isinstance(what, int) else what, "training.freeze")
    for name, parameter in network.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError(
            "training.freeze: freezes every parameter, so nothing is left to train; name fewer layers"
        )
    freeze_batch_norms(network)


def matching(network: nn.Module, patterns: Iterable[str], key: str) -> set[str]:
    """Names of the parameters that a pattern matches: a name, a prefix that ends at a dot, or a wildcard pattern.

    ``blocks.0`` matches ``blocks.0.conv1.weight``, and ``blocks.*.norm1`` the first norm of every block.

    Raises:
        ConfigError: a pattern matches no parameter.
    """
    found: set[str] = set()
    names = [name for name, _ in network.named_parameters()]
    for pattern in patterns:
        matched = {name for name in names if _matches(name, pattern)}
        if not matched:
            known = layers(network)
            raise ConfigError(
                f"{key}: {pattern!r} matches no parameter.{nearest(pattern, known)} Layers: {_listed(known)}"
            )
        found |= matched
    return found


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _listed(names: list[str]) -> str:
    shown = 12
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def parameter_groups(
    network: nn.Module, training: TrainingConfig, others: Iterable[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    """The optimiser's groups: trained parameters by the factor of their learning rate.

    The factor is ``lr_decay`` to the power of the number of layers behind the parameter's layer, times the factors of
    the patterns of ``layer_lr`` that match it.

    Args:
        network: the network.
        training: its keys ``layer_lr`` and ``lr_decay``.
        others: further parameters, with factor 1.

    Returns:
        One dictionary per factor, with ``params`` and ``factor``; a single one without ``factor`` if all factors are 1.

    Raises:
        ConfigError: a pattern of ``layer_lr`` matches no parameter.
    """
    names = layers(network)
    rates = {
        pattern: (matching(network, [pattern], "training.layer_lr"), factor)
        for pattern, factor in training.layer_lr.items()
    }
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        behind = next(
            (len(names) - 1 - index for index, layer in enumerate(names) if _matches(name, layer)), 0
        )
        factor = training.lr_decay**behind
        for matched, rate in rates.values():
            factor *= rate if name in matched else 1.0
        groups.setdefault(factor, []).append(parameter)
    if groups.keys() == {1.0}:
        return [{"params": [*groups[1.0], *others]}]
    groups.setdefault(1.0, []).extend(others)
    return [{"params": parameters, "factor": factor} for factor, parameters in groups.items() if parameters]
