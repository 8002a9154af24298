"""Draws samples from a classifier and writes images, a grid, and the metrics of samples and starts."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from trilemma.classifier.batch_size import free_memory
from trilemma.classifier.classifier import Classifier
from trilemma.config.chains import choose_chain
from trilemma.config.starts import REPLAY_BUFFER, start_names
from trilemma.data.image_set import ImageSet, Splits, as_float
from trilemma.errors import ConfigError, NotStoredError
from trilemma.evaluation.chain_record import ChainRecord, ChainRecorder, recorded_chains, recorded_steps
from trilemma.evaluation.evaluate import check_fit, environment, run_splits
from trilemma.evaluation.source import Source, find_run, open_source
from trilemma.figures.chains import draw_chain_energies, draw_trajectories
from trilemma.figures.sample_grid import COLUMNS, draw_grid, draw_neighbours, first_of_each_class
from trilemma.figures.style import LIGHT, Theme, render, save_figure
from trilemma.files import file_sha256, write_bytes, write_npz
from trilemma.metrics.generation import compare_samples, nearest_images
from trilemma.noise import image_seeds
from trilemma.progress import bar
from trilemma.runs.lock import writing_inside
from trilemma.runs.records import keeps, note_kept, write_json
from trilemma.samplers.generate import generate as sample
from trilemma.samplers.guidance import with_statistics
from trilemma.samplers.replay_buffer import load_chains
from trilemma.storing import discard, go_on_without
from trilemma.tables import text_table
from trilemma.units import byte_size, count, seed_number
from trilemma.workers import Worker, Workers, device_names, shared_out

BATCH_SIZE = 250
# Of starts and samples; class, seed and step count of a sample have 8 bytes each.
BYTES_PER_VALUE, BYTES_PER_SAMPLE = 4, 24


@dataclass(frozen=True)
class Samples:
    """Starts and final images of chains, float32 ``[N, C, H, W]`` in [0, 1] on the CPU, and classes, int64 ``[N]``.

    ``steps`` is the number of steps that each chain has taken, int64 ``[N]``: with adaptive stopping not all.
    ``chains`` shows the first ones of each class on their way.
    """

    starts: Tensor
    images: Tensor
    labels: Tensor
    steps: Tensor
    chains: ChainRecord


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

    def chain_figure(self, theme: Theme = LIGHT) -> Figure:
        """The first chains of each class on their way from the start to the sample."""
        chains = self.chains
        return draw_trajectories(
            chains.images, chains.steps, chains.labels, self.record["class_names"], theme
        )

    def __repr__(self) -> str:
        record = self.record
        rows = [
            {"images": name, **{key: metrics[key] for key in ("count", "named", "distance")}}
            for name, metrics in record["figures"].items()
        ]
        written = "" if self.folder is None else f"\nwritten to {self.folder / record['name']}"
        chain = f"{record['steps']} steps of {record['sampler']} on the {record['energy']} energy"
        saved = "" if record["stopping"] is None else f"\n{stopping_text(record)}"
        return (
            f"{len(self.images)} samples, {chain} from {record['start']}\n{text_table(rows)}{saved}{written}"
        )

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
    chains: ImageSet | str | Path | None = None,
    progress: bool = False,
    devices: Sequence[str] = (),
    **options: Any,
) -> Samples:
    """``per_class`` samples of every class, with their starts; arguments as in :func:`generate`.

    ``devices`` are those of the processes that share the samples (:func:`trilemma.workers.device_names`).
    """
    _check_memory(clf, per_class)
    labels = torch.arange(clf.num_classes).repeat_interleave(per_class)
    train = None if data is None else data.train
    # Once, and not in every batch.
    clf = with_statistics(clf, energy, bool(options.get("stop")), train)
    if isinstance(chains, str | Path) and REPLAY_BUFFER in start_names(start):
        chains = load_chains(chains)
    batches = _batches(labels, per_class, bool(options.get("diversity")), len(devices))
    parts: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    shown, points = recorded_chains(labels), recorded_steps(steps)
    # A call with 0 steps returns the starts. The same seed for both calls gives the samples these very starts.
    seeds, starts = torch.Generator().manual_seed(seed), []

    def chains_of_batches() -> Iterator[tuple[Any, ...]]:
        for index in batches:
            starts.append(
                sample(clf, labels[index], start, sampler, energy, 0, train, seeds, chains=chains).cpu()
            )
            first = int(index[0])
            own = shown[(shown >= first) & (shown < first + len(index))] - first
            yield labels[index], starts[-1], own, points, seed, first, sampler, energy, steps, options

    with Workers(clf, devices) as workers, bar("generate", len(labels), progress) as advance:
        for position, part in workers.map(_run_chains, chains_of_batches()):
            parts[position] = part
            advance(len(batches[position]))
    columns = zip(*(parts[position] for position in range(len(batches))), strict=True)
    images, taken, followed = (list(column) for column in columns)
    record = ChainRecord(points, torch.cat(followed, 1), labels[shown])
    return Samples(torch.cat(starts), torch.cat(images), labels, torch.cat(taken), record)


def _batches(labels: Tensor, per_class: int, diversity: bool, workers: int) -> list[Tensor]:
    """The indices of the samples of each batch, in their order."""
    index = torch.arange(len(labels))
    if not diversity:
        return shared_out(index, BATCH_SIZE, max(1, workers))
    # Chains of a class repel each other within a batch, so a batch has whole classes if they fit.
    if per_class > BATCH_SIZE:
        return list(index.split(BATCH_SIZE))
    classes = torch.arange(len(labels) // per_class)
    groups = shared_out(classes, max(1, BATCH_SIZE // per_class), max(1, workers))
    return list(index.split([len(group) * per_class for group in groups]))


def _run_chains(
    worker: Worker,
    labels: Tensor,
    starts: Tensor,
    own: Tensor,
    points: tuple[int, ...],
    seed: int,
    before: int,
    sampler: str,
    energy: str,
    steps: int,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the chains of one batch.

    Args:
        labels, starts: int64 ``[n]`` and ``[n, C, H, W]``.
        own, points: positions of the chains to follow, and the steps at which they are recorded.
        seed, before: seed of all chains, and the number of chains of earlier batches.
        sampler, energy, steps, options: as in :func:`generate`.

    Returns:
        The images, the number of steps of each chain, int64 ``[n]``, and the images of the followed chains
        ``[T, m, C, H, W]``; all on the CPU.
    """
    taken, recorder = torch.zeros_like(labels), ChainRecorder(starts, own, points)

    def add_step(step: dict[str, Any]) -> None:
        taken[step["index"].cpu()] += 1
        recorder(step)

    generator = torch.Generator().manual_seed(seed)
    image_seeds(before, generator)
    images = sample(
        worker.clf, labels, starts, sampler, energy, steps, None, generator, callback=add_step, **options
    )
    return images.cpu(), taken, recorder.images(images)


