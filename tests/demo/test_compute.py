"""What the page computes is what the library computes, and mistakes of a field are one line."""

from __future__ import annotations

import re

import pytest
import torch

from trilemma.demo import compute
from trilemma.demo.compute import Chosen
from trilemma.demo.subject import Subject
from trilemma.energies import joint_energy, marginal_energy
from trilemma.errors import ConfigError, ImageError, UnknownNameError, UserError


def check(answer, clf, pixels, y):
    """The answer is that of the classifier's logits."""
    with torch.no_grad():
        logits = clf(pixels[None])
    assert answer.label == int(logits.argmax()) and answer.confidence == pytest.approx(
        float(logits.softmax(1).max()), abs=1e-5
    )
    assert answer.marginal == pytest.approx(float(marginal_energy(logits)), abs=1e-4)
    assert answer.joint == pytest.approx(float(joint_energy(logits, torch.tensor([y]))), abs=1e-4)


@pytest.mark.parametrize("name", compute.attack_names())
def test_every_attack_returns_an_image_of_the_ball_with_its_energies(subject, five, name):
    result = compute.attack(subject, five, "linf", "0.2", name, 4)
    assert torch.equal(result.original, five.pixels) and result.label == 5
    change = (result.adversarial - five.pixels).abs().max()
    assert result.distance == pytest.approx(float(change), abs=1e-6) and 0 < change <= 0.2 + 1e-5
    check(result.before, subject.clf, five.pixels, 5)
    check(result.after, subject.clf, result.adversarial, 5)


def test_an_attack_leads_away_from_the_predicted_class_where_the_true_one_is_unknown(subject, five):
    upload = Chosen(five.pixels, None, "")
    result = compute.attack(subject, upload, "linf", "0.2", "pgd", 20)
    assert result.label == result.before.label == 5 and result.after.joint > result.before.joint
    assert torch.equal(
        result.adversarial, compute.attack(subject, five, "linf", "0.2", "pgd", 20).adversarial
    )
    # Steps of an attack that has none are not counted.
    assert compute.attack(subject, five, "l2", "1", "fgsm", 9).attack == "fgsm with its own number of steps"
    assert compute.attack(subject, five, "l2", "1", "square", 9).attack == "square, 9 queries"


def test_chains_are_reported_on_their_way_and_are_those_of_the_library(subject):
    frames: list[compute.Frame] = []
    result = compute.generate(subject, 3, 4, "uniform", steps=50, seed=5, report=frames.append)
    assert frames[0].step == 0 and frames[-1].step == 50 and len(frames) == 41
    assert torch.equal(frames[-1].images, result.images)
    # The energies are those of the images that are shown.
    with torch.no_grad():
        logits = subject.clf(frames[7].images)
    assert frames[7].joint.tolist() == pytest.approx(
        joint_energy(logits, torch.full((4,), 3)).tolist(), abs=1e-4
    )
    assert result.chains.steps[0] == 0 and result.chains.steps[-1] == 50
    assert torch.equal(result.chains.images[-1], result.images)
    assert result.joint[-1].mean() < result.joint[0].mean() - 5
    assert sum(answer.label == 3 for answer in result.answers) == 4
    again = compute.generate(subject, 3, 2, "uniform", steps=50, seed=5)
    assert torch.allclose(again.images, result.images[:2], atol=1e-4)


def test_a_preset_is_used_and_its_chains_may_stop_early(subject):
    result = compute.generate(subject, 2, 3, preset="der", steps=60)
    assert result.about == "start local-pca, sampler momentum, energy reference, steps 60"
    mean, std = (subject.clf.statistics[key][2] for key in ("energy_mean", "energy_std"))
    assert ((result.joint[-1] - mean).abs() < 2 * std).all()
    none = compute.generate(subject, 2, 3, steps=0)
    assert none.chains.steps == (0,) and torch.equal(none.chains.images[0], none.images)


