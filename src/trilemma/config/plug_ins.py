"""Calls to registered functions: a function of another signature is reported by name, in one line."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from trilemma.errors import ConfigError


def call_registered(what: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Calls ``function`` after a check that it takes these arguments; its own errors pass through.

    Args:
        what: the registry row, for messages: ``"attack 'mine'"``.
        function: the object of the row.
        arguments: positional arguments.
        options: keyword arguments.

    Raises:
        ConfigError: the function does not take these arguments.
    """
    if not callable(function):
        raise ConfigError(f"{what}: its registry row names a {type(function).__name__}, not a function")
    try:
        signature(function).bind(*arguments, **options)
    except TypeError as error:
        named = f" and {', '.join(options)}" if options else ""
        raise ConfigError(
            f"{what}: {error}; its function is called with {len(arguments)} positional arguments{named}"
        ) from None
    return function(*arguments, **options)