def _check_memory(clf: Classifier, per_class: int) -> None:
    """Checks that starts and samples fit into the free memory.

    Raises:
        ConfigError: they do not.
    """
    images, free = per_class * clf.num_classes, free_memory(torch.device("cpu"))
    pixels = math.prod(clf.image_shape or (1, 1, 1))
    needed = images * (BYTES_PER_SAMPLE + 2 * BYTES_PER_VALUE * pixels)
    if needed > free:
        raise ConfigError(
            f"generate: per_class={per_class}: {images:,} images need {byte_size(needed)} of memory, and "
            f"{byte_size(free)} are free; generate fewer at a time, with other seeds"
        )


def stopping(taken: Tensor, steps: int) -> dict[str, float]:
    """Returns what adaptive stopping has saved: means over the samples.

    Args:
        taken: int64 ``[N]``, the steps that each chain has taken.
        steps: the largest number of steps.

    Returns:
        ``stopped``, the number of samples that stopped before the last step; ``mean_steps``; ``forward_passes`` per
        sample and ``without_stopping``, those of all steps. A step costs two, a forward and a backward pass, and so
        does the energy at which a sample stops.
    """
    stopped = taken < steps
    return {
        "stopped": int(stopped.sum()),
        "mean_steps": round(float(taken.float().mean()), 2),
        "forward_passes": round(float(2 * (taken + stopped.long()).float().mean()), 2),
        "without_stopping": 2 * steps,
    }