@pytest.mark.parametrize(("budget", "key"), [(None, "tolerance"), ("0.9", "budget")])
def test_a_counterfactual_is_that_of_the_library(subject, five, budget, key):
    result = compute.counterfactual(subject, five, 9, "l2", budget, steps=20)
    assert key in result.settings and result.target_labels.tolist() == [9]
    assert bool(result.success[0]) and result.labels.tolist() == [9]
    assert torch.equal(result.originals[0], five.pixels)
    assert 0 < len(result.trajectories[0].frames) <= compute.WAY_FRAMES


def test_the_plane_holds_the_clouds_and_the_images_of_the_user(subject, five):
    plane = compute.plane(subject, "linf", "0.2", 30)
    assert set(plane.points) == {"clean", "adversarial", "generated"}
    clean = subject.test.first(30)
    with torch.no_grad():
        logits = subject.clf(clean.float_images())
    assert plane.points["clean"].joint.tolist() == pytest.approx(
        joint_energy(logits, clean.labels).tolist(), abs=1e-4
    )
    assert (plane.points["adversarial"].joint > plane.points["clean"].joint).float().mean() > 0.9
    moved = torch.zeros(1, 8, 8)
    other = torch.ones(1, 8, 8)
    marks = compute.marks(subject, five, {"attacked": (five.pixels, moved), "counterfactual": (other, moved)})
    assert [*marks] == ["your image", "attacked"]
    with torch.no_grad():
        expected = joint_energy(subject.clf(moved[None]), torch.tensor([5]))
    assert float(marks["attacked"].joint) == pytest.approx(float(expected), abs=1e-4)
    assert compute.marks(subject, None, {}) == {}


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s, x: compute.attack(s, None, "linf", "0.1"), ImageError, "no image chosen"),
        (lambda s, x: compute.attack(s, x, "linf", "0"), ConfigError, "must be above 0"),
        (lambda s, x: compute.attack(s, x, "linf", "1.5"), ConfigError, "more than the whole range [0, 1]"),
        (lambda s, x: compute.attack(s, x, "linf", "wide"), ConfigError, "not a number such as 0.03"),
        (lambda s, x: compute.attack(s, x, "l3", "0.1"), ConfigError, "norm"),
        (lambda s, x: compute.attack(s, x, "linf", "0.1", "pdg"), UnknownNameError, "Did you mean 'pgd'?"),
        (lambda s, x: compute.attack(s, x, "linf", "0.1", "pgd", 0), ConfigError, "must be at least 1"),
        (lambda s, x: compute.attack(s, x, "linf", "0.1", "pgd", None), ConfigError, "enter a whole number"),
        (lambda s, x: compute.attack(s, x, "linf", "0.1", "pgd", 2.5), ConfigError, "enter a whole number"),
        (lambda s, x: compute.attack(s, x, "linf", "0.1", "pgd", 10**7), ConfigError, "must be at most"),
        (lambda s, x: compute.generate(s, 3, 65), ConfigError, "must be at most 64"),
        (lambda s, x: compute.generate(s, 3, 0), ConfigError, "must be at least 1"),
        (lambda s, x: compute.generate(s, 3, 1, steps=-1), ConfigError, "must be at least 0"),
        (lambda s, x: compute.generate(s, 3, 1, "unifrom"), UserError, "uniform"),
        (lambda s, x: compute.generate(s, 3, 1, "replay-buffer"), UserError, "replay-buffer"),
        (lambda s, x: compute.counterfactual(s, None, 3), ImageError, "no image chosen"),
        (lambda s, x: compute.counterfactual(s, x, 3, "l2", "0"), ConfigError, "budget: '0' must be above 0"),
        (lambda s, x: compute.plane(s, "linf", "0"), ConfigError, "must be above 0"),
        (lambda s, x: compute.plane(s, "linf", "0.1", 1), ConfigError, "must be at least 2"),
        (lambda s, x: compute.plane(s, "linf", "0.1", 398), ConfigError, "must be at most 397"),
        (lambda s, x: compute.plane(Subject(s.clf, ""), "linf", "0.1"), ImageError, "need test images"),
    ],
)
def test_a_mistake_is_one_line(subject, five, call, error, words):
    with pytest.raises(error, match=re.escape(words)) as caught:
        call(subject, five)
    assert "\n" not in str(caught.value)
