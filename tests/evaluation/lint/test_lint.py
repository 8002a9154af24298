"""How the lint works: repeatable, leaving everything as it was, cheap, and clear about what it was given."""

from __future__ import annotations

import copy

import pytest
import torch

from trilemma import Classifier, Threat
from trilemma.errors import ConfigError, ImageError
from trilemma.evaluation.lint import Finding, inspect, lint
from trilemma.evaluation.lint.catalogue import CATALOGUE
from trilemma.evaluation.lint.probe import clearly_more, is_frequent, sign_test


@pytest.fixture(scope="module")
def hiding(standard, around):
    return around(standard, lambda x: x + 0.05 * torch.sin(300 * x))


def test_the_same_seed_finds_the_same_whatever_the_batch(hiding, few):
    before = torch.random.get_rng_state()
    first = inspect(hiding, few[0], few[1], threat=hiding.threat, seed=4)
    assert first.findings
    assert lint(hiding, *few, seed=4) == first.findings
    assert torch.equal(torch.random.get_rng_state(), before)
    small = inspect(hiding, few[0], few[1], threat=hiding.threat, seed=4, batch_size=33)
    assert [f.name for f in small.findings] == [f.name for f in first.findings]
    assert small.forwards == pytest.approx(first.forwards, rel=0.02)


def test_the_classifier_is_left_as_it_was(standard, few):
    clf = copy.deepcopy(standard).train()
    clf.network[1].eval()
    state = {key: value.clone() for key, value in clf.state_dict().items()}
    modes = [module.training for module in clf.modules()]
    flags = [p.requires_grad for p in clf.parameters()]
    lint(clf, *few)
    assert [module.training for module in clf.modules()] == modes
    assert [p.requires_grad for p in clf.parameters()] == flags
    assert all(torch.equal(value, state[key]) for key, value in clf.state_dict().items())
    assert not any(module._forward_pre_hooks for module in clf.modules())


def test_a_plain_network_is_left_as_it_was_too(standard, few):
    network = copy.deepcopy(standard.network).train()
    lint(network, *few)
    assert all(module.training for module in network.modules())


def test_cost_is_what_the_documentation_says(standard, robust, digits):
    for clf in (standard, robust):
        work = inspect(clf, digits[0], digits[1], threat=clf.threat)
        assert work.images == 397
        assert 60 <= work.attacked <= 64
        assert work.forwards + work.backwards <= 397 * 12 + 64 * 80
        cheap = inspect(clf, digits[0], digits[1], threat=None)
        assert (cheap.images, cheap.attacked) == (128, 0)
        assert cheap.forwards + cheap.backwards <= 128 * 12


def test_nothing_right_is_nothing_to_attack(standard, few):
    images, _ = few
    wrong = (standard(images).argmax(1) + 1) % 10
    assert inspect(standard, images, wrong, standard.threat).attacked == 0


def test_what_cannot_be_looked_at(standard, digits):
    images, labels = digits
    with pytest.raises(ImageError, match="pass at least one"):
        lint(standard, images[:0], labels[:0])
    with pytest.raises(ImageError, match=r"images \[397, 1, 8\] given"):
        lint(standard, images[..., 0], labels)
    with pytest.raises(ImageError, match=r"classes are 0\.\.9"):
        lint(standard, images, labels + 1)
    with pytest.raises(ConfigError, match=r"returned \[1, 1, 8, 8\] for 1 image; return logits"):
        lint(torch.nn.Identity(), images, labels)


def test_a_finding_says_everything_in_one_line(standard, few):
    (finding,) = lint(standard, few[0], few[1], Threat("linf", "0.4"))
    assert Finding.from_record(finding.record()) == finding
    text = str(finding)
    assert "\n" not in text
    assert text.startswith("warning: radius-units: the radius 0.4 is exactly twice")
    assert finding.do in text
    assert finding.means in text


def test_every_finding_has_a_severity_a_meaning_and_a_remedy():
    for entry in CATALOGUE.values():
        assert entry.severity in ("error", "warning")
        assert entry.means.endswith(".")
        assert entry.do.endswith(".")


def test_work_of_other_precision_is_linted_too(standard, few):
    double = copy.deepcopy(standard).double()
    assert lint(double, *few) == []
    assert isinstance(double, Classifier)


@pytest.mark.parametrize(
    ("more", "fewer", "chance"), [(0, 0, 1), (1, 0, 0.5), (3, 1, 5 / 16), (7, 0, 1 / 128)]
)
def test_sign_test(more, fewer, chance):
    assert sign_test(more, fewer) == chance


def test_a_handful_is_no_finding():
    assert not clearly_more(6, 0)
    assert clearly_more(7, 0)
    assert not clearly_more(60, 50)
    assert not clearly_more(9, 0, at_least=10)
    assert is_frequent(5, 100, 0.05) and not is_frequent(4, 100, 0.05)
    assert is_frequent(4, 20, 0.05) and not is_frequent(3, 20, 0.05)
    assert is_frequent(1, 2, 0.05, at_least=1) and not is_frequent(2, 2, 0.05)
