"""Imports torchmetrics and torch-fidelity on demand, also where torchvision is missing or cannot be imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

FIDELITY = "torch_fidelity"


def torchmetrics(module: str) -> Any:
    """Imports and returns ``torchmetrics.<module>``.

    torchmetrics imports the Inception network of torch-fidelity if that is installed, and therefore needs the same
    workaround as :func:`torch_fidelity`.
    """
    with _fidelity_without_its_init():
        return import_module(f"torchmetrics.{module}")


def torch_fidelity(module: str) -> Any:
    """Imports and returns ``torch_fidelity.<module>``.

    The package's ``__init__`` imports torchvision and fails if that is missing or was built for another torch. The
    Inception network does not need torchvision; in that case only the given module is imported, without ``__init__``.

    Raises:
        ModuleNotFoundError: torch-fidelity is not installed.
    """
    with _fidelity_without_its_init():
        return import_module(f"{FIDELITY}.{module}")


@contextmanager
def _fidelity_without_its_init() -> Iterator[None]:
    """Inside this context modules of torch-fidelity can be imported even if the package's ``__init__`` fails."""
    spec = None if FIDELITY in sys.modules else find_spec(FIDELITY)
    if spec is None or spec.submodule_search_locations is None or _imports(FIDELITY):
        yield
        return
    placeholder = ModuleType(FIDELITY)
    placeholder.__path__ = list(spec.submodule_search_locations)
    sys.modules[FIDELITY] = placeholder
    try:
        yield
    finally:
        del sys.modules[FIDELITY]


def _imports(module: str) -> bool:
    """Whether the module can be imported."""
    try:
        import_module(module)
    # Any exception: an incompatible torchvision raises RuntimeError or the errors of its libraries.
    except Exception:
        return False
    return True
