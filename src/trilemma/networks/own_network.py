"""A network from a function of the user, named ``MODULE:FUNCTION``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from traceback import extract_tb
from typing import Any

from torch import nn

from trilemma.errors import ConfigError, nearest


def own_network(function: str | nn.Module | Callable[[], Any]) -> nn.Module:
    """Calls a function without arguments and returns its network.

    Args:
        function: ``MODULE:FUNCTION``, where the module may be in the working directory; a function; or a network, which
            is returned as it is.

    Raises:
        ConfigError: the module or function does not exist, requires arguments, raises, or does not return a network.
    """
    if isinstance(function, nn.Module):
        return function
    factory = _import(function) if isinstance(function, str) else function
    name = function if isinstance(function, str) else getattr(function, "__name__", str(function))
    if required := _required_arguments(factory):
        raise ConfigError(
            f"model {name}: requires arguments ({', '.join(required)}); name a function that needs none"
        )
    try:
        network = factory()
    except Exception as error:
        raise _raised(name, error) from error
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"model {name}: returned {type(network).__name__}; return a torch.nn.Module or a trilemma.Classifier"
        )
    return network


def _import(name: str) -> Callable[[], Any]:
    """The function called ``MODULE:FUNCTION``."""
    module_name, colon, function = name.partition(":")
    if not (module_name and colon and function):
        raise ConfigError(f"model {name}: not of the form MODULE:FUNCTION, such as mynets:wide")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"model {name}: no module named {error.name!r}; check the spelling or PYTHONPATH"
        ) from None
    except Exception as error:
        raise _raised(name, error) from error
    finally:
        sys.path.pop(0)
    factory = getattr(module, function, None)
    if not callable(factory) or isinstance(factory, nn.Module):
        raise ConfigError(
            f"model {name}: {module_name} has no function {function!r}.{nearest(function, dir(module))}"
        )
    called: Callable[[], Any] = factory
    return called


def _raised(name: str, error: Exception) -> ConfigError:
    """Returns the error for an exception in the user's code, with its file and line."""
    if isinstance(error, SyntaxError):
        message, file, line = error.msg, error.filename, error.lineno
    else:
        last = extract_tb(error.__traceback__)[-1]
        message, file, line = str(error), last.filename, last.lineno
    return ConfigError(f"model {name}: raised {type(error).__name__}: {message} ({file}, line {line})")


def _required_arguments(function: Callable[..., Any]) -> list[str]:
    """Returns the names of the arguments without a default."""
    try:
        parameters = signature(function).parameters.values()
    except (TypeError, ValueError):
        # Some built-in callables have no signature.
        return []
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is Parameter.empty and p.kind not in variadic]
