"""Builders of small data sources, and a cache folder of its own for every test."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trilemma.data.image_set import ImageSet


class Build:
    """Makes pictures, folders and archives."""

    @staticmethod
    def png(pixels: np.ndarray, **options: object) -> bytes:
        """A PNG of uint8 ``[H, W]`` or ``[H, W, 3 or 4]``, or 16-bit grey for uint16 ``[H, W]``."""
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG", **options)
        return stream.getvalue()

    @staticmethod
    def grey(value: int, height: int = 4, width: int = 4) -> bytes:
        return Build.png(np.full((height, width), value, np.uint8))

    @staticmethod
    def colour(value: int, height: int = 4, width: int = 4) -> bytes:
        return Build.png(np.full((height, width, 3), value, np.uint8))

    @staticmethod
    def classes(split: str = "", per_class: int = 4, first: int = 0) -> dict[str, bytes]:
        """``split/cat/k.png`` and ``split/dog/k.png``, every image of its own grey value."""
        prefix = f"{split}/" if split else ""
        return {
            f"{prefix}{name}/{k}.png": Build.grey(first + 100 * place + k)
            for place, name in enumerate(("cat", "dog"))
            for k in range(per_class)
        }

    @staticmethod
    def folder(root: Path, files: Mapping[str, bytes]) -> Path:
        for name, data in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        return root

    @staticmethod
    def tar(path: Path, files: Mapping[str, bytes], folders: tuple[str, ...] = ()) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
            for folder in folders:
                entry = tarfile.TarInfo(folder)
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        return path

    @staticmethod
    def zip(path: Path, files: Mapping[str, bytes]) -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TRILEMMA_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def build() -> Build:
    return Build()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the repository, where there is one."""
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data are not at hand: {folder} does not exist")
    return folder


@pytest.fixture
def small_set() -> ImageSet:
    """30 random images of 3 unequal classes, 1x3x4 pixels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(60, 200, (30, 1, 3, 4), dtype=torch.uint8, generator=generator)
    labels = torch.tensor([0] * 15 + [1] * 9 + [2] * 6)
    return ImageSet(images, labels, ("a", "b", "c"), "small", "train")
