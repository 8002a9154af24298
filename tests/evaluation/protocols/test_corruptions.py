"""``corruptions``: the mean over types and severities, whose images they are, and what is refused."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import trilemma
from trilemma.config.registry import PROTOCOLS
from trilemma.data.catalogue import CIFAR10
from trilemma.data.corrupted_images import SEVERITIES, TYPES, MadeImages
from trilemma.data.image_set import ImageSet
from trilemma.errors import DataError, MissingExtraError

N = 12


class Brightness(nn.Module):
    """Ten classes: the nearest tenth of the mean brightness."""

    def forward(self, images: Tensor) -> Tensor:
        levels = torch.arange(10) / 10 + 0.05
        return -100 * (images.flatten(1).mean(1)[:, None] - levels).square()


@pytest.fixture
def clf() -> trilemma.Classifier:
    return trilemma.Classifier(Brightness(), 10)


def level(labels: Tensor) -> Tensor:
    """Images ``[n, 3, 4, 4]`` of the brightness of their class, uint8."""
    return (
        ((labels / 10 + 0.05) * 255)
        .round()
        .to(torch.uint8)[:, None, None, None]
        .expand(-1, 3, 4, 4)
        .contiguous()
    )


LABELS = torch.arange(N) % 10


def wrong_count(kind: int, severity: int) -> int:
    """The number of first images that are wrong under a type and severity: 0 to 12."""
    return (kind + 2 * severity) % (N + 1)


def arrays(folder: Path, numbers: Tensor = LABELS) -> Path:
    """A folder as CIFAR-10-C: under each type and severity the first images have the brightness of another class."""
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(numbers.numpy().astype(np.uint8), 5))
    for kind, name in enumerate(TYPES):
        parts = []
        for severity in SEVERITIES:
            shown = numbers.clone()
            shown[: wrong_count(kind, severity)] = (shown[: wrong_count(kind, severity)] + 5) % 10
            parts.append(level(shown))
        np.save(folder / f"{name}.npy", torch.cat(parts).permute(0, 2, 3, 1).numpy())
    np.save(folder / "spatter.npy", np.zeros(3))
    return folder


EXPECTED = np.array([[1 - wrong_count(k, s) / N for s in SEVERITIES] for k in range(len(TYPES))])


def evaluate(clf: trilemma.Classifier, place: Path | str, **options: Any) -> dict[str, Any]:
    name = f"corruptions:{place}" if place else "corruptions"
    return trilemma.evaluate(clf, (level(LABELS), LABELS), [name], lint=False, **options)[name]


def test_arrays_give_the_mean_over_types_and_severities(clf, tmp_path: Path) -> None:
    row = evaluate(clf, arrays(tmp_path / "CIFAR-10-C"), batch_size=5)
    assert row["value"] == pytest.approx(EXPECTED.mean())
    np.testing.assert_allclose(row["facts"]["accuracy"], EXPECTED)
    assert row["facts"]["types"] == pytest.approx(dict(zip(TYPES, EXPECTED.mean(1), strict=True)))
    assert row["facts"]["severities"] == pytest.approx(dict(zip("12345", EXPECTED.mean(0), strict=True)))
    assert row["lower"] < row["value"] < row["upper"] and row["threat"] is None
    assert (row["protocol"], row["count"], row["facts"]["source"]) == ("corruptions:cifar-10-c", N, "arrays")


def test_the_first_images_are_those_of_the_stratified_order(clf, tmp_path: Path) -> None:
    row = evaluate(clf, arrays(tmp_path / "c"), images=10)
    # One image of each class, and the first ones of the arrays are the wrong ones.
    part = ImageSet(level(LABELS), LABELS, tuple("0123456789"), "x", "test")
    first = part.first(10)
    assert sorted(first.labels.tolist()) == list(range(10)) and row["count"] == 10
    assert row["facts"]["accuracy"][0][4] <= 0.5 and row["value"] != pytest.approx(EXPECTED.mean())


def test_labels_of_cifar10_c_follow_the_official_class_order(tmp_path: Path) -> None:
    names = CIFAR10.class_names
    assert names is not None
    order = torch.arange(10).flip(0)

    class Reversed(Brightness):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).flip(1)

    clf = trilemma.Classifier(Reversed(), 10, class_names=names[::-1])
    images = ImageSet(level(LABELS), order[LABELS], names[::-1], "cifar10", "test")
    name = f"corruptions:{arrays(tmp_path / 'c')}"
    assert trilemma.evaluate(clf, images, [name], lint=False)[name]["value"] == pytest.approx(EXPECTED.mean())


def test_image_folders_are_matched_by_class_name(tmp_path: Path, shared_cache: None) -> None:
    names = ("dark", "light")
    clf = trilemma.Classifier(Brightness(), 10, class_names=[*"abcdefgh", *names])
    for kind in TYPES:
        for severity in SEVERITIES:
            for name, shade in (("dark", 217), ("light", 242)):
                folder = tmp_path / "own" / kind / str(severity) / name
                folder.mkdir(parents=True)
                # At severity 5 both classes look alike.
                Image.new("RGB", (4, 4), (242,) * 3 if severity == 5 else (shade,) * 3).save(folder / "1.png")
    labels = torch.tensor([8, 9])
    images = ImageSet(level(labels), labels, clf.class_names, "photos", "test")
    name = f"corruptions:{tmp_path / 'own'}"
    row = trilemma.evaluate(clf, images, [name], lint=False)[name]
    assert (row["value"], row["facts"]["severities"]) == (
        pytest.approx(0.9), {"1": 1.0, "2": 1.0, "3": 1.0, "4": 1.0, "5": 0.5}
    )  # fmt: skip
    assert (row["protocol"], row["facts"]["source"], row["count"]) == ("corruptions:own", "folders", 2)


def test_what_is_refused(clf, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a folder; give one with TYPE\.npy"):
        evaluate(clf, tmp_path / "nothing")
    with pytest.raises(
        DataError, match=r"15 of 15 types are missing \(gaussian_noise, shot_noise, impulse_noise, ...\)"
    ):
        evaluate(clf, tmp_path)
    place = arrays(tmp_path / "c")
    name = f"corruptions:{place}"
    with pytest.raises(DataError, match="its 12 labels are not those of the 12 test images"):
        trilemma.evaluate(clf, (level(LABELS), LABELS.flip(0)), [name], lint=False)
    np.save(place / "snow.npy", np.zeros((5 * N, 4, 4), np.uint8))
    with pytest.raises(
        DataError, match=r"snow.npy: is uint8 \[60, 4, 4\], but must be uint8 \[60, 4, 4, 3\]"
    ):
        evaluate(clf, place)
    (place / "fog.npy").write_text("no array")
    with pytest.raises(DataError, match=r"fog\.npy: cannot be read as an .npy file"):
        evaluate(clf, place)
    (place / "fog.npy").unlink()
    with pytest.raises(
        DataError, match=r"1 of 15 types are missing \(fog\); the folder needs arrays TYPE.npy"
    ):
        evaluate(clf, place)
    np.save(place / "fog.npy", np.zeros(1))
    np.save(place / "labels.npy", np.arange(5 * N))
    with pytest.raises(DataError, match="must hold the same labels for each of 5 severities"):
        evaluate(clf, place)


def stand_in(calls: list[tuple[str, int, int]]) -> SimpleNamespace:
    """The package's two names: one function draws from NumPy's generator, another one from a seed of its own."""

    def shot_noise(x: Any, severity: int = 1) -> Any:
        return x

    def glass_blur(x: Any, severity: int = 1, seed: int | None = None) -> Any:
        return x

    def corrupt(image: Any, severity: int, corruption_name: str, **own: int) -> Any:
        assert image.dtype == np.uint8 and image.shape == (32, 32, 3)
        assert set(own) == ({"seed"} if corruption_name == "glass_blur" else set())
        draw = own.get("seed", int(np.random.randint(2**31)))
        calls.append((corruption_name, severity, draw))
        return np.full_like(image, draw % 256)

    functions = {name: glass_blur if name == "glass_blur" else shot_noise for name in TYPES}
    return SimpleNamespace(corrupt=corrupt, corruption_dict=functions)


def test_made_images_have_their_own_random_numbers_in_any_batch(monkeypatch) -> None:
    calls: list[tuple[str, int, int]] = []
    monkeypatch.setitem(sys.modules, "imagecorruptions", stand_in(calls))
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.2.3")
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    made, state = MadeImages(images, labels, seed=7), np.random.get_state()[2]  # type: ignore[index]
    for kind in ("fog", "glass_blur"):
        whole, numbers = made.batch(kind, 3, torch.arange(4))
        parts = [made.batch(kind, 3, index)[0] for index in torch.tensor([[0, 1], [2, 3]])]
        assert torch.equal(whole, torch.cat(parts)) and torch.equal(numbers, labels)
        assert len({float(image.mean()) for image in whole}) == 4
        assert not torch.equal(whole, made.batch(kind, 4, torch.arange(4))[0])
        assert not torch.equal(whole, MadeImages(images, labels, seed=8).batch(kind, 3, torch.arange(4))[0])
    assert np.random.get_state()[2] == state  # type: ignore[index]
    grey, _ = MadeImages(images[:, :1], labels, seed=7).batch("fog", 1, torch.arange(2))
    assert grey.shape == (2, 1, 32, 32)
    calls.clear()
    clf = trilemma.Classifier(Brightness(), 10)
    row = trilemma.evaluate(clf, (images, labels), ["corruptions"], lint=False)["corruptions"]
    assert {(kind, severity) for kind, severity, _ in calls} == {
        (kind, s) for kind in TYPES for s in SEVERITIES
    }
    assert len(calls) == 4 * 75 and row["protocol"] == "corruptions:imagenet-c"
    assert (
        row["facts"]["source"] == "imagecorruptions-imaug 1.2.3" and "not comparable" in row["facts"]["note"]
    )


def test_without_the_package_or_with_small_images_one_line_says_what_to_do(clf, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", stand_in([]))
    with pytest.raises(
        DataError, match=r"images are 3x4x4 .*at least 32x32 pixels; give other data or a folder"
    ):
        evaluate(clf, "")
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(
        MissingExtraError, match=r"needs imagecorruptions-imaug .*pip install -e '.\[corruptions\]'"
    ):
        evaluate(clf, "imagenet-c")


def test_the_package_changes_images_by_type_and_severity() -> None:
    pytest.importorskip("imagecorruptions", reason="needs the extra corruptions")
    ramp = torch.linspace(0.2, 0.8, 32).expand(3, 32, 32)
    made = MadeImages(torch.stack([ramp, ramp]), torch.tensor([0, 1]), seed=0)
    for kind in TYPES:
        first, last = (
            (made.batch(kind, severity, torch.arange(2))[0] - ramp).abs().mean().item() for severity in (1, 5)
        )
        assert last > 0.004 and last > 0.8 * first, kind
        again = made.batch(kind, 5, torch.tensor([1]))[0]
        assert torch.equal(again, made.batch(kind, 5, torch.arange(2))[0][1:]), kind


def test_a_name_without_a_value_has_the_default_of_its_row() -> None:
    assert PROTOCOLS.row("corruptions").default == "imagenet-c"
    assert PROTOCOLS.get("corruptions").version == PROTOCOLS.get("corruptions:imagenet-c").version == 1
