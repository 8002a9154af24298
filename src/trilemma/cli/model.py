"""``--model MOD:FN`` and ``--network NAME``: a classifier from the user's own network or weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING

from trilemma.cli.common import print_progress
from trilemma.config.recipe import parse_overrides
from trilemma.config.registry import NETWORKS
from trilemma.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch import nn

    from trilemma.classifier.classifier import Classifier
    from trilemma.data.image_set import ImageSet


def own_network(name: str) -> nn.Module:
    """What the function ``MOD:FN`` returns without arguments; ``MOD`` may lie in the current folder.

    Raises:
        ConfigError: no such module or function, one that asks for arguments, or the result is no network.
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
    except Exception as error:
        raise _raised(name, error) from error
    finally:
        sys.path.pop(0)
    make = getattr(module, function, None)
    if not callable(make) or isinstance(make, nn.Module):
        raise ConfigError(
            f"--model {name}: {module_name} has no function {function!r}.{nearest(function, dir(module))}"
        )
    if asked := _asked_for(make):
        raise ConfigError(
            f"--model {name}: asks for arguments ({', '.join(asked)}); "
            "name a function without any, which calls it with them"
        )
    try:
        network = make()
    except Exception as error:
        raise _raised(name, error) from error
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"--model {name}: gave {type(network).__name__}; return a torch.nn.Module or an trilemma.Classifier"
        )
    return network


def _raised(name: str, error: Exception) -> ConfigError:
    """The user's code failed: which error, and on which of its lines."""
    if isinstance(error, SyntaxError):
        message, file, line = error.msg, error.filename, error.lineno
    else:
        last = extract_tb(error.__traceback__)[-1]
        message, file, line = str(error), last.filename, last.lineno
    return ConfigError(f"--model {name}: raised {type(error).__name__}: {message} ({file}, line {line})")


def _asked_for(make: object) -> list[str]:
    """The arguments that ``make`` cannot be called without."""
    from inspect import Parameter, signature

    try:
        parameters = signature(make).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):  # some built-in callables do not tell
        return []
    free = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is Parameter.empty and p.kind not in free]


def named_network(text: str, images: ImageSet) -> nn.Module:
    """One of trilemma's networks for the classes and the shape of ``images``: ``NAME`` or ``NAME,key=value,...``.

    Raises:
        UnknownNameError: no such network.
        ConfigError: an unknown or impossible option.
    """
    from pydantic import ValidationError

    from trilemma.networks.create import create_network

    name, *settings = text.split(",")
    options = NETWORKS.options(name)
    try:
        chosen = options.model_validate({"name": name, **parse_overrides(settings)})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        allowed = ", ".join(field for field in options.model_fields if field != "name")
        raise ConfigError(
            f"--network {text}: {where}: {first['msg'].lower()}; options of {name}: {allowed}"
        ) from None
    return create_network(chosen, images.num_classes, images.image_shape)


def own_classifier(
    model: str | None,
    network: str | None,
    weights: Path | None,
    data: str | None,
    mean: str | None,
    std: str | None,
) -> Classifier:
    """A classifier around the user's network, on the CPU in eval mode.

    Args:
        model: ``MOD:FN``, or ``None``.
        network: one of trilemma's networks with its options, or ``None``; it needs ``weights``.
        weights: a classifier file of trilemma's, a state dict as others save it, or ``None``.
        data: what ``--data`` says; its classes are the network's, but for a file of trilemma's.
        mean, std: normalisation before the network, numbers separated by commas.

    Raises:
        UserError: one line about whichever of them is at fault.
    """
    from trilemma.classifier.classifier import Classifier
    from trilemma.files import CLASSIFIER

    asked = f"--model {model}" if model is not None else f"--network {network}"
    if weights is not None and CLASSIFIER.matches(weights):
        return Classifier.load(weights, _bare(own_network(_only_model(model, asked, weights, mean or std))))
    made = (
        None if model is None else own_network(model)
    )  # before the data: a misspelt name is answered at once
    if data is None:
        raise ConfigError(f"{asked}: say on which images with --data (a data set or a path)")
    from trilemma.classifier.foreign_weights import load_weights
    from trilemma.data.sources import load_images

    images = load_images(data)
    if made is None:
        if weights is None:
            raise ConfigError(f"{asked}: has no weights; give their file too, such as weights.pt {asked}")
        made = named_network(str(network), images)
    inside = None if weights is None else load_weights(_bare(made), weights)
    if inside is not None:
        if isinstance(made, Classifier) or mean is not None or std is not None:
            other = (
                "does the classifier of --model" if isinstance(made, Classifier) else "do --mean and --std"
            )
            raise ConfigError(f"{weights}: holds a normalisation, and so {other}; only one may be given")
        print_progress(f"{weights}: its normalisation is used, mean {inside[0]}, std {inside[1]}")
    constants = inside or (_numbers("mean", mean), _numbers("std", std))
    return as_classifier(made, images.class_names, *constants).eval()


def _only_model(model: str | None, asked: str, weights: Path, normalised: str | None) -> str:
    if model is None or normalised is not None:
        extra = asked if model is None else "--mean and --std"
        raise ConfigError(
            f"{extra}: {weights} is a classifier file of trilemma's, which states it; leave it out"
        )
    return model


def _bare(network: nn.Module) -> nn.Module:
    """The network inside, where the user's function gives a whole classifier."""
    from trilemma.classifier.classifier import Classifier

    return network.network if isinstance(network, Classifier) else network


def as_classifier(
    network: nn.Module,
    class_names: Sequence[str],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """``network`` itself if it is a :class:`trilemma.Classifier`, else one around it.

    Raises:
        ConfigError: a classifier that has its normalisation already, or constants that do not fit together.
    """
    from trilemma.classifier.classifier import Classifier

    if isinstance(network, Classifier):
        if mean is not None or std is not None:
            raise ConfigError(
                "--mean, --std: the function gives an trilemma.Classifier, which has them; leave them out"
            )
        return network
    return Classifier(network, len(class_names), mean, std, class_names=class_names)


def _numbers(option: str, text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--{option} {text}: numbers separated by commas are needed, such as 0.49,0.48,0.45"
        ) from None
