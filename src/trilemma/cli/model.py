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
    """Calls the function ``MOD:FN`` without arguments and returns its network; ``MOD`` may be in the working directory.

    Raises:
        ConfigError: the module or function does not exist, requires arguments, raises, or does not return a network.
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
            f"--model {name}: no module named {error.name!r}; check the spelling or PYTHONPATH"
        ) from None
    except Exception as error:
        raise _raised(name, error) from error
    finally:
        sys.path.pop(0)
    factory = getattr(module, function, None)
    if not callable(factory) or isinstance(factory, nn.Module):
        raise ConfigError(
            f"--model {name}: {module_name} has no function {function!r}.{nearest(function, dir(module))}"
        )
    if required := _required_arguments(factory):
        raise ConfigError(
            f"--model {name}: requires arguments ({', '.join(required)}); name a function that needs none"
        )
    try:
        network = factory()
    except Exception as error:
        raise _raised(name, error) from error
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"--model {name}: returned {type(network).__name__}; return a torch.nn.Module or a trilemma.Classifier"
        )
    return network


def _raised(name: str, error: Exception) -> ConfigError:
    """Returns the error for an exception in the user's code, with its file and line."""
    if isinstance(error, SyntaxError):
        message, file, line = error.msg, error.filename, error.lineno
    else:
        last = extract_tb(error.__traceback__)[-1]
        message, file, line = str(error), last.filename, last.lineno
    return ConfigError(f"--model {name}: raised {type(error).__name__}: {message} ({file}, line {line})")


def _required_arguments(function: object) -> list[str]:
    """Returns the names of the arguments without a default."""
    from inspect import Parameter, signature

    try:
        parameters = signature(function).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        # Some built-in callables have no signature.
        return []
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is Parameter.empty and p.kind not in variadic]


def named_network(text: str, images: ImageSet) -> nn.Module:
    """Returns a registered network, with random weights, for the classes and image shape of ``images``.

    Args:
        text: ``NAME`` or ``NAME,key=value,...``.

    Raises:
        UnknownNameError: the network is not registered.
        ConfigError: an option is unknown or has an invalid value.
    """
    from pydantic import ValidationError

    from trilemma.networks.create import create_network

    name, *settings = text.split(",")
    options = NETWORKS.options(name)
    try:
        chosen = options.model_validate({"name": name, **parse_overrides(settings)})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        allowed = ", ".join(field for field in options.model_fields if field != "name")
        raise ConfigError(
            f"--network {text}: {key}: {first['msg'].lower()}; options of {name}: {allowed}"
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
    """Returns a classifier around the user's network, on the CPU in eval mode.

    Args:
        model: ``MOD:FN``, or ``None``.
        network: a registered network with its options, or ``None``; requires ``weights``.
        weights: a trilemma classifier file, a file with a PyTorch state dict, or ``None``.
        data: value of ``--data``; sets the classes, unless ``weights`` is a trilemma classifier file.
        mean, std: normalisation before the network, numbers separated by commas.

    Raises:
        UserError: an argument is invalid, or two of them contradict each other.
    """
    from trilemma.classifier.classifier import Classifier
    from trilemma.files import CLASSIFIER

    network_option = f"--model {model}" if model is not None else f"--network {network}"
    if weights is not None and CLASSIFIER.matches(weights):
        return Classifier.load(
            weights, _inner_network(own_network(_require_model(model, network_option, weights, mean or std)))
        )
    # Before the data are loaded, so that a misspelt name is reported at once.
    module = None if model is None else own_network(model)
    if data is None:
        raise ConfigError(
            f"{network_option}: needs images to evaluate on; add --data with a data set name or a path"
        )
    from trilemma.classifier.foreign_weights import load_weights
    from trilemma.data.sources import load_images

    images = load_images(data)
    if module is None:
        if weights is None:
            raise ConfigError(
                f"{network_option}: has no weights; add a weights file, such as weights.pt {network_option}"
            )
        module = named_network(str(network), images)
    stored_normalisation = None if weights is None else load_weights(_inner_network(module), weights)
    if stored_normalisation is not None:
        if isinstance(module, Classifier) or mean is not None or std is not None:
            other = "the classifier of --model" if isinstance(module, Classifier) else "--mean and --std"
            raise ConfigError(
                f"{weights}: contains a normalisation, which conflicts with {other}; use only one of them"
            )
        stored_mean, stored_std = stored_normalisation
        print_progress(f"{weights}: using its normalisation, mean {stored_mean}, std {stored_std}")
    normalisation = stored_normalisation or (_parse_numbers("mean", mean), _parse_numbers("std", std))
    return as_classifier(module, images.class_names, *normalisation).eval()


def _require_model(model: str | None, network_option: str, weights: Path, normalisation: str | None) -> str:
    """Returns ``model``.

    Raises:
        ConfigError: ``--network``, ``--mean`` or ``--std`` with a trilemma classifier file, which stores them.
    """
    if model is None or normalisation is not None:
        redundant = network_option if model is None else "--mean and --std"
        raise ConfigError(f"{redundant}: already stored in the classifier file {weights}; remove the option")
    return model


def _inner_network(network: nn.Module) -> nn.Module:
    """Returns the network of a classifier; a plain network is returned as it is."""
    from trilemma.classifier.classifier import Classifier

    return network.network if isinstance(network, Classifier) else network


def as_classifier(
    network: nn.Module,
    class_names: Sequence[str],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """Returns ``network`` itself if it is a :class:`trilemma.Classifier`, else a classifier around it.

    Raises:
        ConfigError: constants for a classifier, which already has a normalisation, or constants that do not match.
    """
    from trilemma.classifier.classifier import Classifier

    if isinstance(network, Classifier):
        if mean is not None or std is not None:
            raise ConfigError(
                "--mean, --std: the function returns a trilemma.Classifier, which contains them; remove both options"
            )
        return network
    return Classifier(network, len(class_names), mean, std, class_names=class_names)


def _parse_numbers(option: str, text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--{option} {text}: expects numbers separated by commas, such as 0.49,0.48,0.45"
        ) from None
