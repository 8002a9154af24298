"""Degenerate classifiers and labels of another order are named, weak but honest classifiers are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trilemma import Classifier
from trilemma.evaluation.lint import lint
from trilemma.evaluation.lint.answers import answer_findings


def findings(logits: Tensor, labels: Tensor):
    return answer_findings(logits, labels, [f"class-{k}" for k in range(logits.shape[1])])


def answering(answers: Tensor, classes: int = 10, seed: int = 0) -> Tensor:
    """Logits with their maximum at ``answers`` and noise below it."""
    noise = torch.rand(len(answers), classes, generator=torch.Generator().manual_seed(seed))
    return noise + 2 * torch.nn.functional.one_hot(answers, classes)


def weak(labels: Tensor, accuracy: float, classes: int, seed: int) -> Tensor:
    """Answers that are right with this probability, and otherwise those of classes as frequent as in ``labels``."""
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(len(labels), generator=generator) < accuracy
    others = labels[torch.randint(len(labels), (len(labels),), generator=generator)]
    return torch.where(right, labels, others)


LABELS = torch.arange(200) % 10


@pytest.mark.parametrize(
    ("logits", "words"),
    [
        (torch.zeros(200, 10), "every image is answered class-0, which 10.0% of the images are; the outputs of all"),
        (torch.full((200, 10), 0.1), "a tie"),
        (torch.arange(10.0).expand(200, -1), "class-9, which 10.0% of the images are; the outputs do not depend on"),
        (answering(torch.full((200,), 3)), "every image is answered class-3, which 10.0% of the images are"),
        (answering(torch.cat([torch.tensor([1, 2]), torch.full((198,), 3)])), "198 of 200 images are answered class-3"),
    ],
)  # fmt: skip
def test_one_answer_for_all(logits, words):
    (finding,) = findings(logits, LABELS)
    assert (finding.name, finding.severity, finding.of) == ("one-answer", "error", 200)
    assert words in finding.seen


def test_one_answer_on_twelve_images_of_three_classes():
    (finding,) = findings(answering(torch.ones(12, dtype=torch.int64), 3), torch.arange(12) % 3)
    assert (finding.name, finding.count) == ("one-answer", 12)


def test_few_answers():
    (finding,) = findings(answering(LABELS % 2), LABELS)
    assert finding.name == "few-answers"
    assert finding.seen.startswith(
        "8 of the 10 classes of these images are never answered: class-2, class-3, "
    )
    (finding,) = findings(answering(torch.where(LABELS == 7, 1, LABELS)), LABELS)
    assert finding.seen == "1 of the 10 classes of these images are never answered: class-7"
    assert (finding.count, finding.of) == (20, 200)


@pytest.mark.parametrize("accuracy", [1.0, 0.6])
@pytest.mark.parametrize(
    ("name", "order", "words"),
    [
        ("permuted-labels", [3, 1, 4, 7, 5, 9, 2, 6, 8, 0], "class-0 is answered class-3"),
        ("permuted-labels", [*range(1, 10), 0], "the answer is the label + 1 (modulo 10)"),
        ("permuted-labels", [8, 9, *range(8)], "the answer is the label - 2 (modulo 10)"),
        ("permuted-labels", [0, 2, 3, 1, *range(4, 10)], "class-1 is answered class-2, class-2 is answered class-3, "),
        ("swapped-classes", [0, 1, 2, 5, 4, 3, *range(6, 10)], "class-3 and class-5 are answered with each other's"),
        ("swapped-classes", [1, 0, 3, 2, *range(4, 10)], "class-0 and class-1 are answered with each other's name, "),
    ],
)  # fmt: skip
def test_labels_of_another_order(name, order, words, accuracy):
    labels = torch.arange(400) % 10
    answers = torch.tensor(order)[weak(labels, accuracy, 10, 0)]
    (finding,) = findings(answering(answers), labels)
    assert (finding.name, finding.severity) == (name, "error")
    assert words in finding.seen


def test_class_numbers_sorted_as_text():
    labels = torch.arange(360) % 12
    as_text = torch.tensor(sorted(range(12), key=str))
    for answers, words in ((as_text[labels], "in the labels"), (as_text.argsort()[labels], "in the outputs")):
        (finding,) = findings(answering(answers, 12), labels)
        assert finding.name == "permuted-labels"
        assert f"sorted as text {words}" in finding.seen


def test_labels_of_a_network_with_more_classes():
    """Ten classes of a network of 1,000, numbered 0 to 9 in the data."""
    own = torch.tensor([0, 217, 482, 491, 497, 566, 569, 571, 574, 701])
    (finding,) = findings(answering(own[LABELS], 1000), LABELS)
    assert finding.name == "permuted-labels"
    assert finding.seen.startswith("class-1 is answered class-217, class-2 is answered class-482")


def test_one_image_of_each_of_200_classes_in_another_order():
    labels = torch.arange(200)
    for answers in ((labels + 1) % 200, labels.flip(0)):
        (finding,) = findings(answering(answers, 200), labels)
        assert finding.name == ("permuted-labels" if answers[0] == 1 else "at-chance")


def test_negated_outputs():
    (finding,) = findings(-answering(LABELS), LABELS)
    assert (finding.name, finding.count) == ("negated-logits", 200)
    (finding,) = findings(-answering(LABELS % 2, 2), LABELS % 2)
    assert finding.name == "swapped-classes"
    assert "negated" in finding.means


def test_accuracy_below_and_at_chance():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(400) % 10
    shuffled = labels[torch.randperm(400, generator=generator)]
    (finding,) = findings(answering(shuffled), labels)
    assert (finding.name, finding.severity) == ("at-chance", "warning")
    other = (labels + torch.randint(1, 10, (400,), generator=generator)) % 10
    (finding,) = findings(answering(other), labels)
    assert finding.name == "below-chance"
    assert finding.seen.startswith("0.0% of the images are classified correctly, far below the 10.0%")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("accuracy", [0.3, 0.5])
def test_weak_but_honest_answers(accuracy, seed):
    """Few images, two classes, imbalanced classes, many classes with an image each: always the same accuracy."""
    generator = torch.Generator().manual_seed(seed)
    imbalanced = torch.multinomial(0.5 ** torch.arange(10.0), 400, True, generator=generator)
    for labels, classes in (
        *((torch.arange(count) % 10, 10) for count in (10, 20, 40, 100, 400)),
        *((torch.arange(count) % 2, 2) for count in (10, 40, 400)),
        *((imbalanced[:count], 10) for count in (10, 40, 400)),
        ((imbalanced > 2).long(), 2),
        (torch.arange(200), 200),
        (torch.arange(50) % 5, 1000),
        (torch.full((50,), 3), 10),
    ):
        assert findings(answering(weak(labels, accuracy, classes, seed), classes), labels) == []


def test_a_linear_network_with_a_large_bias_answers_one_class(digits, around):
    """Not hidden gradients: what follows from the bias is not said."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = nn.Linear(64, 10)
    linear.bias.data[4] = 1000.0
    clf = Classifier(nn.Sequential(nn.Flatten(), linear)).eval()
    found = lint(clf, digits[0], digits[1], threat=clf.threat)
    assert [finding.name for finding in found] == ["one-answer"]


