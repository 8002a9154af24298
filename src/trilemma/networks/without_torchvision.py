"""Imports packages that import torchvision, also where torchvision is missing or was built for another torch.

torchvision pins one exact torch, so a package manager that installs it may replace the torch that was chosen. timm uses
it for data and for a few ``isinstance`` checks only; its networks do not need it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

TORCHVISION = "torchvision"


@contextmanager
def torchvision_optional() -> Iterator[None]:
    """Inside this context ``import torchvision`` succeeds: where the real one cannot be imported, with placeholders.

    The names of a placeholder are empty classes, enough for the heads of other modules. On exit the placeholders are
    removed from ``sys.modules``, so that no other package takes torchvision to be installed.
    """
    if _imports():
        yield
        return
    _forget()
    finder = _Placeholders()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _forget()


def _imports() -> bool:
    try:
        import_module(TORCHVISION)
    # Any exception: one that was built for another torch raises RuntimeError or the errors of its libraries.
    except Exception:
        return False
    return True


def _forget() -> None:
    """Removes torchvision from ``sys.modules``, of which a failed import leaves parts behind."""
    for name in [name for name in sys.modules if name.partition(".")[0] == TORCHVISION]:
        del sys.modules[name]


class _EmptyClass(type):
    """The metaclass of placeholder classes; a member such as ``InterpolationMode.BICUBIC`` is another empty class."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        member = _EmptyClass(name, (), {})
        setattr(cls, name, member)
        return member


class _Placeholder(ModuleType):
    """A module with any name that is asked for."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        member = _EmptyClass(name, (), {"__module__": self.__name__})
        setattr(self, name, member)
        return member


class _Placeholders(MetaPathFinder, Loader):
    """Finds torchvision and every submodule of it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != TORCHVISION:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""