def stopping_text(record: dict[str, Any]) -> str:
    """Returns one line about what adaptive stopping has saved.

    Args:
        record: of :class:`Generated`, drawn with ``stop``.
    """
    saved, count_all = record["stopping"], record["figures"]["sample"]["count"]
    return (
        f"stopping: {saved['stopped']} of {count_all} samples stopped early, after {saved['mean_steps']:g} of "
        f"{record['steps']} steps on average; {saved['forward_passes']:g} forward passes per sample instead of "
        f"{saved['without_stopping']}"
    )


def generate(
    source: Source,
    per_class: int = 10,
    start: str | None = None,
    sampler: str | None = None,
    energy: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    namer: Source | None = None,
    data: Splits | None = None,
    *,
    preset: str | None = None,
    stop: bool | None = None,
    chains: str | Path | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
    devices: int = 1,
    **options: Any,
) -> Generated:
    """Generates images of every class and computes their metrics.

    Files in the folder ``out``: ``NAME.json`` (the record), ``NAME.png`` (grid, also as a ``-dark`` version),
    ``NAME-chains.png`` (the first chains of each class on their way), with the statistics of a finished run
    ``NAME-energies.png`` (their energies beside those of real images), with training images ``NAME-neighbours.png``
    (samples beside the nearest training image), ``NAME.npz`` (``starts`` and ``samples`` uint8 ``[N, H, W, C]``,
    ``labels``) and a folder ``NAME`` with one PNG per image, ``CLASS-NUMBER.png``. Samples of more images per class of
    the same classifier are kept, and ``NAME`` of these ends in ``_N-per-class``.

    Args:
        source: a run folder (whose own data are used by default), a classifier file, a :class:`Run` or a
            :class:`Classifier`; its state is restored.
        per_class: number of images per class.
        start, steps, stop: as in :func:`trilemma.samplers.generate`.
        sampler, energy: as in :func:`trilemma.samplers.generate`; by default those of the preset, else of the chain
            that the classifier was trained with, with its settings, else momentum and joint.
        seed: seed of all random numbers.
        out: folder to write to; by default ``samples/`` of a run, and nothing is written otherwise.
        namer: an independently trained classifier (or run) that classifies starts, samples and real images.
        data: the splits that ``source`` was trained with: class statistics for starts, training images for the
            nearest distance, test images for comparison.
        preset: name of published settings (``trilemma list samplers``); other arguments override them.
        chains: a run folder or classifier file whose chains the start ``replay-buffer`` draws; by default the run.
        device: device to run on; by default that of a given classifier, and the CPU for everything that is loaded.
        progress: show a progress bar on standard error.
        devices: number of processes that share the samples: on ``device``, or if that is ``cuda`` on as many GPUs. The
            samples are those of one process. The classifier has to be picklable.
        options: settings of the sampler (``step_size``, ``noise_std``, ...), ``temperature``, ``diversity`` and
            ``precision``.

    Raises:
        ConfigError: a count below 1, an unknown start, sampler or energy, or a namer that is the generator itself.
        UnknownNameError: unknown preset.
    """
    per_class, seed = count("generate", "per_class", per_class), seed_number("generate", seed)
    given = {"start": start, "sampler": sampler, "energy": energy, "steps": steps, "stop": stop, **options}
    # Before the classifier is opened, which may take long.
    count("generate", "steps", choose_chain(given, preset)["steps"], 0)
    run, clf = find_run(source), open_source(source, None, device)
    if run is not None:
        data = data or run_splits(run.path)
        out = out or run.path / "samples"
        chains = chains or run.path
    namer = None if namer is None else open_source(namer, None, device)
    _check(clf, namer, data)
    settings = choose_chain(given, preset, clf.about.get("chain"))
    start, sampler, energy = (str(settings.pop(name)) for name in ("start", "sampler", "energy"))
    steps = count("generate", "steps", settings.pop("steps"), 0)
    stop = settings.pop("stop")
    names_of_devices = device_names(devices, clf.device, per_class * clf.num_classes, "samples")
    with writing_inside(out):
        started = time.perf_counter()
        samples = draw_samples(
            clf,
            per_class,
            start,
            sampler,
            energy,
            steps,
            seed,
            data,
            chains=chains,
            progress=progress,
            devices=names_of_devices,
            stop=stop,
            **settings,
        )
        seconds = round(time.perf_counter() - started, 2)
        record: dict[str, Any] = {
            "name": f"{file_name(start)}_{sampler}_{energy}_{steps}{'_stop' if stop else ''}",
            "preset": preset, "start": start, "sampler": sampler, "energy": energy, "steps": steps, "options": settings,
            "stopping": stopping(samples.steps, steps) if stop else None,
            "per_class": per_class, "seed": seed, "class_names": list(clf.class_names),
            "checkpoint": clf.provenance(), "namer": None if namer is None else namer.provenance(),
            "reference": None if data is None else {"name": data.train.name, "images": len(data.train)},
            "figures": compare_samples(
                samples.starts, samples.images, samples.labels,
                reference=None if data is None else data.train.images, namer=namer,
                real=None if data is None else (data.test.float_images(), data.test.labels),
            ),
            "seconds": seconds,
            **environment(clf.device),
        }  # fmt: skip
        stored = None if out is None else Path(out) / f"{record['name']}.json"
        kept = stored is not None and keeps(stored, record, "per_class")
        if kept:
            record["name"] += f"_{per_class}-per-class"
        generated = Generated(
            samples.starts,
            samples.images,
            samples.labels,
            samples.steps,
            samples.chains,
            record,
            None if out is None else Path(out),
        )
        if out is not None:
            try:
                _write(Path(out), generated, clf, None if data is None else data.train.images)
            except NotStoredError as error:
                go_on_without(error)
                generated = replace(generated, folder=None)
            else:
                if stored is not None and kept:
                    note_kept(stored, "samples of more images per class", stored.with_stem(record["name"]))
        return generated


