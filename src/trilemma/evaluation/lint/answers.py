"""Checks of answers against labels: one answer for all, labels in another order, negated outputs, accuracy at chance.

Every check is a test against an honest classifier, which may be weak and seen on few images; none costs a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import log

import torch
from torch import Tensor

from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.probe import at_most, sign_test
from trilemma.metrics.accuracy import answered_classes, confusion, rank

# Share of the images of other classes that an honest classifier answers differently from its most frequent answer, at
# the least: where no class has the majority of the images, and where one has.
OTHERS, OTHERS_OF_MAJORITY = 0.5, 0.15
# Largest share of them, and of all images, that "one answer for every image" allows, and its significance level.
STRAY, CHANCE_ONE = 0.05, 0.01
# Classes that are never answered are a finding if they are many and half of all, or if the mean recall of the others is
# high, and if they have this many images: networks of little training miss a few classes. Smallest recall that is
# expected of each class.
MANY, GOOD_RECALL, MISSED_IMAGES, LEAST_RECALL = 3, 0.9, 20, 0.1
# They are also one if this share of their own images ranks them last, with at least so many images, and so many classes
# for each that is never answered.
LAST_SHARE, LAST_OF_IMAGES, LAST_OF_CLASSES = 0.9, 5, 3
# Significance level of the other checks.
CHANCE = 1e-3
# A new order of the labels must fit this share of its images, and twice as many as the labels as they are.
FITS = 1 / 3
# Accuracy that an honest classifier exceeds, on the way from that of answers independent of the labels to 1.
LEARNT = 0.15
# Number of classes that an observation names.
NAMED = 5


def answer_findings(logits: Tensor, labels: Tensor, class_names: Sequence[str]) -> list[Finding]:
    """At most one finding about the classes that are answered; the first check that applies is the cause of the others.

    Args:
        logits: finite, ``[N, K]``, N at least 1.
        labels: int64 ``[N]``.
        class_names: K names.
    """
    if logits.shape[1] < 2:
        return []
    logits, labels = logits.cpu(), labels.cpu()
    answers = answered_classes(logits)
    matrix = confusion(answers, labels, logits.shape[1])
    finding = (
        _one_answer(logits, answers, labels, class_names)
        or _other_order(logits, matrix, labels, class_names)
        or _few_answers(logits, matrix, labels, class_names)
        or _no_better_than_chance(matrix)
    )
    return [] if finding is None else [finding]


def _one_answer(logits: Tensor, answers: Tensor, labels: Tensor, names: Sequence[str]) -> Finding | None:
    top = int(answers.bincount().argmax())
    others = labels != top
    count, differently = int(others.sum()), int((answers[others] != top).sum())
    same = int((answers == top).sum())
    expected = OTHERS if 2 * count >= len(labels) else OTHERS_OF_MAJORITY
    if max(differently / max(count, 1), 1 - same / len(labels)) > STRAY:
        return None
    if at_most(differently, count, expected) >= CHANCE_ONE:
        return None
    everything = "every image is" if same == len(labels) else f"{same} of {len(labels)} images are"
    share = float((labels == top).double().mean())
    observation = f"{everything} answered {names[top]}, which {share:.1%} of the images are"
    if bool((logits == logits[:, :1]).all()):
        observation += "; the outputs of all classes are equal, and the first class wins a tie"
    elif len(logits) > 1 and bool((logits == logits[:1]).all()):
        observation += "; the outputs do not depend on the image"
    return Finding.from_catalogue("one-answer", observation, same, len(labels))


def _few_answers(logits: Tensor, matrix: Tensor, labels: Tensor, names: Sequence[str]) -> Finding | None:
    """A finding if more classes are never answered than recalls well below those of the other classes explain."""
    counts = matrix.sum(1)
    present = counts.nonzero().squeeze(1)
    missing = present[matrix.sum(0)[present] == 0]
    answered = present[matrix.sum(0)[present] > 0]
    if not len(missing) or not len(answered):
        return None
    recall = float((matrix.diagonal()[answered] / counts[answered]).double().mean())
    images = int(counts[missing].sum())
    half = len(missing) >= MANY and 2 * len(missing) >= len(present)
    expected = max(LEAST_RECALL, recall**2 / 2)
    improbable = _at_least(len(missing), (1 - expected) ** counts[present].double()) < CHANCE
    many = (half or recall >= GOOD_RECALL) and images >= MISSED_IMAGES
    if not (many and improbable) and not _ranked_last(logits, labels, missing):
        return None
    observation = (
        f"{len(missing)} of the {len(present)} classes of these images are never answered: "
        f"{_listed([names[k] for k in missing.tolist()])}"
    )
    return Finding.from_catalogue("few-answers", observation, images, int(counts.sum()))


def _ranked_last(logits: Tensor, labels: Tensor, classes: Tensor) -> bool:
    """Whether nearly all images of these classes rank them behind all other classes."""
    own = torch.isin(labels, classes)
    if int(own.sum()) < LAST_OF_IMAGES or logits.shape[1] < LAST_OF_CLASSES * len(classes):
        return False
    last = rank(logits[own], labels[own]) >= logits.shape[1] - len(classes)
    return float(last.double().mean()) >= LAST_SHARE


def _at_least(count: int, probabilities: Tensor) -> float:
    """The probability that at least ``count`` of independent events happen, which have these ``probabilities``."""
    distribution = torch.zeros(len(probabilities) + 1, dtype=torch.float64)
    distribution[0] = 1
    for probability in probabilities.tolist():
        shifted = distribution.roll(1)
        shifted[0] = 0
        distribution = distribution * (1 - probability) + shifted * probability
    return float(distribution[count:].sum())


def _other_order(logits: Tensor, matrix: Tensor, labels: Tensor, names: Sequence[str]) -> Finding | None:
    """A finding if the labels in another order, or the smallest output, fit far more of the images."""
    count = len(labels)
    candidates = [*_known_orders(matrix), *_permutations(matrix, names)]
    if matrix.shape[0] > 2:
        smallest, largest = logits.argmin(1) == labels, logits.argmax(1) == labels
        if _fits(int((smallest & ~largest).sum()), int((largest & ~smallest).sum()), count, 0.0):
            observation = "the smallest output, not the largest, is that of the true class"
            candidates.append(("negated-logits", observation, int(smallest.sum()), count))
    if not candidates:
        return None
    name, observation, fitting, of = max(candidates, key=lambda candidate: candidate[2])
    return Finding.from_catalogue(name, observation, fitting, of)


Candidate = tuple[str, str, int, int]


def _known_orders(matrix: Tensor) -> Iterator[Candidate]:
    """Mistakes that move all labels by one rule: shifted by a number, or sorted as text instead of as numbers."""
    classes, count, right = len(matrix), int(matrix.sum()), int(matrix.diagonal().sum())
    if classes < 3:
        return
    number = torch.arange(classes)
    shift = (number[None] - number[:, None]) % classes
    by_shift = torch.zeros(classes, dtype=torch.int64).index_add(0, shift.flatten(), matrix.flatten())
    best = int(by_shift[1:].argmax()) + 1
    sign, size = ("+", best) if 2 * best <= classes else ("-", classes - best)
    rules = [(f"the answer is the label {sign} {size} (modulo {classes})", int(by_shift[best]))]
    if classes > 10:
        as_text = torch.tensor(sorted(range(classes), key=str))
        rules.append(("class numbers are sorted as text in the labels", int(matrix[number, as_text].sum())))
        rules.append(("class numbers are sorted as text in the outputs", int(matrix[as_text, number].sum())))
    for observation, fitting in rules:
        if _fits(fitting, right, count, log(classes + 2)):
            yield "permuted-labels", f"on most images {observation}", fitting, count


def _permutations(matrix: Tensor, names: Sequence[str]) -> Iterator[Candidate]:
    """Classes that are answered with each other's names: each is the most frequent answer of exactly one other."""
    counts = matrix.sum(1)
    present = counts.nonzero().squeeze(1).tolist()
    answer, source = matrix.argmax(1).tolist(), matrix.argmax(0).tolist()
    moved = {k: answer[k] for k in present if answer[k] != k and source[answer[k]] == k}
    # A class may only take the name of one that is itself answered differently, or has no images.
    while wrong := [k for k, other in moved.items() if counts[other] and other not in moved]:
        for k in wrong:
            del moved[k]
    within = set(moved.values()) <= set(moved)
    if not moved or (not within and (len(moved) < MANY or 3 * len(moved) < 2 * len(present))):
        return
    rows = torch.tensor([*moved])
    fitting = int(matrix[rows, torch.tensor([*moved.values()])].sum())
    right, count = int(matrix[rows, rows].sum()), int(counts[rows].sum())
    if not _fits(fitting, right, count, len(moved) * log(len(matrix))):
        return
    pairs = list(moved.items())
    swapped = all(moved.get(other) == k for k, other in pairs)
    if swapped:
        pairs = [(k, other) for k, other in pairs if k < other]
        texts = [f"{names[k]} and {names[other]} are answered with each other's name" for k, other in pairs]
    else:
        texts = [f"{names[k]} is answered {names[other]}" for k, other in pairs]
    yield "swapped-classes" if swapped else "permuted-labels", _listed(texts), fitting, count


