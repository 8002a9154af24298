"""Purification and the attack through it: identities, the mean over draws, and a defence that only hides gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import trilemma
from trilemma import energies, noise
from trilemma.classifier.contexts import inner_loop
from trilemma.defences import Purification, purified_pgd, purify
from trilemma.defences.adaptive import purified_gradient
from trilemma.defences.purification import purified, unrolled
from trilemma.errors import ConfigError, ImageError
from trilemma.evaluation.lint import lint


class HiddenGradients(nn.Module):
    """Two classes by brightness, with no gradient away from 1/2; E(x) pulls every pixel to 1/2.

    The logit difference is ``4 (mean - 1/2)`` near 1/2 and +-200 farther than 0.05 from it, where the softmax is
    saturated and no gradient is left: around images of brightness 0.3 and 0.7. Both logits have the term
    ``-1.8 sum (x - 1/2)^2``: there a Langevin step of 0.25 multiplies ``x - 1/2`` by 0.1, and the purified image is
    where the logits have a gradient.
    """

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1)
        brightness = pixels.mean(1) - 0.5
        difference = torch.where(brightness.abs() > 0.05, 200 * brightness.sign(), 4 * brightness)
        common = -1.8 * (pixels - 0.5).square().sum(1)
        return torch.stack([common - difference / 2, common + difference / 2], dim=1)


@pytest.fixture
def hidden() -> tuple[trilemma.Classifier, Tensor, Tensor]:
    """The classifier, and 20 images of brightness 0.3 (class 0) and 0.7 (class 1)."""
    labels = torch.arange(20) % 2
    images = (0.3 + 0.4 * labels.float()).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    return trilemma.Classifier(HiddenGradients(), 2, image_shape=(1, 4, 4)).eval(), images, labels


THREAT = trilemma.Threat("linf", "0.25")


def test_a_defence_that_hides_gradients_resists_the_plain_attack_and_falls_to_the_adaptive_one(hidden):
    """Perturbing every pixel by 0.25 crosses 1/2, which no gradient at the image shows."""
    clf, images, labels = hidden
    plain = trilemma.evaluate(clf, (images, labels), ["pgd-20"], THREAT, lint=False)["pgd-20"]
    row = trilemma.evaluate(
        clf, (images, labels), ["pgd-20"], THREAT, lint=False, purify=Purification(1, draws=4, judgements=8)
    )["purify-1:pgd-20:eot-4"]
    assert plain["value"] == 1.0
    assert row["also"]["clean"] == row["also"]["plain attack"] == 1.0
    assert row["also"]["bpda"] < 0.02 and row["also"]["unrolled"] < 0.02 and row["value"] < 0.02
    assert row["purification"] == {
        "steps": 1, "step_size": 0.25, "noise_std": 0.005, "judgements": 8, "attack": "adaptive", "draws": 4,
        "gradients": ["bpda", "unrolled"],
    }  # fmt: skip
    assert "under the attack on the plain classifier 100.0%" in row["facts"]["note"]


def test_the_attack_of_python_is_inside_the_ball_and_breaks_the_same_defence(hidden):
    clf, images, labels = hidden
    for gradient in ("bpda", "unrolled"):
        generator = torch.Generator().manual_seed(0)
        found = purified_pgd(clf, images, labels, THREAT, 1, gradient=gradient, generator=generator)
        assert bool(THREAT.contains(found, images, 1e-6).all()) and not found.requires_grad
        assert float((clf(purify(clf, found, 1)).argmax(1) == labels).float().mean()) < 0.1
    # the plain attack has no gradient to follow
    assert bool((clf(trilemma.attacks.pgd(clf, images, labels, THREAT)).argmax(1) == labels).all())


def test_the_exact_gradient_has_the_purifiers_derivative_and_the_other_the_identity(hidden):
    """One step multiplies ``x - 1/2`` by 0.1, so the exact gradient is a tenth of the one of BPDA."""
    clf, images, labels = hidden
    settings, seeds = Purification(1, noise_std=0), torch.arange(20)
    with inner_loop(clf):
        _, _, identity = purified_gradient(clf, images, labels, settings, "bpda", seeds)
        _, _, exact = purified_gradient(clf, images, labels, settings, "unrolled", seeds)
    assert float(identity.abs().min()) > 0
    torch.testing.assert_close(exact, 0.1 * identity, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("gradient", ["bpda", "unrolled"])
def test_the_gradient_over_draws_is_the_mean_of_the_single_ones(toy, gradient):
    """In float64; each draw is written out here."""
    clf, labels, seeds = toy.mlp(), toy.labels(), torch.arange(6)
    images = toy.images().double().mul(0.8).add(0.1)
    settings = Purification(3, 0.05, 0.02, draws=5)
    with inner_loop(clf):
        loss, logits, found = purified_gradient(clf, images, labels, settings, gradient, seeds)
        single = []
        for draw in range(5):
            own = noise.derive(seeds, draw)
            if gradient == "bpda":
                points = classified = purified(clf, images, settings, own).requires_grad_()
            else:
                points = images.clone().requires_grad_()
                classified = unrolled(clf, points, settings, own)
            losses = energies.cross_entropy(clf.logits(classified), labels)
            single.append((losses.detach(), torch.autograd.grad(losses.sum(), points)[0]))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, sum(g for _, g in single) / 5, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(loss, sum(one for one, _ in single) / 5)
    assert logits.shape == (6, 3) and float((single[0][1] - single[1][1]).abs().max()) > 0


def test_each_step_is_langevins_and_the_graph_changes_no_value(toy):
    clf, images, seeds = toy.mlp(), toy.images(), torch.arange(6) + 7
    settings = Purification(2, 0.1, 0.03)
    with inner_loop(clf):
        found = purified(clf, images, settings, seeds)
        torch.testing.assert_close(unrolled(clf, images.clone().requires_grad_(), settings, seeds), found)
        expected = images
        for step in (1, 2):
            points = expected.clone().requires_grad_()
            (slope,) = torch.autograd.grad(energies.marginal_energy(clf.logits(points)).sum(), points)
            expected = expected - 0.1 * slope + 0.03 * noise.normal(seeds, step, images.shape[1:])
            expected = expected.clamp(0, 1)
    torch.testing.assert_close(found, expected)


def test_purified_images_have_a_lower_energy_and_stay_in_range(toy):
    clf, images = toy.mlp(), toy.images()
    found = purify(clf, images, 5, 0.02, 0)
    before, after = (energies.marginal_energy(clf(one)) for one in (images, found))
    assert bool((after < before).all()) and 0 <= float(found.min()) <= float(found.max()) <= 1
    assert clf.training is False and all(parameter.requires_grad for parameter in clf.parameters())
    assert torch.equal(purify(clf, images, 0), images)


def test_the_noise_of_an_image_is_its_own_whatever_the_batch(toy):
    clf, images = toy.mlp(), toy.images()

    def draw(*parts: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return torch.cat([purify(clf, part, 4, generator=generator) for part in parts])

    whole = draw(images)
    assert torch.equal(draw(images), whole)
    torch.testing.assert_close(draw(images[:2], images[2:]), whole)
    other = purify(clf, images, 4, generator=torch.Generator().manual_seed(4))
    assert float((other - whole).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, r"purify: steps=-1; must be at least 0"),
        ({"steps": 1.5}, r"steps=1.5; must be a whole number"),
        ({"steps": 1, "step_size": 0}, r"step_size=0; must be above 0"),
        ({"steps": 1, "noise_std": -0.1}, r"noise_std=-0.1; must be at least 0"),
        ({"steps": 1, "draws": 0}, r"draws=0; must be at least 1"),
        ({"steps": 1, "gradient": "unroled"}, r"Did you mean 'unrolled'"),
        ({"steps": 1, "judgements": 0}, r"judgements=0; must be at least 1"),
    ],
)
def test_settings_out_of_range_are_one_line(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Purification(**settings)
    assert "\n" not in str(caught.value)


def test_wrong_images_and_diverging_chains_are_one_line(toy):
    with pytest.raises(ImageError, match="outside"):
        purify(toy.mlp(), toy.images() * 3)
    with pytest.raises(ConfigError, match=r"gradient='both' is unknown"):
        purified_pgd(toy.mlp(), toy.images(), toy.labels(), THREAT, 1, gradient="both")

    class Steep(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            score = images.flatten(1).sum(1) / 0.0
            return torch.stack([score, -score], 1)

    with pytest.raises(ImageError, match="purify: images became NaN"):
        purify(trilemma.Classifier(Steep(), 2), toy.images() * 0)


def test_a_network_that_purifies_in_its_forward_pass_is_found_by_the_lint(toy):
    """Whatever attack is run on it does not see its noise, or has no gradient."""
    clf = toy.mlp()
    findings = lint(
        lambda images: clf.logits(purify(clf, images.clamp(0, 1), 3)), toy.images(32), toy.labels(32), THREAT
    )
    assert "random-forward" in [finding.name for finding in findings]
