"""Every mistake that the lint promises to find, planted on a trained classifier, is found under its own name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm, dropout

from trilemma import Classifier, Threat
from trilemma.config.registry import PROTOCOLS
from trilemma.evaluation.lint import lint


def names(clf, data, threat=None):
    return [finding.name for finding in lint(clf, data[0], data[1], threat=threat)]


class Normalise(nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, images):
        return (images - self.mean) / self.std


class ReversedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images):
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def test_images_of_another_range(standard, few):
    images, labels = few
    for wrong in (images * 255, (images * 255).byte(), images / 255, images * 2 - 1, images * torch.nan):
        found = lint(standard, wrong, labels)
        assert found[0].name == "range"
        assert (found[0].severity, found[0].count) == ("error", len(images))
        assert not {finding.name for finding in found} & {"black-box-better", "zero-gradients"}
    assert "radius-units" in names(standard, (images * 2 - 1, labels))


def test_constant_images(standard, few):
    images = few[0].clone()
    images[:7] = 0.5
    found = lint(standard, images, few[1])
    assert [(f.name, f.count) for f in found] == [("constant-images", 7)]


@pytest.mark.parametrize("kind", ["standard", "robust"])
def test_normalised_twice(kind, digits, request):
    clf = request.getfixturevalue(kind)
    twice = Classifier(
        nn.Sequential(Normalise(clf.mean, clf.std), clf.network), 10, clf.mean, clf.std, threat=clf.threat
    )
    assert names(twice.eval(), digits) == ["normalisation"]


def test_normalised_twice_by_constants_that_are_plain_numbers(robust, digits):
    numbers = Normalise(float(robust.mean), float(robust.std))
    twice = Classifier(nn.Sequential(numbers, robust.network), 10, robust.mean, robust.std)
    assert names(twice.eval(), digits) == ["normalisation"]


def test_normalised_twice_inside_a_plain_network(standard, digits, around):
    plain = around(standard, lambda x: (x - standard.mean) / standard.std).network
    assert "normalisation" in names(plain, digits)


@pytest.mark.parametrize("kind", ["standard", "robust"])
def test_not_normalised(kind, digits, request):
    clf = request.getfixturevalue(kind)
    assert names(Classifier(clf.network, threat=clf.threat), digits)[0] == "normalisation"


def test_probabilities_instead_of_logits(standard, few, around):
    assert names(around(standard, after=lambda z: z.softmax(1)), few)[0] == "softmax-outputs"
    assert names(around(standard, after=lambda z: z.log_softmax(1)), few)[0] == "log-softmax-outputs"


def test_outputs_that_are_not_finite(standard, few, around):
    assert "non-finite-outputs" in names(around(standard, after=lambda z: z / 0), few)


def test_noise_in_the_forward_pass(standard, few, around):
    noisy = around(standard, lambda x: x + 0.05 * torch.randn_like(x))
    (finding,) = lint(noisy, *few)
    assert finding.name == "random-forward"
    assert "protocol autoattack-rand" in finding.do
    assert "autoattack-rand" in PROTOCOLS


def test_dropout_left_on(standard, few, around):
    always = around(standard, after=lambda z: dropout(z, 0.2))  # training=True is its default
    assert names(always, few) == ["random-forward"]
    forgotten = copy.deepcopy(standard)
    forgotten.network[7].train()
    found = lint(forgotten, *few)
    assert [f.name for f in found] == ["train-mode"]
    assert "1 Dropout" in found[0].seen
    assert forgotten.network[7].training


def test_batch_norm_in_train_mode(standard, few, around):
    found = lint(copy.deepcopy(standard).train(), *few)
    assert [f.name for f in found] == ["train-mode"]
    assert "2 BatchNorm2d, 1 Dropout" in found[0].seen

    class Stubborn(nn.BatchNorm2d):
        def train(self, mode=True):
            return super().train(True)

    stuck = copy.deepcopy(standard)
    stuck.network[1].__class__ = Stubborn
    assert names(stuck.train(), few) == ["train-mode", "batch-dependence"]
    by_batch = around(standard, lambda x: batch_norm(x, None, None, training=True))
    assert "batch-dependence" in names(by_batch, few)


@pytest.mark.parametrize("kind", ["standard", "robust"])
@pytest.mark.parametrize(
    "rounded",
    [lambda x: (x * 15).round() / 15, lambda x: (x * 255).byte().float() / 255, lambda x: (x > 0.5).float()],
)
def test_quantised_input_layer(kind, rounded, few, around, request):
    found = names(around(request.getfixturevalue(kind), rounded), few)
    assert "quantised-input" in found
    assert {"loss-not-increasing", "unbounded-attack-fails"} <= set(found)


def test_gradients_that_are_zero_or_not_numbers(standard, few, around):
    assert "zero-gradients" in names(around(standard, lambda x: x.detach()), few)
    root = around(standard, after=lambda z: z + 0 * (z - z).abs().sqrt())
    assert "non-finite-gradients" in names(root, few)


@pytest.mark.parametrize("kind", ["standard", "robust"])
@pytest.mark.parametrize("factor", [1e2, 1e4])
def test_saturated_logits(kind, factor, few, around, request):
    clf = request.getfixturevalue(kind)
    assert names(around(clf, after=lambda z: z * factor), few) == ["saturated-logits"]


@pytest.mark.parametrize(
    "shatter",
    [
        lambda x: x + 0.05 * torch.sin(300 * x),
        lambda x: (x * 4).floor() / 4 + 0.01 * x,
        ReversedGradient.apply,
    ],
)
def test_step_function_that_shatters_gradients(shatter, standard, few, around):
    assert "shattered-gradients" in names(around(standard, shatter), few)


def test_steep_steps_hide_gradients_from_every_white_box_attack(standard, few, around):
    found = names(around(standard, lambda x: (1000 * (x - 0.5)).sigmoid()), few)
    assert {"black-box-better", "loss-not-increasing", "unbounded-attack-fails"} <= set(found)


def test_weaker_attacks_that_beat_stronger_ones(standard, few, around):
    rough = around(standard, lambda x: x + 0.05 * torch.sin(300 * x))
    assert {"black-box-better", "one-step-better"} <= set(names(rough, few))
    backwards = around(standard, ReversedGradient.apply)
    assert {"black-box-better", "noise-better"} <= set(names(backwards, few, Threat("linf", "0.4")))


def test_a_radius_in_the_units_of_another_range(standard, few):
    assert names(standard, few, Threat("linf", "0.4")) == ["radius-units"]
    assert names(standard, few, Threat("linf", "0.1")) == ["radius-units"]
    assert names(standard, few, Threat("linf", "0.15")) == []
    assert names(standard, few, Threat("l2", "0.4")) == []
