"""What the tests of the page share: the packaged classifier, and images of every kind in files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trilemma.demo.compute import Chosen
from trilemma.demo.subject import Subject, open_subject


@pytest.fixture(scope="session")
def subject(shared_cache: None) -> Subject:
    return open_subject(None)


@pytest.fixture(scope="session")
def five(subject: Subject) -> Chosen:
    """A test image of a 5 that the classifier knows."""
    pixels, label = subject.offered_image(3)
    assert label == 5
    return Chosen(pixels, label, "")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Image files by kind, and a text file."""
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    alpha = np.dstack([grey, grey, grey, np.where(np.arange(64).reshape(8, 8) < 32, 255, 0)]).astype(np.uint8)
    images = {
        "grey": Image.fromarray(grey),
        "colour": Image.fromarray(np.dstack([grey, 255 - grey, grey])),
        "rgba": Image.fromarray(alpha),
        "wide": Image.new("L", (40, 20), 99),
        "long": Image.new("1", (10_000, 10)),
        "huge": Image.new("1", (10_000, 10_000)),
    }
    written = {}
    for name, image in images.items():
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        written[name] = tmp_path / f"{name}.png"
        written[name].write_bytes(buffer.getvalue())
    written["text"] = tmp_path / "notes.png"
    written["text"].write_text("no image at all")
    return written
