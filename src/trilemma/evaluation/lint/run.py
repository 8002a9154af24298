"""Runs the lint: cheap checks that find most mistakes of a robustness evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trilemma import noise
from trilemma.attacks.arguments import AnyThreat
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.correctness import full_precision
from trilemma.classifier.wrap import (
    Images,
    Labels,
    Network,
    as_classifier,
    as_images,
    as_labels,
    on_device_of,
)
from trilemma.errors import ConfigError, ImageError
from trilemma.evaluation.lint.answers import answer_findings
from trilemma.evaluation.lint.attacks import battery_findings, run_battery
from trilemma.evaluation.lint.checks import (
    image_findings,
    logits_in_initial_modes,
    mode_findings,
    output_findings,
    training_layers,
)
from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.gradients import gradient_findings
from trilemma.evaluation.lint.layout import layout_findings
from trilemma.evaluation.lint.normalisation import normalisation_findings
from trilemma.evaluation.lint.own_attack import Attack, budget_findings, run_attack, strength_findings
from trilemma.evaluation.lint.probe import Probe
from trilemma.evaluation.lint.scale import missing_factor
from trilemma.threat import Threat
from trilemma.units import count, seed_number

# Largest number of images to check, with and without a threat.
MAX_IMAGES, MAX_IMAGES_WITHOUT_THREAT = 400, 128
# Largest number of images to attack, and to check for train mode, randomness and dependence on the batch.
MAX_ATTACKED, MAX_MODE_IMAGES = 64, 32
# Findings after which checks of the answers and attacks are skipped, as their results would be meaningless.
BLOCKING = frozenset({"range", "non-finite-outputs", "random-forward", "batch-dependence"})
# Findings about the answers after which attacks are skipped: what is correct is correct by luck.
BY_LUCK = frozenset({"one-answer", "permuted-labels", "negated-logits", "below-chance", "at-chance"})
# Those of them for which some order of the labels fits the images.
ORDERS = frozenset({"permuted-labels", "negated-logits"})


@dataclass
class Lint:
    """The result of the lint, with its cost.

    Attributes:
        findings: in the order of the checks; the first is usually the cause of the later ones.
        images: number of images checked.
        attacked: number of images attacked; 0 without a threat.
        forwards, backwards: forward and backward passes, counted per image.
    """

    findings: list[Finding] = field(default_factory=list)
    images: int = 0
    attacked: int = 0
    forwards: int = 0
    backwards: int = 0

    def record(self) -> dict[str, Any]:
        """The JSON-like record for result rows."""
        return {
            "images": self.images,
            "attacked": self.attacked,
            "forwards": self.forwards,
            "backwards": self.backwards,
            "findings": [finding.record() for finding in self.findings],
        }


@torch.inference_mode(False)
def lint(
    clf: Network,
    images: Images,
    labels: Labels,
    threat: AnyThreat = None,
    *,
    norm: Any = None,
    attack: Attack | None = None,
    seed: int = 0,
    batch_size: int = 250,
) -> list[Finding]:
    """Findings about a classifier, its images, and optionally an attack; an empty list if there are none.

    At most the first 400 images are checked (128 without a threat), and the first 64 of them attacked. Cost: about 60
    passes, forward or backward, per attacked image, at most 1,200 of Square, and 5 to 10 per image for the rest.

    Args:
        clf: a :class:`trilemma.Classifier`, or any network from images to logits; its state is restored. Its current
            train and eval modes are checked too. Images are moved to its device.
        images: ``[N, C, H, W]``, as they are passed to the classifier; they should be float32 in [0, 1].
        labels: the true classes, int64 ``[N]`` or a list or array of whole numbers.
        threat: norm and radius, or a radius such as ``8 / 255``; by default the threat stored with the classifier;
            without any, nothing is attacked.
        norm: norm of ``threat`` if that is a radius; ``"linf"`` by default.
        attack: the user's own attack to check, ``attack(clf, images, labels, threat)`` -> adversarial images.
        seed: seed of all random numbers.
        batch_size: images per forward pass.

    Returns:
        The findings, causes before consequences; their texts are in :mod:`trilemma.evaluation.lint.catalogue`.

    Raises:
        ImageError: no images, images that are not ``[N, C, H, W]``, or labels that do not fit.
        ConfigError: outputs that are not ``[N, K]``, an attack without a threat, or an invalid threat or number.
    """
    stored = clf.threat if isinstance(clf, Classifier) else None
    if attack is not None and not callable(attack):
        raise ConfigError(f"lint: attack={attack!r}; pass a function (clf, images, labels, threat) -> images")
    if threat is not None or norm is not None:
        threat = Threat.of(threat, norm, default=stored)
    elif attack is not None and stored is None:
        raise ConfigError("lint: an attack needs a threat; pass threat=trilemma.Threat(norm, radius)")
    return inspect(
        clf, as_images(images), labels, threat or stored, attack=attack,
        seed=seed_number("lint", seed), batch_size=count("lint", "batch_size", batch_size),
    ).findings  # fmt: skip


def inspect(
    clf: Network,
    images: Tensor,
    labels: Labels,
    threat: Threat | None,
    *,
    attack: Attack | None = None,
    seed: int = 0,
    batch_size: int = 250,
) -> Lint:
    """:func:`lint` with its cost; a threat stored with the classifier is not used."""
    most = MAX_IMAGES if threat is not None else MAX_IMAGES_WITHOUT_THREAT
    first = _first(images, most)
    clf = as_classifier(clf, first)
    first_labels = as_labels(labels, images, clf.num_classes)[:most]
    images = on_device_of(clf, first)
    first_labels = first_labels.to(images.device)
    devices = [clf.device] if clf.device.type == "cuda" else []
    with torch.random.fork_rng(devices), full_precision(clf.device):
        torch.manual_seed(seed)
        return _inspect(clf, images, first_labels, threat, attack, seed, batch_size)


def _first(images: Tensor, count: int) -> Tensor:
    """The first ``count`` images as float32.

    Raises:
        ImageError: no images, or not ``[N, C, H, W]``.
    """
    if images.dim() != 4 or not len(images):
        raise ImageError(f"lint: images {list(images.shape)} given; pass at least one image, [N, C, H, W]")
    # uint8 images keep the range 0..255, as the classifier would get them.
    return images[:count].float()


def _inspect(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat | None,
    attack: Attack | None,
    seed: int,
    batch_size: int,
) -> Lint:
    """Runs all checks in order."""
    findings = image_findings(images, threat)
    findings += _stored_threat_findings(clf, threat)
    one_batch = images[: min(MAX_MODE_IMAGES, batch_size)]
    layers, initial_logits = training_layers(clf), logits_in_initial_modes(clf, one_batch)
    seeds = noise.image_seeds(len(images), torch.Generator().manual_seed(seed), images.device)
    result = Lint(findings, images=len(images))
    with inner_loop(clf):
        probe = Probe(clf, images, batch_size)
        logits = probe.logits(images)
        outputs = output_findings(logits)
        outputs += mode_findings(probe, one_batch, layers, initial_logits)
        correct = logits.argmax(1) == labels
        meaningful = not BLOCKING & _names(findings + outputs)
        if "non-finite-outputs" not in _names(outputs):
            changed = normalisation_findings(probe, images, labels, correct, noise.derive(seeds, 0))
            if meaningful:
                answers, changed = _causes(probe, images, labels, logits, changed)
                findings += answers
            outputs += changed
        findings += outputs
        blocked = bool((BLOCKING | BY_LUCK) & _names(findings))
        index = correct[:MAX_ATTACKED].nonzero().squeeze(1)
        if not blocked and len(index):
            attacked = images[index], labels[index]
            gradient_seeds = noise.derive(seeds[index], 1)
            findings += gradient_findings(probe, *attacked, logits[index], gradient_seeds, threat)
            if threat is not None:
                result.attacked = len(index)
                battery = run_battery(probe, *attacked, noise.derive(seeds[index], 2), threat)
                softmax, bounded = (
                    name in _names(findings) for name in ("softmax-outputs", "bounded-outputs")
                )
                # Beside a softmax a wrong scale is nothing new.
                factor = 1.0 if softmax else missing_factor(logits, labels)
                findings += battery_findings(battery, bounded, factor)
        if attack is not None and threat is not None and "range" not in _names(findings):
            adversarial = run_attack(attack, clf, images[:MAX_ATTACKED], labels[:MAX_ATTACKED], threat)
            off_budget = budget_findings(adversarial, images[:MAX_ATTACKED], threat)
            findings += off_budget
            if result.attacked and not off_budget:
                findings += strength_findings(
                    probe, adversarial[index], *attacked, threat, battery.cross_entropy
                )
        result.forwards, result.backwards = probe.oracle.forwards, probe.oracle.backwards
    return result


def _names(findings: list[Finding]) -> set[str]:
    return {finding.name for finding in findings}


def _causes(
    probe: Probe, images: Tensor, labels: Tensor, logits: Tensor, changed: list[Finding]
) -> tuple[list[Finding], list[Finding]]:
    """Findings that explain wrong answers: either about the answers, or about changes of the images.

    Args:
        changed: :func:`normalisation_findings`.
    """
    correct = logits.argmax(1) == labels
    changed = changed or layout_findings(probe, images, labels, correct)
    answers = answer_findings(logits, labels, probe.oracle.clf.class_names)
    if not changed or not answers:
        return answers, changed
    # Changed images are the cause of what they explain, unless another order of the labels explains more images.
    by_order = answers[0].name in ORDERS and answers[0].count > int(correct.sum()) + changed[0].count
    return (answers, []) if by_order else ([], changed)


def _stored_threat_findings(clf: Classifier, threat: Threat | None) -> list[Finding]:
    """A finding if the radius is exactly twice or half the stored one, as with units of [-1, 1]; else empty."""
    stored = clf.threat
    if threat is None or stored is None or stored.norm != threat.norm:
        return []
    ratio = threat.fraction / stored.fraction
    if ratio not in (2, 1 / 2):
        return []
    factor = "twice" if ratio == 2 else "half"
    observation = (
        f"the radius {threat.radius} is exactly {factor} the one stored with the classifier, {stored.radius}"
    )
    return [Finding.from_catalogue("radius-units", observation, 0, 0)]
