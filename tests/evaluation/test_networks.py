"""Networks from elsewhere in whole evaluations: the numbers of the plain network, or one line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trilemma
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.fast_copy import FastNetwork, fast_copy
from trilemma.data.image_set import ImageSet
from trilemma.errors import ConfigError, DataError, ImageError, NetworkError
from trilemma.evaluation.evaluate import check_fit, check_output
from trilemma.evaluation.lint import lint

THREAT = trilemma.Threat("linf", "0.1")
PROTOCOLS = ("clean", "pgd-20", "attack:fab", "screen")


class Around(nn.Module):
    def __init__(self, inner: nn.Module, change: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.inner = copy.deepcopy(inner)
        self.change = change

    def forward(self, images: Tensor) -> Any:
        return self.change(self.inner, images)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        ).eval()


@pytest.fixture(scope="module")
def images(network: nn.Module) -> ImageSet:
    pixels = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = network(pixels).argmax(1)
    labels[0] = (labels[0] + 1) % 3
    return ImageSet(pixels, labels, ("0", "1", "2"), "dots", "test")


def values(clf: Classifier, images: ImageSet) -> dict[str, float]:
    return {name: row["value"] for name, row in trilemma.evaluate(clf, images, PROTOCOLS, THREAT).items()}


@pytest.fixture(scope="module")
def expected(network: nn.Module, images: ImageSet) -> dict[str, float]:
    found = values(Classifier(network, 3), images)
    assert 0.5 < found["clean"] < 1 and found["pgd-20"] < found["clean"]
    return found


SAME: dict[str, tuple[Callable[[nn.Module], Any], dict[str, Any]]] = {
    "script": (lambda n: torch.jit.script(copy.deepcopy(n)), {}),
    "freeze": (lambda n: torch.jit.freeze(torch.jit.script(copy.deepcopy(n))), {}),
    "trace": (lambda n: torch.jit.trace(copy.deepcopy(n), torch.rand(2, 1, 4, 4)), {}),
    "parallel": (nn.DataParallel, {}),
    "double": (lambda n: copy.deepcopy(n).double(), {}),
    "function": (lambda n: lambda x: n(x), {}),
    "dict": (lambda n: Around(n, lambda inner, x: {"x": x, "z": inner(x)}), {"output": "z"}),
    "tuple": (lambda n: Around(n, lambda inner, x: (inner(x), x)), {"output": 0}),
    "half outputs": (lambda n: Around(n, lambda inner, x: inner(x).double()), {}),
    "writes": (lambda n: Around(n, lambda inner, x: inner(x.sub_(0.5).add_(0.5))), {}),
    "writes, unused": (lambda n: Around(n, lambda inner, x: (x.clamp_(0, 1), inner(x))[1]), {}),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("make", "options"), SAME.values(), ids=list(SAME))
def test_the_numbers_of_the_plain_network(network, images, expected, make, options) -> None:
    before = images.images.clone()
    assert values(Classifier(make(network), 3, **options), images) == expected
    assert torch.equal(images.images, before)


def test_the_default_type_of_torch_does_not_matter(network, images, expected) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert values(Classifier(network, 3), images) == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_network_with_other_outputs_has_a_fast_copy(network, images) -> None:
    clf = Classifier(Around(network, lambda inner, x: {"z": inner(x)}), 3, output="z").eval()
    batch = images.float_images()
    fast = fast_copy(clf, batch[:2])
    assert isinstance(fast.network, FastNetwork)
    torch.testing.assert_close(fast.logits(batch), clf.logits(batch).detach(), atol=1e-5, rtol=0)


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values * 1

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        raise LookupError("no gradient here")


def only_small_batches(inner: nn.Module, x: Tensor) -> Tensor:
    if len(x) > 1:
        raise ValueError("one at a time")
    logits: Tensor = inner(x)
    return logits


def without_gradient(inner: nn.Module, x: Tensor) -> Tensor:
    return torch.no_grad()(inner)(x)  # type: ignore[no-any-return]


LINES: dict[str, tuple[Callable[[nn.Module, Tensor], Any], type[Exception], str]] = {
    "dict": (lambda n, x: {"z": n(x)}, NetworkError, "dots: network: returned a dict of z.*--output z"),
    "shape": (lambda n, x: n(x).argmax(1), NetworkError, r"dots: network: returned \[1\] for 1 image"),
    "classes": (lambda n, x: n(x)[:, :2], NetworkError, "set num_classes to the network's number of classes"),
    "later": (only_small_batches, NetworkError, r"raised ValueError: one at a time \(.*test_networks.py"),
    "backward": (
        lambda n, x: Backward.apply(n(x)), NetworkError, "raised LookupError: no gradient here.*in the backward pass",
    ),
    "no gradient": (without_gradient, ConfigError, "no gradient with respect to the image"),
    "NaN": (lambda n, x: n(x) / 0 * 0, NetworkError, "dots: this classifier returns NaN .* for 12 of 12 images"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), LINES.values(), ids=list(LINES))
def test_one_line(network, images, change, error, message) -> None:
    with pytest.raises(error, match=message) as caught:
        trilemma.evaluate(Classifier(Around(network, change), 3), images, PROTOCOLS, THREAT, lint=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("needed", "remedy"),
    [
        (
            (1, 32, 32),
            "images are 1x4x4 (C, H, W), but the network takes 1x32x32; add --size 32 to resize them",
        ),
        ((3, 4, 4), "but the network takes 3x4x4; convert the images to 3 channels"),
        ((3, 56, 56), "takes 3x56x56; convert the images to 3 channels and add --size 56 to resize them"),
    ],
)
def test_a_wrong_size_names_both_and_the_remedy(images, needed, remedy: str) -> None:
    class Sized(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert tuple(x.shape[1:]) == needed, f"Input size {x.shape[2]} doesn't match model {needed[1]}."
            return x.flatten(1)[:, :3]

    with pytest.raises(ImageError) as caught:
        check_output(Classifier(Sized(), 3), images)
    assert str(caught.value).startswith("dots: images are 1x4x4")
    assert remedy in str(caught.value)
    with pytest.raises(DataError, match="but the classifier takes 1x6x6; add --size 6"):
        check_fit(Classifier(nn.Flatten(), 3, image_shape=(1, 6, 6)), images)


def test_the_lint_takes_what_attacks_take(network, images) -> None:
    pixels, labels = images.float_images(), images.labels
    wanted = lint(Classifier(network, 3), pixels, labels, THREAT)
    for arguments in (
        (network, pixels.numpy(), labels.tolist(), 0.1),
        (lambda x: network(x), pixels.clone().requires_grad_(), labels.int(), "0.1", "Linf"),
    ):
        clf, given, classes, threat, *norm = arguments
        assert lint(clf, given, classes, threat, norm=norm[0] if norm else None) == wanted
    wrong: dict[str, Any] = {"threat": -1, "norm": "l1", "seed": 0.5, "batch_size": "auto", "attack": "pgd"}
    for name, value in wrong.items():
        with pytest.raises(ConfigError):
            lint(network, pixels, labels, **{"threat": THREAT, name: value})
    pairs: tuple[tuple[Any, Any], ...] = ((None, labels), (pixels, None), (pixels, ["a"] * 12))
    for wrong_images, wrong_labels in pairs:
        with pytest.raises(ImageError):
            lint(network, wrong_images, wrong_labels)


def test_the_callers_inference_mode_does_not_matter(network, images, expected) -> None:
    with torch.inference_mode():
        inside = ImageSet(images.images * 1, images.labels * 1, images.class_names, "dots", "test")
        assert values(Classifier(network, 3), inside) == expected
