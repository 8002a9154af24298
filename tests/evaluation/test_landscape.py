"""Several attacks on one landscape: same images, known closed forms, and the signs that the literature reports."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import trilemma
from trilemma import energies
from trilemma.attacks.pgd import pgd, pgd_targeted
from trilemma.attacks.preset import run_preset
from trilemma.config.presets import CLASS, DIAGNOSE, DIAGNOSE_DEFAULT, diagnose_presets
from trilemma.data.sources import load_splits
from trilemma.errors import UnknownNameError
from trilemma.evaluation.diagnose import diagnose, landscape


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory, shared_cache: None) -> dict[str, Any]:
    """How each attack moves 100 test images of a network of the digits that was trained without any attack."""
    path = Path(tmp_path_factory.mktemp("runs") / "standard")
    short = {"training.epochs": 10, "training.evaluate_every": 10}
    trilemma.train("digits/standard", short, out=path, progress=False)
    clf = trilemma.load(path)
    assert clf.threat is not None
    data = load_splits("digits").test.first(100)
    return landscape(
        clf, data, clf.threat, diagnose_presets([*DIAGNOSE_DEFAULT, "apgd-dlr"]), "uniform", seed=0
    ).moves()


@pytest.mark.parametrize("name", ["pgd", "trades-kl", "apgd-ce"])
def test_on_a_network_that_is_not_robust_untargeted_ascent_of_the_loss_lowers_the_marginal_energy(
    standard, name
):
    move = standard["attacks"][name]
    assert move["broken"]["value"] > 0.5
    assert move["delta_marginal"]["mean"] > 0.4  # logits; clean images lie at -7.8


@pytest.mark.parametrize("name", ["pgd-targeted", "apgd-t", "fab", "fab-t", "square", "apgd-dlr"])
def test_on_a_network_that_is_not_robust_targets_boundaries_and_margins_raise_it(standard, name):
    move = standard["attacks"][name]
    assert move["broken"]["value"] > 0.8
    assert move["delta_marginal"]["mean"] < -1 and move["risen"]["value"] > 0.7


def logits64(levels: torch.Tensor) -> torch.Tensor:
    """Of the classifier ``clf`` of this folder, at flat images."""
    score = 8 * (levels.double() - 0.5)
    return torch.stack([-score / 2, score / 2], 1)


def test_moves_are_those_of_the_images_classified_right_in_closed_form(clf, grey):
    images, labels = grey
    record = diagnose(clf, grey, trilemma.Threat("linf", 0.1), images=10, attacks=["pgd", "fab-t"])
    found, levels = record["moves"], images[1:-1, 0, 0, 0]
    assert found["count"] == 8  # the first and the last are labelled wrongly
    before = logits64(levels)
    after = logits64(levels + torch.where(labels[1:-1] == 1, -0.1, 0.1))
    for logits, move in ((before, found["clean"]), (after, found["attacks"]["pgd"])):
        assert move["marginal"]["mean"] == pytest.approx(
            float(energies.marginal_energy(logits).mean()), abs=1e-4
        )
        assert move["joint"]["mean"] == pytest.approx(
            float(energies.joint_energy(logits, labels[1:-1]).mean()), abs=1e-4
        )
    deltas = energies.delta_energies(before, after, labels[1:-1])
    pgd = found["attacks"]["pgd"]
    assert pgd["delta_marginal"]["mean"] == pytest.approx(float(deltas[0].mean()), abs=1e-4)
    assert pgd["delta_joint"]["mean"] == pytest.approx(float(deltas[1].mean()), abs=1e-4)
    assert pgd["broken"]["value"] == found["attacks"]["fab-t"]["broken"]["value"] == 2 / 8  # 0.45 and 0.55


def test_where_nothing_is_classified_right_no_attack_is_reported(clf, grey, tmp_path):
    images, labels = grey
    wrong = (images[1:-1], 1 - labels[1:-1])
    record = diagnose(clf, wrong, trilemma.Threat("linf", 0.1), images=8, attacks=["square"], out=tmp_path)
    assert record["moves"] == {"count": 0, "clean": {}, "attacks": {}}
    assert record["sets"]["adversarial"]["count"] == 8
    assert not (tmp_path / "energy-attacks.png").exists()


def test_an_attack_finds_the_same_images_whatever_the_others_are(finished_run):
    clf, data = trilemma.load(finished_run), load_splits("digits").test.first(12)
    assert clf.threat is not None
    alone = landscape(clf, data, clf.threat, diagnose_presets(["square"]), "uniform", 3)
    among = landscape(clf, data, clf.threat, diagnose_presets(["pgd-targeted", "square"]), "uniform", 3)
    assert torch.equal(alone.attacked["square"].points.joint, among.attacked["square"].points.joint)
    assert torch.equal(alone.generated.joint, among.generated.joint)


def test_the_first_attack_is_the_adversarial_set(finished_run):
    record = diagnose(trilemma.load(finished_run), "digits", images=20, attacks=["he-pgd", "pgd"])
    assert record["attack"] == "he-pgd, cross-entropy + 1.5 E(x), 20 steps"
    assert list(record["moves"]["attacks"]) == ["he-pgd", "pgd"]


@pytest.mark.parametrize("name", DIAGNOSE)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_attack_keeps_to_the_threat_and_leaves_the_classifier_alone(toy, name, norm):
    clf, images, labels = toy.mlp(4), toy.images(8), toy.labels(8, 4)
    threat = trilemma.Threat(norm, 0.2)
    before = {key: value.clone() for key, value in clf.state_dict().items()}
    made = [
        run_preset(DIAGNOSE[name], clf, images, labels, threat, torch.Generator().manual_seed(1))
        for _ in range(2)
    ]
    assert torch.equal(*made)
    assert threat.contains(made[0], images, 1e-6).all()
    assert all(torch.equal(value, before[key]) for key, value in clf.state_dict().items())


@pytest.mark.parametrize("classes", [2, 3])
def test_the_default_attacks_take_any_number_of_classes(toy, classes):
    data = toy.image_set(classes)
    record = diagnose(
        toy.mlp(classes), (data.float_images(), data.labels), trilemma.Threat("linf", 0.1), images=6
    )
    assert set(record["moves"]["attacks"]) in (set(), set(DIAGNOSE_DEFAULT))


def test_targets_are_other_classes_and_all_of_them(toy, monkeypatch):
    told: list[torch.Tensor] = []
    monkeypatch.setattr(
        sys.modules["trilemma.attacks.pgd"], "pgd", lambda *_, target_labels, **__: told.append(target_labels)
    )
    labels = torch.arange(500) % 5
    pgd_targeted(
        toy.mlp(5), toy.images(500), labels, trilemma.Threat("linf", 0.1),
        generator=torch.Generator().manual_seed(0), steps=1,
    )  # fmt: skip
    assert (told[0] != labels).all()
    assert len(torch.stack([labels, told[0]]).unique(dim=1).T) == 5 * 4


def test_trades_ascent_raises_the_divergence_from_the_clean_prediction(toy):
    clf, images, labels = toy.mlp(4), toy.images(20), toy.labels(20, 4)
    threat, generator = trilemma.Threat("linf", 0.1), torch.Generator().manual_seed(0)
    made = pgd(clf, images, labels, threat, 20, loss="kl", generator=generator)
    beside = threat.random_start(images, torch.arange(20))
    clean = clf(images).detach()
    first, last = (energies.kl_divergence(clean, clf(x).detach()) for x in (beside, made))
    assert (last > first).all()


def test_names_are_kept_in_order_once_and_checked():
    assert list(diagnose_presets(None)) == list(diagnose_presets([])) == list(DIAGNOSE_DEFAULT)
    assert list(diagnose_presets(["square", "pgd", "square"])) == ["square", "pgd"]
    with pytest.raises(UnknownNameError, match=r"unknown attack 'pdg'\. Did you mean 'pgd'\?"):
        diagnose_presets(["pdg"])


def test_budgets_are_told_in_full():
    assert DIAGNOSE["apgd-t"].words(10) == "DLR, 3 targets x 50 steps"
    assert DIAGNOSE["apgd-t"].words(2) == "margin, 1 target x 50 steps"
    assert DIAGNOSE["fab-t"].words(3) == "2 targets x 20 steps"
    assert all("{" not in attack.words(10) for attack in DIAGNOSE.values())
    assert {name for name, attack in DIAGNOSE.items() if attack.aim == CLASS} >= {"apgd-t", "fab", "square"}
