"""Samples of a classifier, beside the starts they came from: images, a grid, and the figures of both."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.load import load
from trilemma.data.image_set import Splits
from trilemma.errors import ConfigError
from trilemma.evaluation.evaluate import check_fit, environment, run_splits
from trilemma.figures.sample_grid import draw_grid
from trilemma.figures.style import save_figure
from trilemma.metrics.generation import compare_samples
from trilemma.progress import bar
from trilemma.runs.records import warn_unwritable, write_json
from trilemma.samplers.generate import generate

BATCH_SIZE = 250


@dataclass(frozen=True)
class Chain:
    """How samples are drawn: a sampler's name, an energy's name, and the sampler's settings."""

    sampler: str
    energy: str
    options: dict[str, Any]


def own_chain(clf: Classifier, sampler: str | None = None, energy: str | None = None) -> Chain:
    """The chain that a classifier was trained with, where it was, and momentum on E(x, y) otherwise.

    Args:
        clf: its ``about`` remembers the chain.
        sampler, energy: asked for by name; another sampler than the chain's brings its own settings.
    """
    chain = dict(clf.about.get("chain", {}))
    name, own_energy = chain.pop("name", "momentum"), chain.pop("energy", "joint")
    if sampler is not None and sampler != name:
        name, chain = sampler, {}
    return Chain(name, energy or own_energy, chain)


@dataclass(frozen=True)
class Samples:
    """Starts and what became of them, float32 ``[N, C, H, W]`` in [0, 1] on the CPU, and the classes int64 ``[N]``."""

    starts: Tensor
    images: Tensor
    labels: Tensor


def draw_samples(
    clf: Classifier,
    per_class: int,
    start: str,
    sampler: str,
    energy: str,
    steps: int,
    seed: int,
    data: Splits | None = None,
    *,
    progress: bool = False,
    **options: Any,
) -> Samples:
    """``per_class`` samples of every class with their starts; arguments as of :func:`generate_samples`."""
    labels = torch.arange(clf.num_classes).repeat_interleave(per_class)
    train = None if data is None else data.train
    both: list[list[Tensor]] = [[], []]
    # The same seed twice gives the walk the very starts that are shown beside its end.
    generators = [torch.Generator().manual_seed(seed) for _ in both]
    with bar("generate", len(labels), progress) as advance:
        for part in labels.split(BATCH_SIZE):
            for found, generator, count in zip(both, generators, (0, steps), strict=True):
                images = generate(
                    clf, part, start, sampler, energy, count, train, generator, **(options if count else {})
                )
                found.append(images.cpu())
            advance(len(part))
    return Samples(torch.cat(both[0]), torch.cat(both[1]), labels)


def generate_samples(
    source: str | Path | Classifier,
    per_class: int = 10,
    start: str = "class-pca",
    sampler: str = "momentum",
    energy: str = "joint",
    steps: int = 100,
    seed: int = 0,
    out: str | Path | None = None,
    namer: Classifier | str | Path | None = None,
    data: Splits | None = None,
    *,
    progress: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Samples with the figures that let one judge them, written to a folder.

    Args:
        source: a classifier, its file, or a run folder (whose own data then serve).
        per_class: images of each class.
        start, sampler, energy, steps: as of :func:`trilemma.samplers.generate`.
        seed: of all randomness.
        out: where to write; ``samples/`` of a run by default, nowhere for a classifier.
        namer: a classifier (or run) trained independently, which names starts, samples and real images.
        data: the splits that ``source`` was trained with: class statistics for starts, training images for the
            nearest distance, test images to compare with.
        options: settings of the sampler (``step_size``, ``noise_std``, ...) and ``stop``.

    Returns:
        What ``NAME.json`` holds: the settings, ``figures`` (of ``start``, ``sample`` and ``real``, see
        :func:`trilemma.metrics.generation.compare_samples`) and where the images lie. Beside it ``NAME.png`` (grid,
        with a ``-dark`` twin), ``NAME.npz`` (``starts``, ``samples`` uint8 ``[N, H, W, C]``, ``labels``) and a folder
        ``NAME`` with one PNG per image, ``CLASS-NUMBER.png``.

    Raises:
        ConfigError: a count below 1, an unknown start, sampler or energy, or a namer that is the generator itself.
    """
    if per_class < 1 or steps < 0:
        raise ConfigError(f"generate: per_class={per_class}, steps={steps}; at least 1 and 0 are needed")
    clf = source if isinstance(source, Classifier) else load(source)
    if not isinstance(source, Classifier) and Path(source).is_dir():
        data = data or run_splits(source)
        out = out or Path(source) / "samples"
    judge = load(namer) if isinstance(namer, str | Path) else namer
    _check(clf, judge, data)
    began = time.perf_counter()
    samples = draw_samples(
        clf, per_class, start, sampler, energy, steps, seed, data, progress=progress, **options
    )
    seconds = round(time.perf_counter() - began, 2)
    record: dict[str, Any] = {
        "name": f"{start}_{sampler}_{energy}_{steps}",
        "start": start, "sampler": sampler, "energy": energy, "steps": steps, "options": options,
        "per_class": per_class, "seed": seed, "class_names": list(clf.class_names),
        "checkpoint": dict(clf.about), "namer": None if judge is None else dict(judge.about),
        "reference": None if data is None else {"name": data.train.name, "images": len(data.train)},
        "figures": compare_samples(
            samples.starts, samples.images, samples.labels,
            reference=None if data is None else data.train.images, namer=judge,
            real=None if data is None else (data.test.float_images(), data.test.labels),
        ),
        "seconds": seconds,
        **environment(clf.device),
    }  # fmt: skip
    if out is not None:
        _write(Path(out), record, samples, clf.class_names)
    return record


def _check(clf: Classifier, namer: Classifier | None, data: Splits | None) -> None:
    if data is not None:
        check_fit(clf, data.test)
    if namer is None:
        return
    check_independent("namer", namer, clf)
    if namer.num_classes != clf.num_classes:
        raise ConfigError(f"namer: has {namer.num_classes} classes, but the samples have {clf.num_classes}")


def check_independent(role: str, judge: Classifier, clf: Classifier) -> None:
    """Refuses a judge that is the generator itself.

    Raises:
        ConfigError: their weights are the same.
    """
    if _same_weights(judge, clf):
        raise ConfigError(
            f"{role}: a classifier cannot judge its own samples; give one that was trained independently"
        )


def _same_weights(first: Classifier, second: Classifier) -> bool:
    ours, theirs = list(first.parameters()), list(second.parameters())
    if [p.shape for p in ours] != [p.shape for p in theirs]:
        return False
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(ours, theirs, strict=True))


def as_uint8(images: Tensor) -> Any:
    """float ``[N, C, H, W]`` in [0, 1] to a uint8 array ``[N, H, W, C]``, rounded."""
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _write(out: Path, record: dict[str, Any], samples: Samples, class_names: tuple[str, ...]) -> None:
    name = record["name"]
    try:
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        images = as_uint8(samples.images)
        np.savez_compressed(
            out / f"{name}.npz", starts=as_uint8(samples.starts), samples=images, labels=samples.labels
        )
        for place, image in enumerate(images):
            label = int(samples.labels[place])
            Image.fromarray(image.squeeze()).save(folder / f"{label}-{place % record['per_class']:04d}.png")
        save_figure(
            out / f"{name}.png",
            lambda theme: draw_grid(
                samples.starts, samples.images, samples.labels, class_names, record["steps"], theme
            ),
        )
    except OSError as error:
        warn_unwritable(out, error)
        return
    write_json(out / f"{name}.json", record)
