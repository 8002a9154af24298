"""Draws samples from a classifier and writes images, a grid, and the metrics of samples and starts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.data.image_set import Splits
from trilemma.errors import ConfigError
from trilemma.evaluation.evaluate import check_fit, environment, run_splits
from trilemma.evaluation.source import Source, find_run, open_source
from trilemma.figures.sample_grid import draw_grid
from trilemma.figures.style import LIGHT, Theme, render, save_figure
from trilemma.metrics.generation import compare_samples
from trilemma.progress import bar
from trilemma.runs.records import warn_unwritable, write_json
from trilemma.samplers.generate import generate as sample
from trilemma.tables import text_table

BATCH_SIZE = 250


@dataclass(frozen=True)
class Chain:
    """How samples are drawn: name of the sampler, name of the energy, and settings of the sampler."""

    sampler: str
    energy: str
    options: dict[str, Any]


def training_chain(clf: Classifier, sampler: str | None = None, energy: str | None = None) -> Chain:
    """The chain that a classifier was trained with; momentum on E(x, y) if it was trained without one.

    Args:
        clf: its ``about`` records the chain.
        sampler, energy: names that replace those of the chain; another sampler gets its default settings.
    """
    options = dict(clf.about.get("chain", {}))
    name, default_energy = options.pop("name", "momentum"), options.pop("energy", "joint")
    if sampler is not None and sampler != name:
        name, options = sampler, {}
    return Chain(name, energy or default_energy, options)


@dataclass(frozen=True)
class Samples:
    """Starts and final images of chains, float32 ``[N, C, H, W]`` in [0, 1] on the CPU, and classes, int64 ``[N]``."""

    starts: Tensor
    images: Tensor
    labels: Tensor


@dataclass(frozen=True, repr=False)
class Generated(Samples):
    """Samples with their metrics; a notebook shows the grid.

    Attributes:
        record: the settings, and ``figures``: the metrics of ``start``, ``sample`` and ``real``, see
            :func:`trilemma.metrics.generation.compare_samples`.
        folder: the folder of the written files, or ``None``.
    """

    record: dict[str, Any]
    folder: Path | None

    @property
    def grid(self) -> Path | None:
        """The file of the grid, or ``None`` if nothing was written."""
        return None if self.folder is None else self.folder / f"{self.record['name']}.png"

    def figure(self, theme: Theme = LIGHT) -> Figure:
        """The labelled grid: starts on the left, samples on the right."""
        return draw_grid(
            self.starts, self.images, self.labels, self.record["class_names"], self.record["steps"], theme
        )

    def __repr__(self) -> str:
        record = self.record
        rows = [
            {"images": name, **{key: metrics[key] for key in ("count", "named", "distance")}}
            for name, metrics in record["figures"].items()
        ]
        written = "" if self.folder is None else f"\nwritten to {self.folder / record['name']}"
        chain = f"{record['steps']} steps of {record['sampler']} on the {record['energy']} energy"
        return f"{len(self.images)} samples, {chain} from {record['start']}\n{text_table(rows)}{written}"

    def _repr_png_(self) -> bytes:
        return render(self.figure)[0]


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
    """``per_class`` samples of every class, with their starts; arguments as in :func:`generate`."""
    labels = torch.arange(clf.num_classes).repeat_interleave(per_class)
    train = None if data is None else data.train
    starts: list[Tensor] = []
    samples: list[Tensor] = []
    # A call with 0 steps returns the starts. The same seed for both calls gives the samples these very starts.
    generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
    with bar("generate", len(labels), progress) as advance:
        for part in labels.split(BATCH_SIZE):
            for parts, generator, count in zip((starts, samples), generators, (0, steps), strict=True):
                images = sample(
                    clf, part, start, sampler, energy, count, train, generator, **(options if count else {})
                )
                parts.append(images.cpu())
            advance(len(part))
    return Samples(torch.cat(starts), torch.cat(samples), labels)


def generate(
    source: Source,
    per_class: int = 10,
    start: str = "class-pca",
    sampler: str | None = None,
    energy: str | None = None,
    steps: int = 100,
    seed: int = 0,
    out: str | Path | None = None,
    namer: Source | None = None,
    data: Splits | None = None,
    *,
    device: torch.device | str | None = None,
    progress: bool = False,
    **options: Any,
) -> Generated:
    """Generates images of every class and computes their metrics.

    Files in the folder ``out``: ``NAME.json`` (the record), ``NAME.png`` (grid, also as a ``-dark`` version),
    ``NAME.npz`` (``starts`` and ``samples`` uint8 ``[N, H, W, C]``, ``labels``) and a folder ``NAME`` with one PNG per
    image, ``CLASS-NUMBER.png``.

    Args:
        source: a run folder (whose own data are used by default), a classifier file, a :class:`Run` or a
            :class:`Classifier`; its state is restored.
        per_class: number of images per class.
        start, steps: as in :func:`trilemma.samplers.generate`.
        sampler, energy: as in :func:`trilemma.samplers.generate`; by default those of the chain that the classifier was
            trained with, with its settings, else momentum and joint.
        seed: seed of all random numbers.
        out: folder to write to; by default ``samples/`` of a run, and nothing is written otherwise.
        namer: an independently trained classifier (or run) that classifies starts, samples and real images.
        data: the splits that ``source`` was trained with: class statistics for starts, training images for the
            nearest distance, test images for comparison.
        device: device to run on; by default that of a given classifier, and the CPU for everything that is loaded.
        progress: show a progress bar on standard error.
        options: settings of the sampler (``step_size``, ``noise_std``, ...) and ``stop``.

    Raises:
        ConfigError: a count below 1, an unknown start, sampler or energy, or a namer that is the generator itself.
    """
    if per_class < 1 or steps < 0:
        raise ConfigError(
            f"generate: per_class={per_class}, steps={steps}; per_class must be at least 1, steps at least 0"
        )
    run, clf = find_run(source), open_source(source, None, device)
    if run is not None:
        data = data or run_splits(run.path)
        out = out or run.path / "samples"
    namer = None if namer is None else open_source(namer, None, device)
    _check(clf, namer, data)
    chain = training_chain(clf, sampler, energy)
    settings = {**chain.options, **options}
    started = time.perf_counter()
    samples = draw_samples(
        clf, per_class, start, chain.sampler, chain.energy, steps, seed, data, progress=progress, **settings
    )
    seconds = round(time.perf_counter() - started, 2)
    record: dict[str, Any] = {
        "name": f"{start}_{chain.sampler}_{chain.energy}_{steps}",
        "start": start, "sampler": chain.sampler, "energy": chain.energy, "steps": steps, "options": settings,
        "per_class": per_class, "seed": seed, "class_names": list(clf.class_names),
        "checkpoint": dict(clf.about), "namer": None if namer is None else dict(namer.about),
        "reference": None if data is None else {"name": data.train.name, "images": len(data.train)},
        "figures": compare_samples(
            samples.starts, samples.images, samples.labels,
            reference=None if data is None else data.train.images, namer=namer,
            real=None if data is None else (data.test.float_images(), data.test.labels),
        ),
        "seconds": seconds,
        **environment(clf.device),
    }  # fmt: skip
    generated = Generated(
        samples.starts, samples.images, samples.labels, record, None if out is None else Path(out)
    )
    if out is not None:
        _write(Path(out), generated)
    return generated


def _check(clf: Classifier, namer: Classifier | None, data: Splits | None) -> None:
    if data is not None:
        check_fit(clf, data.test)
    if namer is None:
        return
    check_independent("namer", namer, clf)
    if namer.num_classes != clf.num_classes:
        raise ConfigError(
            f"namer: has {namer.num_classes} classes, but the samples have {clf.num_classes}; pass one with the same "
            "classes"
        )


def check_independent(role: str, evaluator: Classifier, generator: Classifier) -> None:
    """Checks that the classifier that evaluates samples is not the one that generated them.

    Args:
        role: argument name of the evaluator, for the error message.

    Raises:
        ConfigError: their weights are equal.
    """
    if _same_weights(evaluator, generator):
        raise ConfigError(
            f"{role}: a classifier cannot evaluate its own samples; pass one that was trained independently"
        )


def _same_weights(first: Classifier, second: Classifier) -> bool:
    first_weights, second_weights = list(first.parameters()), list(second.parameters())
    if [p.shape for p in first_weights] != [p.shape for p in second_weights]:
        return False
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(first_weights, second_weights, strict=True))


def as_uint8(images: Tensor) -> Any:
    """A uint8 array ``[N, H, W, C]`` of float images ``[N, C, H, W]`` in [0, 1], rounded."""
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _write(out: Path, generated: Generated) -> None:
    record, name = generated.record, generated.record["name"]
    try:
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        starts, images = as_uint8(generated.starts), as_uint8(generated.images)
        np.savez_compressed(out / f"{name}.npz", starts=starts, samples=images, labels=generated.labels)
        for index, image in enumerate(images):
            label = int(generated.labels[index])
            Image.fromarray(image.squeeze()).save(folder / f"{label}-{index % record['per_class']:04d}.png")
        save_figure(out / f"{name}.png", generated.figure)
    except OSError as error:
        warn_unwritable(out, error)
        return
    write_json(out / f"{name}.json", record)
