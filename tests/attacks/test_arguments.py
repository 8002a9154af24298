"""The door of all attacks: what people pass is converted, or refused in one line; results fit what was passed."""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trilemma import attacks
from trilemma.classifier.classifier import Classifier
from trilemma.errors import ConfigError, ImageError, UserError
from trilemma.threat import Threat

SETTINGS: dict[str, dict[str, Any]] = {
    "apgd": {"steps": 3},
    "autoattack": {"attacks": ["apgd-ce"], "progress": False},
    "fab": {"steps": 3, "targets": 2},
    "fgsm": {},
    "he_pgd": {"steps": 3},
    "pgd": {"steps": 3},
    "screen": {},
    "square": {"queries": 10},
}
NAMES = pytest.mark.parametrize("name", list(SETTINGS))
THREAT = Threat("linf", "0.1")


def run(name: str, clf: Any, images: Any, labels: Any, threat: Any = THREAT, **changes: Any) -> Tensor:
    options = SETTINGS[name] | changes
    if name not in ("fgsm", "autoattack"):
        options.setdefault("generator", torch.Generator().manual_seed(0))
    result = getattr(attacks, name)(clf, images, labels, threat, **options)
    adversarial: Tensor = result.adversarial if name == "autoattack" else result
    return adversarial


@pytest.fixture
def case(toy) -> tuple[Classifier, Tensor, Tensor]:
    clf = toy.mlp()
    images: Tensor = toy.images(3)
    return clf, images, clf(images).argmax(1)


@NAMES
def test_networks_radii_and_arrays_give_the_images_of_their_tensors(case, name: str) -> None:
    clf, images, labels = case
    expected = run(name, clf, images, labels)
    assert not torch.equal(expected, images)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clf = clf

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.clf.network((images - 0.5) / 0.25)
            return logits

    stored = Classifier(clf.network, 3, [0.5], [0.25], threat=THREAT)
    same: dict[str, tuple[Any, ...]] = {
        "network": (Whole(), images, labels),
        "function": (Whole().forward, images, labels),
        "list": (clf, images, labels.tolist()),
        "int32": (clf, images, labels.int()),
        "arrays": (clf, images.numpy(), labels.numpy()),
        "other byte order": (clf, images.numpy().astype(">f4"), labels.numpy().astype(">i2")),
        "reversed twice": (clf, np.flip(np.flip(images.numpy(), 3).copy(), 3), labels),
        "radius": (clf, images, labels, 0.1),
        "text": (clf, images, labels, "0.1"),
        "fraction": (clf, images, labels, Fraction(1, 10)),
        "single": (clf, images, labels, np.float32(0.1)),
        "stored": (stored, images, labels, None),
        "channels last": (clf, images.to(memory_format=torch.channels_last), labels),
        "transposed": (clf, images.transpose(2, 3).contiguous().transpose(2, 3), labels),
    }
    # An ensemble, which takes longer, has the same door.
    kinds = ("network", "list", "arrays", "radius") if name in ("autoattack", "screen") else tuple(same)
    for kind in kinds:
        arguments = same[kind]
        torch.testing.assert_close(run(name, *arguments), expected, msg=kind, atol=1e-6, rtol=0)


@NAMES
def test_a_norm_goes_with_a_radius_in_every_spelling(case, name: str) -> None:
    clf, images, labels = case
    expected = {norm: run(name, clf, images, labels, Threat(norm, "0.1")) for norm in ("linf", "l2")}
    for norm, spelling in (("linf", "L_inf"), ("linf", math.inf), ("l2", "L2"), ("l2", 2)):
        assert torch.equal(run(name, clf, images, labels, 0.1, norm=spelling), expected[norm])
    assert torch.equal(run(name, clf, images, labels, Threat("l2", "0.1"), norm="L2"), expected["l2"])
    wrong: tuple[tuple[Any, Any, str], ...] = (
        (0.1, "l1", "unknown"),
        (THREAT, "l2", "contradicts"),
        (None, None, "none given"),
    )
    for threat, wrong_norm, message in wrong:
        with pytest.raises(ConfigError, match=message):
            run(name, clf, images, labels, threat, norm=wrong_norm)


