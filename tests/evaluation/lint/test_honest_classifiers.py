"""What is in order is not accused: trained classifiers of several kinds, and third-party robust networks."""

from __future__ import annotations

import pytest
import torch
from tests.reference_models import NAMES, reference
from torch import nn
from torch.nn.functional import cross_entropy

from trilemma import Classifier, Threat
from trilemma.config.registry import NETWORKS
from trilemma.data.sources import load_splits
from trilemma.evaluation.lint import inspect, lint
from trilemma.networks.create import create_network

THREATS = [Threat("linf", "0.05"), Threat("linf", "0.2"), Threat("l2", "0.5")]


@pytest.mark.parametrize("threat", [*THREATS, None], ids=str)
@pytest.mark.parametrize("kind", ["standard", "robust"])
def test_digits(kind, threat, digits, request):
    clf = request.getfixturevalue(kind)
    assert inspect(clf, digits[0], digits[1], threat=threat).findings == []


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_two_classes(threat, few, even_or_odd):
    images, labels = few
    assert lint(even_or_odd, images, labels % 2, threat) == []


def test_a_plain_network_that_normalises_itself(standard, digits, around):
    assert lint(around(standard).network, digits[0], digits[1], threat=Threat("linf", "0.1")) == []


def test_a_network_that_noise_of_a_dark_background_confuses(digits):
    """Energy-based training on MNIST made such networks: higher contrast removes the noise, not a mistake."""
    images, labels = digits
    means = torch.stack([images[labels == k].mean(0).flatten() for k in range(10)])
    prototypes = means - means.mean(0)

    def network(x):
        logits = 40 * (x.clamp(0, 1).flatten(1) - means.mean(0)) @ prototypes.T
        # Grey where a digit is black moves every image to class 0.
        haze = ((x > 0) & (x < 0.3)).float().flatten(1).mean(1)
        return logits + 12 * (haze[:, None] - 0.1).relu() * torch.eye(10)[0]

    assert "normalisation" not in {f.name for f in lint(network, images, labels)}


def test_an_untrained_network_and_hardly_any_images(toy):
    clf = toy.mlp()
    for count in (1, 2, 6):
        assert lint(clf, toy.images(count), toy.labels(count), Threat("linf", "0.1")) == []


@pytest.mark.parametrize("seed", [3, 13])
def test_networks_that_have_learnt_nothing(digits, seed):
    """Some rescaling turns the predictions of these two to classes that fit more of the images by luck.

    That they answer hardly any of the classes is true.
    """
    torch.manual_seed(seed)
    options = NETWORKS.options("small-resnet").model_validate(
        {"name": "small-resnet", "width": 8, "norm": "group"}
    )
    clf = Classifier(create_network(options, 10, (1, 8, 8)), 10, [0.5], [0.25]).eval()
    assert {f.name for f in lint(clf, digits[0], digits[1], threat=Threat("linf", "8/255"))} <= {
        "few-answers",
        "at-chance",
    }


@pytest.mark.parametrize("seed", range(12))
def test_networks_of_little_training(seed, digits):
    """Half of the images are right; a higher contrast helps many of these networks, but is not that of training."""
    train = load_splits("digits").train
    images, labels = train.float_images(), train.labels
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimiser = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(4):
            rows = torch.randperm(len(images))[:100]
            optimiser.zero_grad()
            cross_entropy(network(images[rows]), labels[rows]).backward()
            optimiser.step()
    assert lint(Classifier(network).eval(), digits[0], digits[1], threat=Threat("linf", "0.1")) == []


def test_few_images_and_few_classes(robust, digits):
    images, labels = digits
    for classes, count in ((10, 10), (10, 30), (3, 20), (2, 10), (2, 60), (1, 20)):
        part = (labels < classes).nonzero().squeeze(1)[:count]
        assert lint(robust, images[part], labels[part]) == []
    imbalanced = torch.cat(
        [(labels == 0).nonzero()[:30], *((labels == k).nonzero()[:2] for k in range(1, 10))]
    )
    assert lint(robust, images[imbalanced.squeeze(1)], labels[imbalanced.squeeze(1)]) == []


def test_very_confident_logits_that_hide_nothing(standard, digits, around):
    # a wide margin alone is no mistake: the cross-entropy still leads the attack
    assert lint(around(standard, after=lambda z: 3 * z), *digits) == []


def count_of(name: str) -> int:
    return 24 if "resnet" in name else 48


@pytest.mark.parametrize("name", NAMES)
def test_reference_models(name):
    clf, images, labels, threat = reference(name, count_of(name))
    assert lint(clf, images, labels, threat) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_reference_models_on_all_their_images(name):
    clf, images, labels, threat = reference(name)
    for seed in range(3):
        assert lint(clf, images, labels, threat, seed=seed) == []
        assert lint(clf, images[100:], labels[100:], threat, seed=seed) == []
    wide = Threat(threat.norm, min(4 * threat.epsilon, 0.5))
    assert lint(clf, images, labels, wide) == []
    assert torch.is_grad_enabled()
