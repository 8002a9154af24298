"""torchmetrics and torch-fidelity, imported late, and also where torchvision is missing."""

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
    """``torchmetrics.<module>``.

    torchmetrics imports the Inception network of torch-fidelity wherever that is installed, so that it needs the same
    help as :func:`torch_fidelity`.
    """
    with _fidelity_without_its_init():
        return import_module(f"torchmetrics.{module}")


def torch_fidelity(module: str) -> Any:
    """``torch_fidelity.<module>``.

    The package's own ``__init__`` imports torchvision, and fails where that is missing or was built for another torch.
    The Inception network needs nothing of it, so that then only the module asked for is imported.

    Raises:
        ModuleNotFoundError: torch-fidelity is not installed.
    """
    with _fidelity_without_its_init():
        return import_module(f"{FIDELITY}.{module}")


@contextmanager
def _fidelity_without_its_init() -> Iterator[None]:
    """Inside, the modules of torch-fidelity can be imported even where the package as a whole cannot."""
    spec = None if FIDELITY in sys.modules else find_spec(FIDELITY)
    if spec is None or spec.submodule_search_locations is None or _imports(FIDELITY):
        yield
        return
    shell = ModuleType(FIDELITY)
    shell.__path__ = list(spec.submodule_search_locations)
    sys.modules[FIDELITY] = shell
    try:
        yield
    finally:
        del sys.modules[FIDELITY]


def _imports(module: str) -> bool:
    try:
        import_module(module)
    except Exception:  # a torchvision of another build raises RuntimeError, or whatever its libraries do
        return False
    return True
