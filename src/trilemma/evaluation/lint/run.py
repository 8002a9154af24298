"""The lint: cheap checks that find most mistakes of an evaluation before its figures are believed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trilemma import noise
from trilemma.classifier.classifier import Classifier, check_labels
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.correctness import full_precision
from trilemma.errors import ConfigError, ImageError
from trilemma.evaluation.lint.attacks import battery_findings, run_battery
from trilemma.evaluation.lint.checks import (
    image_findings,
    mode_findings,
    output_findings,
    outputs_as_handed_in,
    training_layers,
)
from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.gradients import gradient_findings
from trilemma.evaluation.lint.normalisation import normalisation_findings
from trilemma.evaluation.lint.own_attack import Attack, budget_findings, run_attack, strength_findings
from trilemma.evaluation.lint.probe import Probe
from trilemma.threat import Threat

# Images looked at with and without a threat; those that are also attacked; those for modes and luck.
LOOKED_AT, WITHOUT_THREAT, ATTACKED, MODES = 400, 128, 64, 32
# With one of these an attack's verdict means nothing.
BLOCKING = frozenset({"range", "non-finite-outputs", "random-forward", "batch-dependence"})


@dataclass
class Lint:
    """What the lint found, and on how much.

    Attributes:
        findings: in the order of the checks; the first is usually the cause of the later ones.
        images: how many were looked at; ``attacked``: how many of them by attacks, 0 without a threat.
        forwards, backwards: passes of one image each.
    """

    findings: list[Finding] = field(default_factory=list)
    images: int = 0
    attacked: int = 0
    forwards: int = 0
    backwards: int = 0

    def record(self) -> dict[str, Any]:
        """JSON-like, as rows hold it."""
        return {
            "images": self.images,
            "attacked": self.attacked,
            "forwards": self.forwards,
            "backwards": self.backwards,
            "findings": [finding.record() for finding in self.findings],
        }


def lint(
    clf: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: Threat | None = None,
    *,
    attack: Attack | None = None,
    seed: int = 0,
    batch_size: int = 250,
) -> list[Finding]:
    """Suspicions about a classifier, its images, and perhaps an attack; an empty list if there are none.

    At most the first 400 images are looked at (128 without a threat), the first 64 of them by attacks: about 60 passes,
    forward or backward, per attacked image, 1,200 of Square at most, and 5 to 10 per image of the others.

    Args:
        clf: a :class:`trilemma.Classifier`, or any network from images to logits; left exactly as it was, and looked
            at in the modes it comes in. It works on its own device.
        images: ``[N, C, H, W]``, as the classifier will be given them; they should be float32 in [0, 1].
        labels: int64 ``[N]``.
        threat: by default the one stored with the classifier; without any, nothing is attacked.
        attack: the user's own, ``attack(clf, images, labels, threat)`` to adversarial images; is put to the test too.
        seed: of every random number.
        batch_size: images at a time.

    Returns:
        Findings by cause first; their texts are in :mod:`trilemma.evaluation.lint.catalogue`.

    Raises:
        ImageError: no images, not ``[N, C, H, W]``, or labels that do not fit.
        ConfigError: outputs that are not ``[N, K]``, or an attack without a threat.
    """
    stored = clf.threat if isinstance(clf, Classifier) else None
    if attack is not None and threat is None and stored is None:
        raise ConfigError("lint: an attack needs a threat; pass threat=trilemma.Threat(norm, radius)")
    return inspect(
        clf, images, labels, threat or stored, attack=attack, seed=seed, batch_size=batch_size
    ).findings


def inspect(
    clf: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: Threat | None,
    *,
    attack: Attack | None = None,
    seed: int = 0,
    batch_size: int = 250,
) -> Lint:
    """:func:`lint` with its work counts; without a threat nothing is attacked, whatever is stored."""
    images, labels = _some(images, labels, LOOKED_AT if threat is not None else WITHOUT_THREAT)
    clf = _as_classifier(clf, images)
    images, labels = images.to(clf.device), labels.to(clf.device)
    check_labels(labels, images, clf.num_classes)
    devices = [clf.device] if clf.device.type == "cuda" else []
    with torch.random.fork_rng(devices), full_precision(clf.device):
        torch.manual_seed(seed)
        return _inspect(clf, images, labels, threat, attack, seed, batch_size)


def _some(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    if not isinstance(images, Tensor) or images.dim() != 4 or not len(images):
        given = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ImageError(f"lint: images {given} given; pass at least one, [N, C, H, W]")
    # uint8 images stay in 0..255: as the classifier would be given them
    return images[:count].float(), labels[:count]


def _as_classifier(network: nn.Module, images: Tensor) -> Classifier:
    """The network itself if it is a :class:`Classifier`, else one around it with as many classes as it has outputs."""
    if isinstance(network, Classifier):
        return network
    wrapped = Classifier(network)
    with torch.no_grad(), inner_loop(wrapped):
        outputs = network(images[:1].to(wrapped.device))
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        kind = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ConfigError(f"lint: the network returned {kind}; return logits [N, K]")
    wrapped = Classifier(network, outputs.shape[1])
    wrapped.training = network.training
    return wrapped


def _inspect(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat | None,
    attack: Attack | None,
    seed: int,
    batch_size: int,
) -> Lint:
    found = image_findings(images, threat)
    found += _stored_threat_findings(clf, threat)
    one_batch = images[: min(MODES, batch_size)]
    layers, handed_in = training_layers(clf), outputs_as_handed_in(clf, one_batch)
    seeds = noise.image_seeds(len(images), torch.Generator().manual_seed(seed), images.device)
    result = Lint(found, images=len(images))
    with inner_loop(clf):
        probe = Probe(clf, images, batch_size)
        logits = probe.logits(images)
        found += output_findings(logits)
        found += mode_findings(probe, one_batch, layers, handed_in)
        right = logits.argmax(1) == labels
        if "non-finite-outputs" not in _names(found):
            found += normalisation_findings(probe, images, labels, right, noise.derive(seeds, 0))
        blocked = bool(BLOCKING & _names(found))
        rows = right[:ATTACKED].nonzero().squeeze(1)
        if not blocked and len(rows):
            some = images[rows], labels[rows]
            found += gradient_findings(probe, *some, logits[rows], noise.derive(seeds[rows], 1), threat)
            if threat is not None:
                result.attacked = len(rows)
                battery = run_battery(probe, *some, noise.derive(seeds[rows], 2), threat)
                found += battery_findings(battery)
        if attack is not None and threat is not None and "range" not in _names(found):
            reached = run_attack(attack, clf, images[:ATTACKED], labels[:ATTACKED], threat)
            off = budget_findings(reached, images[:ATTACKED], threat)
            found += off
            if result.attacked and not off:
                found += strength_findings(probe, reached[rows], *some, threat, battery.cross_entropy)
        result.forwards, result.backwards = probe.oracle.forwards, probe.oracle.backwards
    return result


def _names(found: list[Finding]) -> set[str]:
    return {finding.name for finding in found}


def _stored_threat_findings(clf: Classifier, threat: Threat | None) -> list[Finding]:
    """A radius of exactly twice or half the stored one looks like units of [-1, 1]."""
    stored = clf.threat
    if threat is None or stored is None or stored.norm != threat.norm:
        return []
    ratio = threat.fraction / stored.fraction
    if ratio not in (2, 1 / 2):
        return []
    times = "twice" if ratio == 2 else "half"
    seen = (
        f"the radius {threat.radius} is exactly {times} the one stored with the classifier, {stored.radius}"
    )
    return [Finding.known("radius-units", seen, 0, 0)]
