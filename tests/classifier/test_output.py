"""Networks as people have them: whatever they return, raise or write on is a right number or one line."""

from __future__ import annotations

import copy
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.output import accepted_shape
from trilemma.errors import CheckpointError, ConfigError, ImageError, NetworkError
from trilemma.threat import Threat

Named = namedtuple("Named", ["features", "logits"])


@dataclass
class Data:
    logits: Tensor
    loss: Tensor | None = None


class Around(nn.Module):
    """``change(network, images)`` around a linear network of 3 classes."""

    def __init__(self, change: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        self.change = change

    def forward(self, images: Tensor) -> Any:
        return self.change(self.inner, images)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


HOLDERS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str | int]] = {
    "dict": (lambda z, x: {"features": x, "logits": z}, "logits"),
    "ordered": (lambda z, x: OrderedDict(logits=z), "logits"),
    "integer key": (lambda z, x: {0: x, 1: z}, "1"),
    "tuple": (lambda z, x: (x, z), 1),
    "text index": (lambda z, x: (x, z), "1"),
    "list": (lambda z, x: [z], 0),
    "named tuple": (lambda z, x: Named(x, z), "logits"),
    "index of a named tuple": (lambda z, x: Named(x, z), 1),
    "dataclass": (lambda z, x: Data(z), "logits"),
}


@pytest.mark.parametrize(("hold", "key"), HOLDERS.values(), ids=list(HOLDERS))
def test_output_selects_the_logits(toy, tmp_path, hold, key) -> None:
    network = Around(lambda inner, x: hold(inner(x), x))
    images = toy.images()
    with pytest.raises(NetworkError, match="not a tensor; select the logits with --output") as caught:
        Classifier(network, 3)(images)
    assert "\n" not in str(caught.value)
    clf = Classifier(network, 3, output=key)
    torch.testing.assert_close(clf(images), network.inner(images))
    clf.save(tmp_path / "clf.safetensors")
    again = Classifier.load(tmp_path / "clf.safetensors", network)
    assert again.output == key
    torch.testing.assert_close(again(images), clf(images))


def test_a_tensor_needs_no_selection_and_a_wrong_key_lists_the_right_ones(toy) -> None:
    images = toy.images()
    plain = Around(lambda inner, x: inner(x))
    assert torch.equal(Classifier(plain, 3, output="logits")(images), plain(images))
    for key in ("logit", 7):
        network = Around(lambda inner, x: {"logits": inner(x), "loss": None})
        with pytest.raises(NetworkError, match=f"a dict of logits, not a tensor, and no {key!r} in it"):
            Classifier(network, 3, output=key)(images)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "returned None, not a tensor"),
        ("a", "returned a str, not a tensor"),
        (torch.zeros(6), r"returned \[6\] for 6 images and 3 classes, which need \[6, 3\]; return logits"),
        (torch.zeros(6, 3, 1), r"returned \[6, 3, 1\]"),
        (torch.zeros(6, 4), "set num_classes to the network's number of classes"),
        (torch.zeros(5, 3), "one row per image"),
        (torch.zeros(6, 3, dtype=torch.complex64), "returned torch.complex64"),
    ],
)
def test_what_are_no_logits_is_said(toy, value, message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        Classifier(lambda images: value, 3).logits(toy.images())


def raises(error: BaseException) -> Callable[[nn.Module, Tensor], Any]:
    def change(inner: nn.Module, images: Tensor) -> Any:
        raise error

    return change


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            KeyError("what"),
            r"raised KeyError: 'what' \(.*test_output.py, line \d+\), in the forward pass of 6 images of 1x4x4",
        ),
        (RuntimeError(""), r"raised RuntimeError \("),
        (ZeroDivisionError("a\nb"), r"raised ZeroDivisionError: a \("),
        (StopIteration(), "raised StopIteration"),
        (
            MemoryError(),
            "not enough memory for the forward pass of 6 images of 1x4x4 .* pass a smaller batch_size",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 1"), "not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "not enough memory"),
    ],
)
def test_any_exception_of_a_forward_is_one_line_with_its_reason(toy, error, message: str) -> None:
    with pytest.raises(NetworkError, match=message) as caught:
        Classifier(Around(raises(error)), 3)(toy.images())
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interruption_is_not_translated(toy, error) -> None:
    with pytest.raises(type(error)):
        Classifier(Around(raises(error)), 3)(toy.images())


@pytest.mark.parametrize(("needed", "given"), [((3, 48, 48), (3, 12, 12)), ((1, 4, 4), (3, 4, 4))])
def test_a_wrong_shape_is_told_from_other_reasons_by_trial(needed, given) -> None:
    pixels = needed[0] * needed[1] * needed[2]
    network = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 3))
    images = torch.rand(2, *given)
    with pytest.raises(RuntimeError) as caught:
        network(images)
    assert accepted_shape(network, images[:1], caught.value) == needed
    broken = Around(raises(RuntimeError("48")))
    assert accepted_shape(broken, images[:1], RuntimeError("48")) is None
    assert accepted_shape(network, images[:1], KeyError("48")) is None


def halve_top(images: Tensor) -> Tensor:
    images[:, :, :2].mul_(0.5)
    return images


