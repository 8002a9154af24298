"""``--model MOD:FN``: a network from the user's own code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ebat.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch import nn

    from ebat.classifier import Classifier


def own_network(name: str) -> nn.Module:
    """What the function ``MOD:FN`` returns without arguments; ``MOD`` may lie in the current folder.

    Raises:
        ConfigError: no such module or function, or the result is no network.
    """
    from torch import nn

    module_name, colon, function = name.partition(":")
    if not (module_name and colon and function):
        raise ConfigError(f"--model {name}: not of the form MODULE:FUNCTION, such as mynets:wide")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--model {name}: no module named {error.name!r} here; check the spelling or PYTHONPATH"
        ) from None
    finally:
        sys.path.pop(0)
    if not callable(make := getattr(module, function, None)):
        raise ConfigError(
            f"--model {name}: {module_name} has no function {function!r}.{nearest(function, dir(module))}"
        )
    network = make()
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"--model {name}: gave {type(network).__name__}; return a torch.nn.Module or an ebat.Classifier"
        )
    return network


def as_classifier(network: nn.Module, class_names: Sequence[str]) -> Classifier:
    """``network`` itself if it is a :class:`ebat.Classifier`, else one around it."""
    from ebat.classifier import Classifier

    if isinstance(network, Classifier):
        return network
    return Classifier(network, len(class_names), class_names=class_names)
