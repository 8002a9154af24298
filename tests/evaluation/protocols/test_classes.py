"""Protocols ``classes`` and ``top:K``, and the key ``chance`` of every row, on answers that are known beforehand."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

import trilemma
from trilemma.errors import ConfigError
from trilemma.evaluation.protocols.classes import classes_measurement
from trilemma.metrics.accuracy import answered_classes, chance, confusion, rank, wilson_interval


class Given(nn.Module):
    """Returns the given logits of image i, whose pixels hold ``i / 1000``."""

    given: Tensor

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("given", logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.given[(images[:, 0, 0, 0] * 1000).round().long()]


def given(logits: Tensor, names: list[str] | None = None) -> trilemma.Classifier:
    return trilemma.Classifier(Given(logits), logits.shape[1], class_names=names).eval()


def pictures(count: int) -> Tensor:
    return (torch.arange(count) / 1000).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
ANSWERS = torch.tensor([0, 0, 0, 1, 1, 0, 0, 0])


def test_a_row_of_classes_that_can_be_computed_by_hand():
    clf = given(torch.eye(4)[ANSWERS], ["ant", "bee", "cow", "dog"])
    row = trilemma.evaluate(clf, (pictures(8), LABELS), ["classes"], lint=False)["classes"]
    # Class 3 has no images and does not count.
    assert row["value"] == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert (row["quantity"], row["better"], row["version"]) == ("balanced accuracy", "higher", 1)
    assert row["chance"] == pytest.approx(1 / 3)
    assert row["also"] == {"worst class": 0.0, "accuracy": 0.5}
    facts = row["facts"]
    assert facts["confusion"] == [[3, 1, 0, 0], [1, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]]
    assert facts["class_names"] == ["ant", "bee", "cow", "dog"]
    assert facts["per_class"][0] == {
        "class": 0, "value": 0.75, "lower": wilson_interval(3, 4)[0], "upper": wilson_interval(3, 4)[1], "count": 4,
    }  # fmt: skip
    assert [found["class"] for found in facts["per_class"]] == [0, 1, 2]
    assert facts["most_confused"][0] == {"true": 2, "answer": 0, "count": 2}
    assert facts["note"] == "lowest: cow 0.0% of 2, bee 50.0% of 2, ant 75.0% of 4"


def test_one_answer_for_all_gets_the_chance_level_of_every_row():
    clf = given(torch.tensor([[2.0, 1.0, 0.0]]).repeat(8, 1))
    rows = trilemma.evaluate(clf, (pictures(8), LABELS), ["clean", "classes", "top:2", "ece"], lint=False)
    assert (rows["clean"]["value"], rows["clean"]["chance"]) == (0.5, 0.5)
    assert rows["classes"]["value"] == rows["classes"]["chance"] == pytest.approx(1 / 3)
    assert rows["top:2"]["value"] == rows["top:2"]["chance"] == 0.75
    assert rows["ece"]["chance"] is None


def test_an_image_without_finite_logits_has_no_answer():
    logits = torch.eye(3)[ANSWERS]
    logits[0, 2] = torch.nan
    assert answered_classes(logits).tolist() == [-1, *ANSWERS.tolist()[1:]]
    row = trilemma.evaluate(given(logits), (pictures(8), LABELS), ["classes", "top:2"], lint=False)
    assert row["classes"]["facts"]["not_finite"] == 1
    assert row["classes"]["facts"]["confusion"][0] == [2, 1, 0]
    assert row["classes"]["facts"]["per_class"][0]["value"] == 0.5
    assert row["top:2"]["value"] == 5 / 8


def test_many_classes_keep_the_row_small():
    labels = torch.arange(1000).repeat_interleave(2)
    answers = labels.clone()
    answers[labels < 150] = 999
    facts = classes_measurement(answers, labels, [str(k) for k in range(1000)]).facts
    assert "confusion" not in facts
    assert [found["class"] for found in facts["per_class"]] == list(range(100))
    assert facts["most_confused"][0] == {"true": 0, "answer": 999, "count": 2}
    assert len(json.dumps(facts)) < 40_000


def test_top_1_is_clean_and_ranks_follow_a_sort():
    logits = torch.randn(200, 7, generator=torch.Generator().manual_seed(0)).round()
    labels = torch.arange(200) % 7
    order = logits.argsort(dim=1, descending=True, stable=True)
    assert torch.equal(rank(logits, labels), (order == labels[:, None]).int().argmax(1))
    rows = trilemma.evaluate(given(logits), (pictures(200), labels), ["clean", "top:1", "top:3"], lint=False)
    assert rows["top:1"]["value"] == rows["clean"]["value"] < rows["top:3"]["value"]
    assert rows["top:1"]["chance"] == rows["clean"]["chance"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("top:0", "top:0: K must be a whole number of at least 1, as in top:5"),
        ("top:-1", "K must be"),
        ("top:05", "K must be"),
        ("top:2.5", "K must be"),
        ("top:five", "K must be"),
        ("top:3", "top:3: every answer is right for 3 classes"),
    ],
)
def test_a_wrong_k_is_one_line(name, message):
    with pytest.raises(ConfigError, match=message):
        trilemma.evaluate(given(torch.eye(3)), (pictures(3), torch.arange(3)), [name])


def test_chance_and_confusion_count():
    assert chance(torch.tensor([5, 5, 1, 0])) == 0.5
    assert chance(torch.tensor([5, 5, 1, 0]), 2) == 0.75
    assert chance(torch.tensor([5, 5, 1, 0]), 9) == 1.0
    assert confusion(torch.tensor([1, -1]), torch.tensor([0, 0]), 2).tolist() == [[0, 1], [0, 0]]
