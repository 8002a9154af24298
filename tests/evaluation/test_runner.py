"""``trilemma.evaluate``: known accuracies, whole rows, repeatability, and one clear line for each mistake."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import trilemma
from trilemma.config.registry import PROTOCOLS
from trilemma.data.image_set import ImageSet
from trilemma.errors import ConfigError, DataError, NetworkError, UnknownNameError
from trilemma.evaluation.protocol import ACCURACY, Protocol, Request
from trilemma.metrics.accuracy import wilson_interval

KEYS = {
    "protocol", "version", "quantity", "better", "value", "lower", "upper", "chance", "also", "count", "data", "threat",
    "seed", "checkpoint", "parameters", "seconds", "device", "trilemma", "torch", "facts", "lint",
}  # fmt: skip
# Protocols with a blank to fill, those whose value is no share of right images, long ones, and the one that takes only
# random networks have their own tests.
ACCURACIES = [
    name
    for name, row in sorted(PROTOCOLS.rows().items())
    if not row.blank
    and PROTOCOLS.get(name).quantity == ACCURACY
    and not PROTOCOLS.get(name).long
    and name != "autoattack-rand"
]


def test_known_accuracies_on_a_classifier_that_can_be_solved_by_hand(clf, grey):
    # Eight of ten are right; a shift of 0.2 carries 0.35, 0.45, 0.55 and 0.65 over the border at 0.5.
    rows = trilemma.evaluate(clf, grey, threat=trilemma.Threat("linf", 0.2))
    assert (rows["clean"]["value"], rows["clean"]["count"]) == (0.8, 10)
    assert rows["pgd-20"]["value"] == 0.4
    assert (rows["pgd-20"]["lower"], rows["pgd-20"]["upper"]) == wilson_interval(4, 10)
    assert rows["pgd-20"]["facts"] == {"attacked": 8}


def test_l2_needs_the_root_of_the_pixels_more(clf, grey):
    # In L2 a shift of 0.2 in each of 4 pixels has length 0.4.
    threat = trilemma.Threat("l2", 0.4)
    assert trilemma.evaluate(clf, grey, ["pgd-20"], threat)["pgd-20"]["value"] == 0.4


@pytest.mark.parametrize("name", ACCURACIES)
def test_every_protocol_gives_a_whole_row(name, clf, grey):
    found = PROTOCOLS.get(name)
    assert isinstance(found, Protocol)
    row = trilemma.evaluate(clf, grey, [name], trilemma.Threat("linf", "8/255"), images=6, seed=3)[name]
    assert set(row) == KEYS
    assert (row["protocol"], row["version"], row["count"], row["seed"]) == (name, found.version, 6, 3)
    assert 0 <= row["lower"] <= row["value"] <= row["upper"] <= 1
    assert row["chance"] == 0.5
    assert (row["quantity"], row["better"], row["also"]) == ("accuracy", "higher", {})
    assert row["data"]["images"] == "first 6 of 10, stratified order"
    assert row["threat"] == ({"norm": "linf", "radius": "8/255"} if found.needs_threat else None)


@pytest.mark.parametrize("name", ACCURACIES)
def test_no_protocol_is_better_than_clean_and_a_larger_radius_never_helps(name, clf, grey):
    clean = trilemma.evaluate(clf, grey, ["clean"])["clean"]["value"]
    values = [
        trilemma.evaluate(clf, grey, [name], trilemma.Threat("linf", r))[name]["value"]
        for r in (0.01, 0.1, 0.3)
    ]
    assert clean >= values[0] >= values[1] >= values[2]


def test_the_same_seed_gives_the_same_row_in_any_batch_size(finished_run):
    network = trilemma.load(finished_run)
    rows = [
        trilemma.evaluate(network, "digits", ["pgd-20"], images=60, seed=5, batch_size=size)["pgd-20"]
        for size in (60, 60, 7)
    ]
    assert rows[0] | {"seconds": 0} == rows[1] | {"seconds": 0}
    assert rows[0]["value"] == rows[2]["value"]


def test_the_classifier_is_left_as_it_was(clf, grey):
    clf.train()
    before = clf.network.scale.clone()
    trilemma.evaluate(clf, grey, threat=trilemma.Threat())
    assert clf.training
    assert clf.network.scale.requires_grad
    assert clf.network.scale.grad is None
    assert torch.equal(clf.network.scale, before)


def test_logits_that_are_not_finite_count_as_wrong(grey):
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            bright = images[:, 0, 0, :1] > 0.5
            return torch.where(bright, torch.nan, torch.tensor([1.0, 0.0]))

    # Four of the five dark images are of class 0.
    assert trilemma.evaluate(trilemma.Classifier(Broken(), 2), grey, ["clean"])["clean"]["value"] == 0.4


def test_a_network_without_any_finite_logit_is_refused_in_one_line(grey):
    network = trilemma.Classifier(lambda images: images.new_full((len(images), 2), torch.nan), 2)
    with pytest.raises(
        NetworkError, match="returns NaN or infinite logits for 10 of 10 images; check its weights"
    ):
        trilemma.evaluate(network, grey, ["clean"])


def test_the_stored_threat_serves_where_none_is_given(clf, grey):
    with pytest.raises(ConfigError, match="pass threat="):
        trilemma.evaluate(clf, grey)
    assert trilemma.evaluate(clf, grey, ["clean"])["clean"]["threat"] is None
    clf.threat = trilemma.Threat("linf", "0.2")
    assert trilemma.evaluate(clf, grey)["pgd-20"]["threat"] == {"norm": "linf", "radius": "0.2"}


def test_an_attack_that_leaves_the_ball_is_an_error_not_a_result(clf, grey, monkeypatch):
    def far(clf, images, *rest, **options):
        return 1 - images

    monkeypatch.setattr("trilemma.evaluation.protocols.accuracy.pgd", far)
    with pytest.raises(RuntimeError, match=r"outside linf 0\.2.*a bug"):
        trilemma.evaluate(clf, grey, ["pgd-20"], trilemma.Threat("linf", 0.2))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"clf": 3}, ConfigError, "pass a run folder, a file, a Run, a Classifier or a torch.nn.Module"),
        ({"protocols": ["pgd-2"]}, UnknownNameError, "Did you mean 'pgd-20'"),
        ({"images": 0}, ConfigError, "at least 1"),
    ],
)
def test_mistakes_get_one_line_that_says_what_to_do(change, error, message, clf, grey):
    arguments = {"clf": clf, "data": grey, "protocols": ["clean"]} | change
    with pytest.raises(error, match=message) as caught:
        trilemma.evaluate(**arguments)
    assert "\n" not in str(caught.value)


def test_data_of_other_classes_or_another_shape_are_refused(clf, grey):
    three = ImageSet(grey[0], grey[1], ("a", "b", "c"), "letters", "test")
    with pytest.raises(DataError, match="letters: has 3 classes, but the classifier has 2"):
        trilemma.evaluate(clf, three, ["clean"])
    wide = dataclasses.replace(three, images=torch.rand(10, 1, 2, 3), class_names=("a", "b"))
    with pytest.raises(DataError, match=r"images are 1x2x3 .* takes 1x2x2"):
        trilemma.evaluate(clf, wide, ["clean"])


def test_ten_starts_of_fifty_steps_break_at_least_what_one_of_twenty_breaks(finished_run):
    network = trilemma.load(finished_run)
    rows = {
        size: trilemma.evaluate(
            network, "digits", ["pgd-20", "pgd-50-10"], images=60, seed=5, batch_size=size
        )
        for size in (60, 7)
    }
    row = rows[60]["pgd-50-10"]
    assert row["value"] <= rows[60]["pgd-20"]["value"]
    assert row["value"] == rows[7]["pgd-50-10"]["value"]  # random numbers do not depend on the batch
    assert row["facts"] == rows[7]["pgd-50-10"]["facts"]
    standing = row["facts"]["standing"]
    assert len(standing) == 10 and standing == sorted(standing, reverse=True)
    assert standing[-1] == round(60 * row["value"]) and row["facts"]["attacked"] >= standing[0]


def test_a_start_is_spent_on_images_that_still_stand_alone(clf, grey, monkeypatch):
    attacked = []

    def unlucky(clf, images, labels, threat, **options):
        """Breaks the first image of each call, by a change within the ball."""
        assert (options["steps"], options["step_size"]) == (50, threat.epsilon / 4)
        attacked.append(len(images))
        images = images.clone()
        images[0] += torch.where(labels[0] == 1, -0.5, 0.5)
        return images.clamp(0, 1)

    monkeypatch.setattr("trilemma.evaluation.protocols.accuracy.pgd", unlucky)
    told: list[int] = []
    threat = trilemma.Threat("linf", 0.5)
    found = PROTOCOLS.get("pgd-50-10").measure(
        Request(clf, grey[0], grey[1], threat, 0, 10, advance=told.append)
    )
    assert attacked == [8, 7, 6, 5, 4, 3, 2, 1]  # two of ten are wrong unattacked; then none is left
    assert found.facts["standing"] == [7, 6, 5, 4, 3, 2, 1, 0, 0, 0]
    assert not found.correct.any()
    assert sum(told) == 10
