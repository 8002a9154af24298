"""Packages that import torchvision can be imported where it is missing or broken, and see the real one otherwise."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module, invalidate_caches
from pathlib import Path

import pytest

from trilemma.networks.without_torchvision import torchvision_optional

# The ways in which timm uses torchvision when it is imported.
PACKAGE = """
import torchvision.transforms as transforms
import torchvision.transforms.functional as F
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.ops.misc import FrozenBatchNorm2d
from torchvision.transforms.functional import InterpolationMode

NAMES = {InterpolationMode.NEAREST: "nearest", InterpolationMode.BICUBIC: "bicubic"}


def is_frozen(layer):
    return isinstance(layer, FrozenBatchNorm2d)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "needs_vision.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torchvision", "needs_vision")]:
        del sys.modules[name]


@pytest.mark.parametrize("broken", [False, True], ids=["missing", "built-for-another-torch"])
def test_placeholders_stand_in_and_are_gone_afterwards(folder: Path, monkeypatch, broken: bool) -> None:
    if broken:
        package = folder / "torchvision"
        package.mkdir()
        (package / "extension.py").write_text("")
        message = "operator torchvision::nms does not exist"
        (package / "__init__.py").write_text(
            f"from torchvision import extension\nraise RuntimeError({message!r})"
        )
        invalidate_caches()
    else:
        monkeypatch.setitem(sys.modules, "torchvision", None)
    finders = list(sys.meta_path)
    with torchvision_optional():
        module = import_module("needs_vision")
    assert len(module.NAMES) == 2 and not module.is_frozen(object())
    assert (
        not any(name.partition(".")[0] == "torchvision" for name in sys.modules) and sys.meta_path == finders
    )
    with pytest.raises((ImportError, RuntimeError)):
        import_module("torchvision" if broken else "torchvision_of_nobody")


def test_a_torchvision_that_can_be_imported_is_used(folder: Path) -> None:
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("VERSION = 7")
    invalidate_caches()
    with torchvision_optional():
        assert import_module("torchvision").VERSION == 7
    assert sys.modules["torchvision"].VERSION == 7


def test_other_missing_packages_are_still_missing() -> None:
    with torchvision_optional(), pytest.raises(ModuleNotFoundError, match="nobody"):
        import_module("nobody.there")