WRITERS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "normalises": (lambda x: x.sub_(0.1).div_(0.9), lambda x: (x - 0.1) / 0.9),
    "relu": (nn.ReLU(inplace=True), nn.ReLU()),
    "clamps": (lambda x: x.clamp_(0.2, 0.8), lambda x: x.clamp(0.2, 0.8)),
    "adds": (lambda x: x.__iadd__(0.25), lambda x: x + 0.25),
    "through a view": (
        halve_top,
        lambda x: torch.cat([x[:, :, :2] * 0.5, x[:, :, 2:]], 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(("write", "pure"), WRITERS.values(), ids=list(WRITERS))
def test_a_network_that_writes_on_its_input_is_the_network_that_does_not(
    toy, write, pure, normalised: bool
) -> None:
    constants = ([0.5], [0.25]) if normalised else (None, None)
    writing = Around(lambda inner, x: inner(write(x)))
    clf = Classifier(writing, 3, *constants)
    expected = Classifier(Around(lambda inner, x: inner(pure(x))), 3, *constants)
    expected.network.inner = writing.inner
    images, before = toy.images(), toy.images()
    gradients = []
    for one in (clf, expected):
        points = images.clone().requires_grad_()
        logits = one(points)
        gradients.append(torch.autograd.grad(logits.square().sum(), points)[0])
        assert torch.equal(one(images), logits)
    assert torch.equal(images, before)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_are_float32_and_gradients_right_in_any_type(toy, dtype) -> None:
    network = Around(lambda inner, x: inner(x))
    single, other = Classifier(network, 3), Classifier(copy.deepcopy(network).to(dtype), 3)
    images = toy.images().requires_grad_()
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float64: 1e-6}[dtype]
    found = []
    for clf in (single, other):
        logits = clf(images)
        assert logits.dtype == torch.float32
        found.append((logits, torch.autograd.grad(logits.square().sum(), images)[0]))
    torch.testing.assert_close(found[1], found[0], atol=tolerance, rtol=tolerance)
    doubled = Classifier(copy.deepcopy(network), 3, [0.5], [0.25]).double()
    assert doubled(images).dtype == torch.float32
    torch.testing.assert_close(doubled(images), Classifier(network, 3, [0.5], [0.25])(images))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_frozen_graph_has_no_mode_and_no_weights_to_write(toy, tmp_path) -> None:
    clf = toy.mlp()
    frozen = torch.jit.freeze(torch.jit.script(copy.deepcopy(clf.network)))
    other = Classifier(frozen, 3, [0.5], [0.25]).eval()
    with inner_loop(other):
        torch.testing.assert_close(other(toy.images()), clf(toy.images()))
    with pytest.raises(CheckpointError, match="a frozen network hides its weights"):
        other.save(tmp_path / "a")


def test_state_that_is_no_tensor_is_not_written(tmp_path) -> None:
    class Packed(nn.Flatten):
        def get_extra_state(self) -> Any:
            return {"scale": 3}

    with pytest.raises(
        CheckpointError, match="_extra_state of the network is a dict, which a classifier file"
    ):
        Classifier(Packed(), 3).save(tmp_path / "a")


def test_an_exported_graph_keeps_its_mode(toy) -> None:
    class Exported(nn.Linear):
        def train(self, mode: bool = True) -> Any:
            raise NotImplementedError("Calling train() is not supported yet.")

    clf = Classifier(nn.Sequential(nn.Flatten(), Exported(16, 3)), 3).eval()
    assert not clf.training
    with inner_loop(clf, "eval"):
        clf(toy.images())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 0}, "num_classes=0; must be at least 2"),
        ({"num_classes": 3.0}, "num_classes=3.0; must be a whole number"),
        ({"num_classes": True}, "num_classes=True"),
        ({"network": nn.ReLU}, r"the class ReLU; pass a torch.nn.Module, such as MyNetwork\(\)"),
        ({"network": "resnet"}, "the network is a str"),
        ({"network": None}, "the network is a NoneType"),
        ({"mean": [0.5]}, "give both mean and std"),
        ({"mean": [0.5], "std": [0.0]}, "every std must be above 0"),
        ({"mean": [float("nan")], "std": [1.0]}, "finite number"),
        ({"mean": ["a"], "std": [1.0]}, "one number per channel"),
        ({"mean": [], "std": []}, "one finite number per channel"),
        ({"mean": [0.5, 0.5], "std": [1.0] * 3}, "2 values of mean and 3 of std"),
        ({"mean": [0.5] * 3, "std": [1.0] * 3, "image_shape": (1, 4, 4)}, "3 values of mean for images of 1"),
        ({"class_names": ["a", "b"]}, "2 class names for 3 classes"),
        ({"class_names": ["a", "b", "a"]}, "'a'"),
        ({"class_names": ["é", "e\u0301", "x"]}, "'é'"),
        ({"class_names": b"abc"}, "pass a list with one name per class"),
        ({"class_names": 3}, "pass a list with one name per class"),
        ({"image_shape": (4, 4)}, r"pass \(channels, height, width\)"),
        ({"image_shape": (1, 0, 4)}, "must be at least 1"),
        ({"threat": 0.1}, "pass trilemma.Threat"),
        ({"output": 1.5}, "pass a key, an index or None"),
    ],
)
def test_an_argument_that_does_not_fit_is_one_line(change, message: str) -> None:
    arguments: dict[str, Any] = {"network": nn.Flatten(), "num_classes": 3} | change
    with pytest.raises(ConfigError, match=message) as caught:
        Classifier(**arguments)
    assert "\n" not in str(caught.value)


def test_class_names_are_text_of_one_form() -> None:
    names: list[Any] = ["e\u0301", b"b", 3]
    assert Classifier(nn.Flatten(), 3, class_names=names).class_names == ("é", "b", "3")


def test_a_function_is_a_network(toy) -> None:
    clf = toy.mlp()
    function = Classifier(lambda images: clf.network((images - 0.5) / 0.25), 3, threat=Threat())
    assert torch.equal(function(toy.images()), clf(toy.images()))
    with pytest.raises(ImageError, match="outside"):
        function(toy.images() * 255)