@NAMES
def test_a_result_has_no_graph_and_the_callers_gradient_stays(case, name: str) -> None:
    clf, images, labels = case
    leaf = images.clone().requires_grad_()
    (leaf * 3).sum().backward()
    expected = run(name, clf, images, labels)
    for given in (leaf, leaf * 1):
        found = run(name, clf, given, labels)
        assert not found.requires_grad
        assert torch.equal(found, expected)
    assert leaf.grad is not None and bool((leaf.grad == 3).all())


@NAMES
def test_other_floating_point_types(case, name: str, monkeypatch) -> None:
    clf, images, labels = case
    expected = run(name, clf, images, labels)
    double = run(name, clf, images.double(), labels)
    # The result of AutoAttack is float32.
    assert double.dtype == (torch.float32 if name == "autoattack" else torch.float64)
    assert THREAT.contains(double, images.to(double)).all()
    for dtype in (torch.float64, torch.bfloat16):
        other = copy.deepcopy(clf)
        other.network.to(dtype)
        found = run(name, other, images, labels)
        assert found.dtype == torch.float32 and THREAT.contains(found, images).all()
    torch.set_default_dtype(torch.float64)
    try:
        found = run(name, clf, images, labels)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


@NAMES
def test_a_network_that_writes_on_its_input_is_attacked_as_if_it_did_not(case, name: str) -> None:
    clf, images, labels = case
    before = images.clone()
    writing = Classifier(lambda x: clf.network(x.sub_(0.5).div_(0.25)), 3)
    pure = Classifier(lambda x: clf.network((x - 0.5) / 0.25), 3)
    assert torch.equal(run(name, writing, images, labels), run(name, pure, images, labels))
    assert torch.equal(images, before)


@NAMES
def test_no_images_need_no_network(name: str) -> None:
    class Strict(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.view(len(images), -1))

    for network in (Strict(16, 3), Classifier(Strict(16, 3), 3)):
        assert run(name, network, torch.rand(0, 1, 4, 4), []).shape == (0, 1, 4, 4)


@NAMES
def test_inference_mode_does_not_matter(case, name: str) -> None:
    clf, images, labels = case
    expected = run(name, clf, images, labels)
    with torch.inference_mode():
        inside = images * 1
        assert torch.equal(run(name, clf, inside, labels), expected)
    assert torch.equal(run(name, clf, inside, labels), expected)


@NAMES
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clf": "net"}, "the network is a str"),
        ({"clf": nn.ReLU}, "the class ReLU"),
        ({"images": None}, "images: a NoneType given"),
        ({"images": [[0.5]]}, "images: a list given"),
        ({"images": np.zeros((3, 1, 4, 4), np.uint8)}, r"\.float\(\) / 255"),
        ({"images": np.full((3, 1, 4, 4), None)}, "an array of object"),
        ({"images": torch.zeros(1, 4, 4)}, r"one image: image\[None\]"),
        ({"images": torch.full((3, 1, 4, 4), torch.nan)}, "NaN"),
        ({"labels": None}, "labels: NoneType given"),
        ({"labels": ["a"] * 3}, "labels: list given"),
        ({"labels": [0.5] * 3}, "labels: list given"),
        ({"labels": [[0], [1, 2]]}, "labels: list given"),
        ({"labels": [0, 1]}, r"shape \[2\] given for 3 images"),
        ({"labels": [3] * 3}, r"values 3\.\.3, but classes are 0\.\.2"),
        ({"labels": torch.zeros(3)}, "labels: torch.float32 given"),
        ({"labels": torch.zeros(3, 3, dtype=torch.int64)}, r"labels: shape \[3, 3\]"),
        ({"labels": 2}, r"labels: shape \[\]"),
        ({"threat": -0.1}, "must be above 0"),
        ({"threat": True}, "not a number"),
        ({"threat": math.nan}, "not a number"),
        ({"threat": 8}, "8/255"),
    ],
)
def test_what_is_no_argument_is_one_line(case, name: str, change, message: str) -> None:
    clf, images, labels = case
    arguments: dict[str, Any] = {"clf": clf, "images": images, "labels": labels, "threat": THREAT} | change
    with pytest.raises(UserError, match=message) as caught:
        run(name, **arguments)
    assert "\n" not in str(caught.value)


