"""Energies of image sets, and the identities that tie their summary together."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import trilemma
from trilemma.metrics.energy_landscape import EnergyPoints, energy_points, landscape_summary, move_summary


@pytest.fixture
def clf() -> trilemma.Classifier:
    torch.manual_seed(0)
    return trilemma.Classifier(
        nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 4)), num_classes=4
    )


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(30, 3, 2, 2, generator=generator), torch.randint(4, (30,), generator=generator)


def test_points_are_the_energies_of_eval_logits_in_any_batch_size(clf, images):
    clf.train()
    before = {name: value.clone() for name, value in clf.state_dict().items()}
    points = energy_points(clf, images[0], images[1], batch_size=7)
    assert clf.training
    assert all(torch.equal(value, before[name]) for name, value in clf.state_dict().items())
    logits = clf.eval()(images[0]).detach()
    torch.testing.assert_close(points.marginal, trilemma.energies.marginal_energy(logits))
    torch.testing.assert_close(points.joint, trilemma.energies.joint_energy(logits, images[1]))


def test_abnormal_share_and_deltas_equal_the_energies_room(clf, images):
    other = (images[0] + 0.1).clamp(0, 1)
    clean, adversarial = energy_points(clf, *images), energy_points(clf, other, images[1])
    summary = landscape_summary({"clean": clean, "adversarial": adversarial})
    first, second = clf.eval()(images[0]).detach(), clf(other).detach()
    marginal, joint = trilemma.energies.delta_energies(first, second, images[1])
    assert summary["shift"]["abnormal"]["value"] == pytest.approx(
        float(trilemma.energies.abnormal(first, second, images[1]).float().mean())
    )
    assert summary["shift"]["delta_marginal"]["mean"] == pytest.approx(float(marginal.mean()), abs=1e-5)
    assert summary["shift"]["delta_joint"]["mean"] == pytest.approx(float(joint.mean()), abs=1e-5)


def test_distances_are_between_all_pairs_and_zero_from_a_set_to_itself(clf, images):
    points = energy_points(clf, *images)
    summary = landscape_summary({"clean": points, "adversarial": points, "generated": points})
    assert set(summary["distances"]) == {"clean-adversarial", "clean-generated", "adversarial-generated"}
    assert all(d == {"marginal": 0.0, "joint": 0.0} for d in summary["distances"].values())
    assert summary["shift"]["abnormal"]["value"] == 0.0


def test_summary_leaves_out_what_is_not_there(clf, images):
    summary = landscape_summary({"clean": energy_points(clf, *images)})
    assert list(summary["sets"]) == ["clean"]
    assert summary["distances"] == {}
    assert "shift" not in summary


def test_a_move_counts_what_rose_and_keeps_the_sign_of_delta_energies():
    clean = EnergyPoints(torch.tensor([-4.0, -3.0, -2.0, -1.0]), torch.tensor([-3.0, -2.0, -1.0, 0.0]))
    other = EnergyPoints(clean.marginal + torch.tensor([1.0, 1.0, 1.0, -1.0]), clean.joint + 2)
    move = move_summary(clean, other, torch.tensor([True, False, False, False]))
    assert (move["broken"]["value"], move["risen"]["value"]) == (0.25, 0.75)
    assert move["delta_marginal"]["mean"] == -0.5 and move["delta_joint"]["mean"] == -2.0
    assert move["marginal"]["mean"] == -2.0 and move["joint"]["mean"] == 0.5
    assert move["distance"] == {"marginal": 0.5, "joint": 2.0}