def file_name(start: str) -> str:
    """The text of a start as part of a file name: ``uniform-0.5+local-pca-k200-0.5``."""
    return start.replace(" ", "").replace(",", "+").replace(":", "-").replace("=", "")


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


def _write(out: Path, generated: Generated, clf: Classifier, train: Tensor | None) -> None:
    """Writes the samples, their figures and the record; raises :class:`NotStoredError` if it cannot."""
    record, name = generated.record, generated.record["name"]
    folder = out / name
    starts, images = as_uint8(generated.starts), as_uint8(generated.images)
    archive = out / f"{name}.npz"
    write_npz(archive, {"starts": starts, "samples": images, "labels": generated.labels.numpy()})
    # Ties the record to these samples, in case the process is killed before it is written.
    record["archive_sha256"] = file_sha256(archive)
    files = [
        f"{int(label)}-{index % record['per_class']:04d}.png" for index, label in enumerate(generated.labels)
    ]
    for file, image in zip(files, images, strict=True):
        write_image(folder / file, image)
    for old in folder.glob("*.png"):
        # Of earlier samples of this name, of other weights.
        if re.fullmatch(r"\d+-\d{4,}\.png", old.name) and old.name not in files:
            discard(old)
    for suffix, draw in _figures(generated, clf, train).items():
        save_figure(out / f"{name}{suffix}.png", draw)
    write_json(out / f"{name}.json", record)


def write_image(path: Path, image: Any) -> None:
    """Writes a uint8 array ``[H, W, C]`` with 1 or 3 channels as PNG, atomically.

    Raises:
        NotStoredError: it cannot be written.
    """
    content = BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(content, "PNG")
    write_bytes(path, content.getvalue())


def _figures(
    generated: Generated, clf: Classifier, train: Tensor | None
) -> dict[str, Callable[[Theme], Figure]]:
    """Suffix of the file name to painter, in the order in which pages show them."""
    figures: dict[str, Callable[[Theme], Figure]] = {"": generated.figure}
    chains, names = generated.chains, generated.record["class_names"]
    # Without a step there is no way, and nothing to compare.
    if len(chains.steps) > 1:
        figures["-chains"] = generated.chain_figure
        means, stds = (clf.statistics.get(key) for key in ("energy_mean", "energy_std"))
        if means is not None and stds is not None:
            joint, mean, std = chains.joint_energies(clf), means.cpu(), stds.cpu()
            figures["-energies"] = lambda theme: draw_chain_energies(
                joint, chains.steps, chains.labels, mean, std, theme
            )
    if train is not None:
        # Only of the samples that are drawn.
        at = torch.cat([*first_of_each_class(generated.labels, COLUMNS).values()])
        samples, labels = generated.images[at], generated.labels[at]
        nearest = as_float(train[nearest_images(samples, train)])
        figures["-neighbours"] = lambda theme: draw_neighbours(samples, nearest, labels, names, theme)
    return figures