WRONG_COUNTS = (-1, True, "x", 2.5, math.nan, math.inf, None, [3])
WRONG_LENGTHS = (-0.1, 0, "0", True, "x", math.nan, [3])
WRONG: dict[tuple[str, str], tuple[Any, ...]] = {
    ("pgd", "steps"): WRONG_COUNTS,
    ("pgd", "restarts"): (0, *WRONG_COUNTS),
    ("pgd", "step_size"): WRONG_LENGTHS,
    ("pgd", "gamma"): (True, "x", math.nan, None),
    ("pgd", "mode"): ("evaluation", None, True),
    ("pgd", "loss"): ("cw", None),
    ("pgd", "generator"): (0, "seed"),
    ("fgsm", "step_size"): WRONG_LENGTHS,
    ("he_pgd", "steps"): WRONG_COUNTS,
    ("he_pgd", "step_size"): WRONG_LENGTHS,
    ("apgd", "steps"): WRONG_COUNTS,
    ("apgd", "expectation"): (0, *WRONG_COUNTS),
    ("fab", "steps"): WRONG_COUNTS,
    ("fab", "targets"): (0, *(value for value in WRONG_COUNTS if value is not None)),
    ("square", "queries"): (0, *WRONG_COUNTS),
    ("screen", "batch_size"): (0, *WRONG_COUNTS),
    ("autoattack", "batch_size"): (0, *WRONG_COUNTS),
    ("autoattack", "seed"): (0.5, True, "x", None),
    ("autoattack", "attacks"): ([], [3], 3),
}


@pytest.mark.parametrize(("name", "argument"), list(WRONG))
def test_numbers_of_a_wrong_type_or_range_are_refused(case, name: str, argument: str) -> None:
    for value in WRONG[name, argument]:
        with pytest.raises(ConfigError, match=argument):
            run(name, *case, **{argument: value})


def test_targets_of_a_targeted_loss(case) -> None:
    for value in (0, -1, 1.5, "x"):
        with pytest.raises(ConfigError, match="targets"):
            run("apgd", *case, loss="margin-targeted", targets=value)
    with pytest.raises(ImageError, match="target_labels: list given"):
        run("pgd", *case, target_labels=["a"] * 3)


def test_numbers_of_numpy_and_lengths_as_text_are_numbers(case) -> None:
    expected = run("pgd", *case, steps=3, step_size=2 / 255)
    assert torch.equal(run("pgd", *case, steps=np.int64(3), step_size="2/255"), expected)
    assert torch.equal(run("square", *case, queries=np.int32(10)), run("square", *case))
    targets = ((case[2] + 1) % 3).tolist()
    towards = run("pgd", *case, target_labels=targets)
    assert torch.equal(towards, run("pgd", *case, target_labels=torch.tensor(targets)))


def test_a_name_alone_is_a_list_of_one_attack(case) -> None:
    expected = run("autoattack", *case, attacks=["apgd-ce"])
    assert torch.equal(run("autoattack", *case, attacks="apgd-ce"), expected)


def test_a_registered_attack_in_an_ensemble_has_its_defaults(case) -> None:
    clf, images, labels = case
    result = attacks.autoattack(clf, images, labels, THREAT, attacks=["fab"], progress=False)
    assert THREAT.contains(result.adversarial, images).all()
    assert result.work["fab"].attacked == len(images)