def test_causes_come_first(standard, few, digits, around):
    """A case of each kind on a trained network, with attacks."""
    images, labels = digits
    constant = around(standard, after=lambda z: 0 * z + 0.1)
    assert [f.name for f in lint(constant, *few)] == ["one-answer", "softmax-outputs"]
    assert [f.name for f in lint(standard, images, (labels + 1) % 10)] == ["permuted-labels"]
    assert [f.name for f in lint(around(standard, after=lambda z: -z), *few)] == ["negated-logits"]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("orientation", lambda x: x.flip(2), "flipped top to bottom"),
        ("orientation", lambda x: x.rot90(1, (2, 3)), "rotated by 90 degrees to the right"),
        ("inverted-images", lambda x: 1 - x, "light and dark exchanged"),
    ],
)
def test_images_in_another_layout(name, change, words, robust, few, around):
    found = lint(around(robust, change), *few)
    assert found[0].name == name
    assert words in found[0].seen
    assert not {f.name for f in found} & {"at-chance", "below-chance", "permuted-labels", "normalisation"}


class Coloured(nn.Module):
    """Class k (of 3) is the images whose channel k is the brightest."""

    def forward(self, images: Tensor) -> Tensor:
        return 20 * images.mean((2, 3))


def test_channels_in_reverse_order():
    labels = torch.arange(90) % 3
    images = 0.5 + 0.1 * torch.rand(90, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images[torch.arange(90), labels] += 0.1
    clf = Classifier(Coloured(), 3).eval()
    assert lint(clf, images, labels) == []
    assert [finding.name for finding in lint(clf, images.flip(1), labels)] == ["channel-order"]
