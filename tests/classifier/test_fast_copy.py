"""The copy that attacks ask: the same logits and gradients as the original, whatever was rewritten for speed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trilemma import Classifier
from trilemma.attacks.pgd import pgd
from trilemma.classifier.contexts import Mode
from trilemma.classifier.fast_copy import FastNetwork, FirstConvolution, fast_copy, quick_gradients
from trilemma.classifier.load import load
from trilemma.classifier.memory_format import preferred_memory_format
from trilemma.classifier.precision import in_bfloat16
from trilemma.classifier.winograd import FixedConvolution
from trilemma.config.registry import NETWORKS
from trilemma.data.sources import load_splits
from trilemma.networks.create import create_network
from trilemma.networks.small_cnn import SmallCNN
from trilemma.networks.small_resnet import SmallResNet


def used(clf: Classifier) -> Classifier:
    """``clf`` with running statistics as if it had been trained."""
    for layer in clf.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 1.5)
    return clf


def answers(clf: Classifier, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with a graph, a gradient of theirs by the images, and logits without a graph."""
    here = images.clone().requires_grad_()
    logits = clf.logits(here)
    (gradient,) = torch.autograd.grad(logits.square().sum(), here)
    with torch.no_grad():
        return logits.detach(), gradient, clf.logits(images)


def assert_same(other: Classifier, clf: Classifier, images: Tensor) -> None:
    before = images.clone()
    for theirs, ours in zip(answers(clf.eval(), images), answers(other, images), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=1e-4)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("preact-resnet", {"depth": 18, "norm": "batch", "activation": "relu"}),
        ("wide-resnet", {"depth": 10, "width": 1, "norm": "batch", "activation": "silu"}),
        ("wide-resnet", {"depth": 10, "width": 1, "norm": "none", "activation": "leaky_relu", "stride_conv": 2}),
        ("small-resnet", {"width": 8, "depth": 8, "norm": "batch", "activation": "relu"}),
        ("small-resnet", {"width": 8, "depth": 8, "norm": "group", "activation": "silu"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 12)])
def test_a_copy_of_each_network_says_the_same_of_any_number_of_images(toy, name, options, shape):
    torch.manual_seed(0)
    network = create_network(NETWORKS.options(name).model_validate({"name": name, **options}), 10, shape)
    clf = used(Classifier(network, 10, [0.4] * shape[0], [0.2] * shape[0])).eval()
    other = fast_copy(clf, toy.images(2, shape))
    assert isinstance(other.network, FastNetwork) and isinstance(clf.network, type(network))
    for count in (5, 1):
        assert_same(other, clf, toy.images(count, shape, seed=count))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (3, {"kernel_size": 3, "stride": 2, "padding": 1}),
        (3, {"kernel_size": (5, 2), "stride": (1, 3), "padding": (2, 0), "bias": False}),
        (1, {"kernel_size": 4, "stride": 2, "padding": 1}),
        (4, {"kernel_size": 1, "padding": 2}),
    ],
)
def test_the_first_convolution_is_that_of_normalised_images_also_backwards(channels, options, memory_format):
    """Against PyTorch's own in float64, where the windows do not reach the last pixels, too."""
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(channels, 6, **options).double()
    images = torch.rand(4, channels, 9, 10, generator=generator).double()
    mean, std = (torch.rand(1, channels, 1, 1, generator=generator) + 0.1 for _ in range(2))
    for normalised in (True, False):
        here, there = images.clone().requires_grad_(), images.clone().requires_grad_()
        ours = FirstConvolution(
            conv, mean if normalised else None, std if normalised else None, memory_format
        )
        found, wanted = ours(here), conv((there - mean) / std if normalised else there)
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)
        assert found.is_contiguous(memory_format=memory_format)
        upstream = torch.randn(found.shape, generator=generator).double()
        gradients = [
            torch.autograd.grad(out, at, upstream)[0] for out, at in ((found, here), (wanted, there))
        ]
        torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 6, 3, groups=3),
        nn.Conv2d(3, 6, 3, dilation=2),
        nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 6, 3, padding="same"),
        nn.Conv2d(16, 6, 3),
        nn.Conv2d(3, 6, 3, device="meta"),
        nn.Linear(3, 6),
    ],
)
def test_other_convolutions_stay_as_they_are(conv):
    assert not FirstConvolution.fits(conv)