def _fits(fitting: int, right: int, count: int, tried: float) -> bool:
    """Whether labels that fit ``fitting`` of ``count`` images instead of ``right`` are clearly the better ones.

    Args:
        tried: natural logarithm of the number of orders that were tried.
    """
    if fitting < max(FITS * count, 2 * right, 1):
        return False
    return log(max(sign_test(fitting, right), 1e-300)) + tried < log(CHANCE)


def _no_better_than_chance(matrix: Tensor) -> Finding | None:
    """A finding if accuracy is clearly below, or not above, that of answers that do not depend on the image."""
    count, right = int(matrix.sum()), int(matrix.diagonal().sum())
    independent = float((matrix.sum(1).double() @ matrix.sum(0).double()) / count**2)
    if 2 * right < independent * count and at_most(right, count, independent) < CHANCE:
        name, relation = "below-chance", "far below"
    elif (
        at_most(count - right, count, 1 - independent) > 0.05
        and at_most(right, count, independent + LEARNT * (1 - independent)) < CHANCE
    ):
        name, relation = "at-chance", "not above"
    else:
        return None
    observation = (
        f"{right / count:.1%} of the images are classified correctly, {relation} the {independent:.1%} of the same "
        "answers in random order"
    )
    return Finding.from_catalogue(name, observation, count - right, count)


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return ", ".join(texts[:NAMED]) + more
