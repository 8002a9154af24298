"""What the page computes: an attack, chains, a counterfactual, and the plane of the energies. No gradio here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from trilemma import energies
from trilemma.attacks.counterfactual import distances
from trilemma.attacks.preset import find_attack, run_preset
from trilemma.classifier.classifier import Classifier
from trilemma.config.chains import choose_chain
from trilemma.config.presets import DIAGNOSE, Preset, find_preset
from trilemma.config.registry import ATTACKS
from trilemma.demo.subject import Subject
from trilemma.errors import ConfigError, ImageError, UnknownNameError
from trilemma.evaluation.chain_record import ChainRecord, ChainRecorder, recorded_steps
from trilemma.evaluation.counterfactual import counterfactual as move
from trilemma.evaluation.counterfactual_result import Counterfactuals
from trilemma.evaluation.diagnose import landscape
from trilemma.evaluation.predict import eval_logits
from trilemma.metrics.energy_landscape import EnergyPoints, energy_points
from trilemma.samplers.generate import generate as sample
from trilemma.samplers.generate import stored_pca
from trilemma.samplers.guidance import with_statistics
from trilemma.threat import Threat
from trilemma.units import count

# Parameters of attacks that a number of steps stands for.
STEP_PARAMETERS = ("steps", "queries")
# Live images of a chain.
FRAMES = 40
# Images of the way of a counterfactual.
WAY_FRAMES = 8
# Limits of fields: images of one class, steps or queries, images per cloud of the plane.
MOST_IMAGES, MOST_STEPS, MOST_POINTS = 64, 5000, 500
# The attack whose images are the adversarial cloud of the plane.
PLANE_ATTACK = "pgd"


@dataclass(frozen=True)
class Chosen:
    """The image that a user works on.

    Attributes:
        pixels: float32 ``[C, H, W]`` in [0, 1].
        label: the true class; ``None`` if unknown.
        note: where it comes from, as a sentence.
    """

    pixels: Tensor
    label: int | None
    note: str


@dataclass(frozen=True)
class Answer:
    """What the classifier says of one image: predicted class, its confidence in [0, 1], E(x), and E(x, y)."""

    label: int
    confidence: float
    marginal: float
    joint: float

    @property
    def point(self) -> EnergyPoints:
        """The energies as one point of the plane."""
        return EnergyPoints(torch.tensor([self.marginal]), torch.tensor([self.joint]))


def answers(clf: Classifier, images: Tensor, labels: Tensor | None = None) -> list[Answer]:
    """The answers for images ``[N, C, H, W]``; ``labels`` int64 ``[N]`` are the y of E(x, y), else the predictions."""
    logits = eval_logits(clf, images)
    confidence, predicted = logits.softmax(1).max(1)
    joint = energies.joint_energy(logits, predicted if labels is None else labels)
    columns = (predicted, confidence, energies.marginal_energy(logits), joint)
    return [Answer(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def require_image(chosen: Chosen | None) -> Chosen:
    """Returns the chosen image.

    Raises:
        ImageError: none is chosen.
    """
    if chosen is None:
        raise ImageError("no image chosen; click a test image above, or upload one")
    return chosen


def attack_names() -> list[str]:
    """The attacks that return images: registered ones, and presets of ``trilemma diagnose``; ``pgd`` first."""
    names = []
    for name in dict.fromkeys([PLANE_ATTACK, *ATTACKS.names(), *DIAGNOSE]):
        try:
            find_preset(DIAGNOSE, name, "demo")
        except UnknownNameError:
            continue
        names.append(name)
    return names


@dataclass(frozen=True)
class Attacked:
    """An attacked image.

    Attributes:
        original, adversarial: float32 ``[C, H, W]`` in [0, 1].
        label: the class that the attack leads away from, the y of both answers.
        before, after: answers for both images.
        distance: of both images in the norm, pixel units.
        attack: its name and number of steps, as text.
    """

    original: Tensor
    adversarial: Tensor
    label: int
    before: Answer
    after: Answer
    distance: float
    threat: Threat
    attack: str


def attack(
    subject: Subject,
    chosen: Chosen | None,
    norm: str,
    radius: str,
    name: str = PLANE_ATTACK,
    steps: float | None = 20,
    seed: int = 0,
) -> Attacked:
    """Attacks the chosen image, away from its true class, or from the predicted one if that is unknown.

    Args:
        subject: the classifier.
        chosen: the image.
        norm, radius: of the threat.
        name: an attack of :func:`attack_names`.
        steps: steps or queries, of attacks that have any.
        seed: of random starts.

    Raises:
        UserError: no image, an invalid radius or number, or an unknown attack.
    """
    image = require_image(chosen).pixels[None]
    threat = Threat(norm, radius)
    steps = _count("steps", steps, 1, MOST_STEPS)
    preset = find_preset(DIAGNOSE, name, "demo")
    taken = next((key for key in STEP_PARAMETERS if key in signature(find_attack(preset)).parameters), None)
    if taken is not None:
        preset = Preset(preset.attack, {**preset.settings, taken: steps}, preset.about, preset.aim)
    clf = subject.clf
    (clean,) = answers(clf, image)
    label = clean.label if require_image(chosen).label is None else require_image(chosen).label
    assert label is not None
    labels = torch.tensor([label])
    generator = torch.Generator().manual_seed(seed)
    adversarial = run_preset(
        preset, clf, image.to(clf.device), labels.to(clf.device), threat, generator
    ).cpu()
    (before,), (after,) = answers(clf, image, labels), answers(clf, adversarial, labels)
    distance = float(distances(adversarial, image, threat.norm))
    text = f"{name} with its own number of steps" if taken is None else f"{name}, {steps} {taken}"
    return Attacked(image[0], adversarial[0], label, before, after, distance, threat, text)


@dataclass(frozen=True)
class Frame:
    """Chains after some steps: ``images [N, C, H, W]`` on the CPU and their joint energies ``[N]``."""

    step: int
    steps: int
    images: Tensor
    joint: Tensor


@dataclass(frozen=True)
class Generated:
    """Chains of one class.

    Attributes:
        label: the class.
        images: the last images, float32 ``[N, C, H, W]``.
        answers: of the last images, with E(x, y) of the class.
        chains: all chains at some steps.
        joint: E(x, y) of ``chains``, ``[T, N]``.
        about: the settings, as text.
    """

    label: int
    images: Tensor
    answers: list[Answer]
    chains: ChainRecord
    joint: Tensor
    about: str


def generate(
    subject: Subject,
    label: int,
    images: int = 4,
    start: str | None = None,
    energy: str | None = None,
    sampler: str | None = None,
    preset: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    report: Callable[[Frame], None] = lambda frame: None,
) -> Generated:
    """Generates images of one class, and reports the chains on their way.

    Args:
        subject: the classifier; its training images are those of starts and statistics.
        label: the class.
        images: number of images, at most 64.
        start, energy, sampler, preset, steps: as in :func:`trilemma.generate`; ``None`` for the default.
        seed: of all random numbers.
        report: called with at most 41 frames, the start among them.

    Raises:
        UserError: a number out of range, an unknown name, or a start whose images are not there.
    """
    clf = subject.clf
    images, seed = _count("images", images, 1, MOST_IMAGES), _count("seed", seed, 0)
    steps = None if steps is None else _count("steps", steps, 0, MOST_STEPS)
    given = {"start": start, "sampler": sampler, "energy": energy, "steps": steps}
    chain = choose_chain(given, preset, clf.about.get("chain"))
    settings = {key: chain.pop(key) for key in ("start", "sampler", "energy", "steps")}
    total = int(settings["steps"])
    labels = torch.full((images,), label)
    clf = with_statistics(clf, settings["energy"], bool(chain["stop"]), subject.train)
    shared: dict[str, Any] = {"data": subject.train, "chains": subject.chains}
    # The same seed for both calls gives the chains these very starts.
    first, second = (torch.Generator().manual_seed(seed) for _ in range(2))
    starts = sample(clf, labels, **{**settings, "steps": 0}, generator=first, **shared).cpu()
    recorder = ChainRecorder(starts, torch.arange(images), recorded_steps(total))
    shown = set(torch.linspace(0, total, FRAMES + 1).round().int().tolist())

    def show(step: int) -> None:
        values = _joint(clf, recorder.now, labels)
        report(Frame(step, total, recorder.now.clone(), values))

    def record(step: dict[str, Any]) -> None:
        recorder(step)
        done = int(step["step"]) + 1
        if done in shown:
            show(done)

    show(0)
    final = sample(
        clf, labels, start=starts, sampler=settings["sampler"], energy=settings["energy"], steps=total,
        data=subject.train, generator=second, callback=record, **chain,
    ).cpu()  # fmt: skip
    chains = ChainRecord(recorder.steps, recorder.images(final), labels)
    about = ", ".join(f"{key} {value}" for key, value in settings.items())
    return Generated(label, final, answers(clf, final, labels), chains, chains.joint_energies(clf), about)


def _joint(clf: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    return energies.joint_energy(eval_logits(clf, images), labels)


def counterfactual(
    subject: Subject,
    chosen: Chosen | None,
    target: int,
    norm: str = "l2",
    budget: str | None = None,
    energy: str = "ce",
    steps: int | None = None,
) -> Counterfactuals:
    """Moves the chosen image to a class; arguments as in :func:`trilemma.counterfactual`.

    Raises:
        UserError: no image, or an invalid budget or number.
    """
    image = require_image(chosen).pixels[None]
    steps = None if steps is None else _count("steps", steps, 1, MOST_STEPS)
    return move(subject.clf, image, target, budget, norm=norm, energy=energy, steps=steps, frames=WAY_FRAMES)


@dataclass(frozen=True)
class Plane:
    """Energies of sets of images.

    Attributes:
        points: ``clean``, ``adversarial`` and ``generated``.
        about: what they are, as text.
    """

    points: dict[str, EnergyPoints]
    about: str


def largest_cloud(subject: Subject) -> int:
    """The largest number of images per cloud of the plane."""
    return MOST_POINTS if subject.test is None else min(MOST_POINTS, len(subject.test))


def plane(subject: Subject, norm: str, radius: str, images: int = 100, seed: int = 0) -> Plane:
    """Energies of the first test images, of the same images under PGD, and of as many generated images.

    Raises:
        UserError: no test images, or an invalid radius or number.
    """
    threat = Threat(norm, radius)
    images = _count("images", images, 2, largest_cloud(subject))
    if subject.test is None:
        raise ImageError(
            "the clouds need test images; start the page with --data NAME, or the path of images"
        )
    part = subject.test.first(images)
    start = "uniform" if stored_pca(subject.clf) is None else "class-pca"
    presets = {PLANE_ATTACK: DIAGNOSE[PLANE_ATTACK]}
    sets = landscape(subject.clf, part, threat, presets, start, seed).sets
    words = DIAGNOSE[PLANE_ATTACK].words(subject.clf.num_classes)
    about = (
        f"{len(part)} test images of {part.name}; the same under {PLANE_ATTACK} ({words}) at {threat}; "
        f"as many generated from {start}"
    )
    return Plane(sets, about)


def marks(
    subject: Subject, chosen: Chosen | None, made: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, EnergyPoints]:
    """Energies of the chosen image and of images made from it, with E(x, y) of its class.

    Args:
        subject: the classifier.
        chosen: the image; ``None`` for no marks.
        made: name to an image ``[C, H, W]`` and one that was made from it; those of other images are left out.
    """
    if chosen is None:
        return {}
    images = {"your image": chosen.pixels}
    images |= {name: result for name, (source, result) in made.items() if torch.equal(source, chosen.pixels)}
    label = chosen.label
    if label is None:
        label = answers(subject.clf, chosen.pixels[None])[0].label
    labels = torch.tensor([label])
    return {name: energy_points(subject.clf, pixels[None], labels) for name, pixels in images.items()}


def _count(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number of a field of the page, which may arrive as a float.

    Raises:
        ConfigError: it is missing, not whole, or out of range.
    """
    if value is None or (isinstance(value, float) and not value.is_integer()):
        raise ConfigError(f"{name}: {value!r}; enter a whole number")
    number = count("demo", name, int(value), least)
    if most is not None and number > most:
        raise ConfigError(f"demo: {name}={number}; must be at most {most}")
    return number