class Rows(nn.Module):
    """Convolution, ReLU, a flattening spelled in some way, linear layers."""

    def __init__(self, flatten: Any, twice: bool = False) -> None:
        super().__init__()
        self.conv, self.flatten, self.twice = nn.Conv2d(3, 4, 3, padding=1), flatten, twice
        self.first, self.second = nn.Linear(4 * 5 * 6, 4 * 5 * 6), nn.Linear(4 * 5 * 6, 3)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.first(self.flatten(self.conv(images).relu()))
        return self.second(self.first(rows) if self.twice else rows)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "flatten",
    [
        lambda x: x.view(x.size(0), -1),
        lambda x: x.flatten(1).tanh(),
        lambda x: x.permute(0, 2, 1, 3).flatten(1),
    ],
)
def test_linear_layers_behind_any_flattening_stay_right(toy, flatten):
    torch.manual_seed(0)
    images = toy.images(5, (3, 5, 6))
    for network in (Rows(flatten), Rows(nn.Flatten(), twice=True)):
        clf = Classifier(network, 3)
        assert_same(fast_copy(clf, images[:2]), clf, images)


def test_what_reads_the_image_beside_the_first_convolution_keeps_reading_it(toy):
    class Twice(nn.Module):
        def __init__(self, both: bool) -> None:
            super().__init__()
            self.conv, self.last, self.both = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(7, 3), both

        def forward(self, images: Tensor) -> Tensor:
            found = self.conv(images) + (self.conv(images.flip(3)) if self.both else 0.0)
            return self.last(torch.cat([found, images], 1).mean((2, 3)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    images = toy.images(5, (3, 6, 6))
    for both in (True, False):
        for normalisation in ((None, None), ([0.4] * 3, [0.2] * 3)):
            clf = Classifier(Twice(both), 3, *normalisation)
            other = fast_copy(clf, images[:2])
            assert not any(isinstance(layer, FirstConvolution) for layer in other.modules())
            assert_same(other, clf, images)


def test_one_grey_mean_serves_three_channels(toy):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    clf, images = Classifier(network, 3, [0.4], [0.2]), toy.images(5, (3, 6, 6))
    other = fast_copy(clf, images[:2])
    assert any(isinstance(layer, FirstConvolution) for layer in other.modules())
    assert_same(other, clf, images)


def test_float64_stays_float64(toy):
    clf, images = toy.conv(shape=(3, 6, 6)).double().eval(), toy.images(5, (3, 6, 6))
    other = fast_copy(clf, images[:2])
    assert other.dtype == torch.float64 and isinstance(other.network, FastNetwork)
    assert_same(other, clf, images)


def test_a_network_that_torchscript_does_not_know_is_asked_in_its_other_form(toy, monkeypatch):
    def refuse(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no such operation")

    clf, images = toy.conv(shape=(3, 6, 6)).eval(), toy.images(5, (3, 6, 6))
    monkeypatch.setattr(torch.jit, "trace", refuse)
    other = fast_copy(clf, images[:2])
    assert isinstance(other.network, FastNetwork) and other.network.logits_only is other.network.with_gradient
    assert_same(other, clf, images)


def test_the_copy_is_left_when_it_has_learnt_the_number_of_images_by_heart(toy):
    class Counting(nn.Module):
        """Its rows are as many as when it was traced."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 3)

        def forward(self, images: Tensor) -> Tensor:
            rows = int(images.shape[0]) if isinstance(images, Tensor) else 2
            return self.layer(images.reshape(rows, 16))  # type: ignore[no-any-return]

    clf, images = Classifier(Counting(), 3), toy.images(5)
    other = fast_copy(clf, images[:2])
    torch.testing.assert_close(other.logits(images), clf.logits(images))


class Straight(torch.autograd.Function):
    """Rounds on its way forward; a graph does not see what it does on its way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x * 8) / 8

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Head(nn.Module):
    """Convolution, something, ReLU, mean, linear layer."""

    def __init__(self, between: Any = lambda self, x: x) -> None:
        super().__init__()
        self.conv, self.other, self.relu = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.ReLU(),
        )
        self.between, self.last = between, nn.Linear(4, 3)
        self.register_buffer("level", torch.zeros(1))
        self.place = nn.Parameter(torch.linspace(-1.0, 1.0, 30).view(1, 1, 5, 6).expand(1, 4, 5, 6).clone())

    def forward(self, images: Tensor) -> Tensor:
        found = self.relu(self.between(self, self.conv(images)))
        return self.last(found.mean((2, 3)))  # type: ignore[no-any-return]


def without_gradient(head: Head, x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = head.other(x).sigmoid()
    return x * gate  # type: ignore[no-any-return]


def cut_in_place(head: Head, x: Tensor) -> Tensor:
    x.clamp_(-50.0, 50.0)
    return head.other(x)  # type: ignore[no-any-return]


def with_a_buffer(head: Head, x: Tensor) -> Tensor:
    return x * (1 + head.level.copy_(x.detach().mean().view(1)))  # type: ignore[operator]


@pytest.mark.parametrize(
    "between",
    [lambda _, x: Straight.apply(x), without_gradient, cut_in_place, with_a_buffer],
    ids=["backward by hand", "no_grad", "statement in place", "buffer"],
)
def test_what_a_graph_does_not_show_is_left_to_the_network_itself(toy, between):
    torch.manual_seed(0)
    clf, images = Classifier(Head(between), 3).eval(), toy.images(5, (3, 5, 6))
    other = fast_copy(clf, images[:2])
    assert not isinstance(other.network, FastNetwork)
    assert_same(other, clf, images)


def test_a_network_with_hooks_is_not_traced(toy):
    torch.manual_seed(0)
    images = toy.images(5, (3, 5, 6))
    for register in ("register_full_backward_hook", "register_forward_hook"):
        network = Head()
        getattr(network.relu, register)(
            lambda module, before, after: after if torch.is_tensor(after) else None
        )
        other = fast_copy(Classifier(network, 3).eval(), images[:2])
        assert not isinstance(other.network, FastNetwork)


def test_a_wrapper_of_pytorch_does_not_hide_what_it_wraps(toy):
    def stored(head: Head, x: Tensor) -> Tensor:
        head.kept = head.other(x)  # another thread's, if it were kept
        return head.kept  # type: ignore[return-value]

    def flows(head: Head, x: Tensor) -> Tensor:
        return head.other(x) if x.mean() > 100 else x

    torch.manual_seed(0)
    images = toy.images(5, (3, 5, 6))
    for between, traced in ((stored, True), (flows, False)):
        clf = Classifier(nn.DataParallel(Head(between)), 3).eval()
        other = fast_copy(clf, images[:2])
        assert isinstance(other.network, FastNetwork) == traced
        assert_same(other, clf, images)


def test_a_copy_made_from_one_image_answers_for_many(toy, capsys):
    torch.manual_seed(0)
    clf, images = Classifier(Head(lambda head, x: head.place + x), 3).eval(), toy.images(5, (3, 5, 6))
    assert_same(fast_copy(clf, images[:1]), clf, images)
    fast_copy(Classifier(Head(lambda _, x: x.view(99, -1)), 3), images[:1])  # fails, as the original does
    assert capsys.readouterr().err == ""


def test_the_copy_folds_batch_norm(toy):
    options = NETWORKS.options("wide-resnet").model_validate({"name": "wide-resnet", "depth": 10, "width": 1})
    clf = used(Classifier(create_network(options, 10, (3, 8, 8)), 10, [0.5] * 3, [0.2] * 3)).train()
    images = toy.images(4, (3, 8, 8))
    other = fast_copy(clf, images)
    assert other is not clf and clf.training
    norms = [sum(isinstance(layer, nn.BatchNorm2d) for layer in one.modules()) for one in (clf, other)]
    assert norms[1] < norms[0]
    assert_same(other, clf, images)
    assert not any(weight.requires_grad for weight in other.parameters())


def test_a_network_that_cannot_be_copied_faithfully_is_asked_itself(toy):
    class Moody(nn.Module):
        """Control flow on values cannot be traced."""

        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(1, 3, 4), nn.BatchNorm2d(3)

        def forward(self, images):
            found = self.norm(self.convolution(images)).flatten(1)
            return found if found.sum() > 0 else found * 2

    class Forgetful(nn.Module):
        """A copy of it says something else."""

        def __deepcopy__(self, memo):
            return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

        def forward(self, images):
            return images.flatten(1)[:, :3]

    class Single(Forgetful):
        def __deepcopy__(self, memo):
            raise TypeError("there is only one of me")

    images = toy.images(4)
    for network in (Forgetful(), Single()):
        clf = Classifier(network, 3)
        assert fast_copy(clf, images) is clf
    moody = Classifier(Moody(), 3)
    copied = fast_copy(moody, images)
    assert torch.equal(copied.logits(images), moody.eval().logits(images))


def test_a_copy_is_made_where_it_saves_more_than_it_costs(toy, monkeypatch):
    asked: list[Classifier] = []

    def copied(clf: Classifier, *arguments: object, **options: object) -> Classifier:
        asked.append(clf)
        return clf

    monkeypatch.setattr("trilemma.classifier.fast_copy.fast_copy", copied)
    clf = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 3)
    images, labels = toy.images(100), toy.labels(100)
    calls: list[tuple[int, int, Mode, int]] = [
        (100, 10, "eval", 1),
        (99, 10, "eval", 0),
        (100, 10, "train", 0),
    ]
    for count, steps, mode, copies in calls:
        pgd(clf, images[:count], labels[:count], 0.2, steps=steps, random_start=False, mode=mode)
        assert len(asked) == copies
        asked.clear()
    assert quick_gradients(clf, images.to("meta"), 10**9) is clf and not asked
    nothing_to_gain = Classifier(SmallCNN(3, (1, 4, 4)), 3)
    assert quick_gradients(nothing_to_gain, images, 10**9) is nothing_to_gain and not asked


def test_what_is_faster_in_contiguous_memory_stays_so(toy):
    network = create_network(
        NETWORKS.options("small-cnn").model_validate({"name": "small-cnn"}), 10, (1, 28, 28)
    )
    assert preferred_memory_format(network, torch.device("cpu")) == torch.contiguous_format
    assert preferred_memory_format(network, torch.device("cuda")) == torch.channels_last
    other = fast_copy(Classifier(network, 10).eval(), torch.rand(2, 1, 28, 28))
    assert isinstance(other.network, FastNetwork)
    graph = other.network.with_gradient
    # The first one is a buffer of its module.
    weights = [weight for weight in (*graph.parameters(), *graph.buffers()) if weight.dim() == 4]
    assert len(weights) == 2 and all(weight.is_contiguous() for weight in weights)


def test_pgd_on_a_copy_is_as_strong(toy, finished_run):
    clf = load(finished_run)
    data = load_splits("digits").test.first(300)
    images, labels = data.float_images(), data.labels
    with pytest.MonkeyPatch.context() as patch:
        quick = pgd(clf, images, labels, 0.2, steps=10, random_start=False)
        patch.setattr("trilemma.classifier.fast_copy.WORTH_A_COPY", float("inf"))
        plain = pgd(clf, images, labels, 0.2, steps=10, random_start=False)
    assert float((quick - plain).abs().mean()) < 1e-3
    fooled = [float((clf(found).argmax(1) != labels).float().mean()) for found in (quick, plain)]
    assert fooled[0] == pytest.approx(fooled[1], abs=0.01)


def test_a_network_whose_frozen_form_cannot_run_is_asked_in_its_other_form(toy):
    """oneDNN's adaptive pooling, which optimised graphs use, refuses 7 pixels to 2."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    clf, images = Classifier(network, 10).eval(), toy.images(2, (1, 14, 14))
    other = fast_copy(clf, images)
    assert isinstance(other.network, FastNetwork)
    assert_same(other, clf, images)


def test_a_wide_network_has_winograd_convolutions_in_its_copy_instead_of_a_frozen_graph(toy):
    torch.manual_seed(0)
    shape = (3, 16, 16)
    for width, wide in ((64, True), (32, True), (16, False)):
        network = SmallResNet(10, 3, width=width, activation="silu")
        clf = used(Classifier(network, 10, [0.4] * 3, [0.2] * 3)).eval()
        other = fast_copy(clf, toy.images(2, shape))
        assert isinstance(other.network, FastNetwork)
        replaced = [module for module in other.network.modules() if isinstance(module, FixedConvolution)]
        assert bool(replaced) == wide == (other.network.logits_only is other.network.with_gradient)
        for count in (20, 1):
            assert_same(other, clf, toy.images(count, shape, seed=count))


def test_the_copy_of_a_wide_network_in_bfloat16_is_one_in_bfloat16(toy):
    torch.manual_seed(0)
    images = toy.images(20, (3, 16, 16))
    clf = Classifier(SmallResNet(10, 3, width=64), 10).eval().requires_grad_(False)
    other = in_bfloat16(fast_copy(clf, images[:2]))
    exact, rounded = clf.logits(images), other.logits(images)
    assert 0 < float((exact - rounded).abs().max() / exact.abs().max()) < 0.05
