"""``trilemma.evaluate``: protocols over a data set become rows that say all that is needed to repeat them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trilemma import __version__
from trilemma.classifier.batch_size import resolve_batch_size
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.load import load
from trilemma.config.registry import PROTOCOLS
from trilemma.data.image_set import ImageSet, Splits
from trilemma.data.sources import load_images
from trilemma.errors import CheckpointError, ConfigError, DataError, ImageError
from trilemma.evaluation.lint.rows import add_lint, lint_data, tell
from trilemma.evaluation.protocol import Protocol, Request, Saved, Verdicts
from trilemma.progress import bar
from trilemma.runs.records import LAST, write_row
from trilemma.runs.run_directory import RunDirectory
from trilemma.threat import Threat
from trilemma.training.build import build_data

DEFAULT_PROTOCOLS = ("clean", "pgd-20")

Data = str | Path | tuple[Tensor, Tensor] | ImageSet


def evaluate(
    clf: Classifier,
    data: Data,
    protocols: Sequence[str] = DEFAULT_PROTOCOLS,
    threat: Threat | None = None,
    images: int | None = None,
    seed: int = 0,
    *,
    batch_size: int | Literal["auto"] = "auto",
    lint: bool = True,
    progress: bool = False,
    state: str | Path | None = None,
    resume: bool = False,
) -> dict[str, dict[str, Any]]:
    """One row per protocol.

    Args:
        clf: the classifier; left exactly as it was. It works on its own device.
        data: a data set's name, a path (of both, the test part), ``(images, labels)``, or an image set.
        protocols: names (``trilemma list protocols``).
        threat: what attacks may do; by default the one stored with the classifier.
        images: how many, from a fixed stratified order; ``None`` for all.
        seed: of every random number of the attacks.
        batch_size: images at a time, by default as many as the free memory suggests; does not change the result beyond
            rounding.
        lint: look for mistakes first (:mod:`trilemma.evaluation.lint`); what is found is told on standard error.
        progress: show a bar on standard error.
        state: a folder in which protocols that take long (AutoAttack) keep what they have found, now and then and
            when interrupted, as ``PROTOCOL.state.safetensors``. The files stay; whoever gave the folder removes them.
        resume: go on from the states in that folder, to the same verdicts as without an interruption.

    Returns:
        Protocol name to row: ``protocol``, ``version``, ``quantity`` (``accuracy`` in [0, 1], or what else the protocol
        measures), ``better`` (``higher`` or ``lower``), ``value``, ``lower`` and ``upper`` (95 %; of an accuracy
        Wilson's; ``None`` where no interval is known), ``also`` (further figures), ``count``, ``data`` (name, split,
        which images), ``threat`` (norm and exact radius, or ``None``), ``seed``, ``checkpoint``, ``seconds``,
        ``device``, ``trilemma``, ``torch``, the protocol's own ``facts``, and ``lint`` (what was found on how many
        images, the same in every row; ``None`` without).

    Raises:
        UnknownNameError: no such protocol.
        ConfigError: an attack without a threat, a network that is not wrapped, a count below 1, or a protocol that is
            not defined for this number of classes.
        CheckpointError: a state to resume from that is of another evaluation, or cannot be read.
        DataError: data that cannot be read or have other classes.
        ImageError: images of another shape than the classifier takes.
    """
    if not isinstance(clf, Classifier):
        kind = type(clf).__name__
        raise ConfigError(
            f"evaluate: got a {kind}; wrap the network first: trilemma.Classifier(network, num_classes=K)"
        )
    names = [protocols] if isinstance(protocols, str) else list(protocols)
    chosen: dict[str, Protocol] = {name: PROTOCOLS.get(name) for name in names}
    for found in chosen.values():
        found.suits(clf)
    threat = threat or clf.threat
    attacking = [name for name, found in chosen.items() if found.needs_threat]
    if attacking and threat is None:
        raise ConfigError(
            f"{attacking[0]}: the classifier has no threat stored; pass threat=trilemma.Threat(norm, radius)"
        )
    if images is not None and images < 1:
        raise ConfigError(f"images: {images} asked for; give a count of at least 1, or None for all")
    everything = open_data(clf, data)
    part = everything if images is None or images >= len(everything) else everything.first(images)
    check_fit(clf, part)
    check_answer(clf, part)
    about = {"name": part.name, "split": part.split, "images": _which(len(part), len(everything))}
    size = resolve_batch_size(clf, part.images, batch_size)
    linted = lint_data(clf, part, threat if attacking else None, seed, size) if lint else None
    tell(linted.findings if linted else ())  # now: whoever interrupts a long protocol has read them
    rows = {}
    for name, found in chosen.items():
        saved = None if state is None else Saved(state_file(state, name), resume)
        needed = threat if found.needs_threat else None
        rows[name] = _row(name, found, clf, part, about, needed, seed, size, progress, saved)
    add_lint(rows, linted)
    return rows


def state_file(folder: str | Path, protocol: str) -> Path:
    """Where a protocol that takes long keeps what it has found so far."""
    return Path(folder) / f"{protocol}.state.safetensors"


def open_data(
    clf: Classifier, data: Data, root: str | Path | None = None, size: int | None = None
) -> ImageSet:
    """The images to evaluate on, their labels in the classifier's order where it knows its classes by name."""
    if isinstance(data, ImageSet):
        return data
    numbered = clf.class_names == tuple(str(k) for k in range(clf.num_classes))
    named = None if numbered and not isinstance(data, tuple) else clf.class_names
    return load_images(data, root=root, size=size, class_names=named)


def check_fit(clf: Classifier, data: ImageSet) -> None:
    """Refuses data of other classes or another image shape than the classifier's.

    Raises:
        DataError: naming both numbers.
    """
    if data.num_classes != clf.num_classes:
        raise DataError(
            f"{data.name}: has {data.num_classes} classes, but the classifier has {clf.num_classes}; "
            "evaluate it on data with the classes it was trained for"
        )
    if clf.image_shape is not None and data.image_shape != tuple(clf.image_shape):
        have, want = ("x".join(map(str, shape)) for shape in (data.image_shape, clf.image_shape))
        raise DataError(
            f"{data.name}: images are {have} (C, H, W), but the classifier takes {want}; resize the data"
        )


def check_answer(clf: Classifier, data: ImageSet) -> None:
    """Refuses a network that cannot take the images, or whose logits are not one per class: asks it about one image.

    Raises:
        ImageError: the network cannot take images of this shape.
        ConfigError: it gives something else than ``[1, K]``.
    """
    image = data.float_images([0], device=clf.device)
    try:
        with inner_loop(clf, "eval"), torch.no_grad():
            logits = clf(image)
    except RuntimeError as error:
        shape = "x".join(map(str, data.image_shape))
        raise ImageError(
            f"{data.name}: the network cannot take images of {shape} (C, H, W): {str(error).splitlines()[0]}; "
            "evaluate it on data of the shape that it was trained for"
        ) from error
    if logits.shape != (1, clf.num_classes):
        raise ConfigError(
            f"{data.name}: the network gives {list(logits.shape)} for one image, where {clf.num_classes} classes "
            f"need [1, {clf.num_classes}]; give as many classes as the network tells apart"
        )


def _which(count: int, total: int) -> str:
    return f"all {total}" if count == total else f"first {count} of {total}, stratified order"


def _row(
    name: str,
    found: Protocol,
    clf: Classifier,
    data: ImageSet,
    about: dict[str, Any],
    threat: Threat | None,
    seed: int,
    batch_size: int,
    progress: bool,
    saved: Saved | None,
) -> dict[str, Any]:
    started = time.perf_counter()
    request = Request(clf, data.images, data.labels, threat, seed, batch_size, progress=progress, saved=saved)
    if found.long:
        judged = found.judge(request)
    else:
        with bar(name, len(data), progress) as advance:
            judged = found.judge(replace(request, advance=advance))
    measured = judged.measured() if isinstance(judged, Verdicts) else judged
    lower, upper = measured.interval or (None, None)
    return {
        "protocol": measured.name or name,
        "version": found.version,
        "quantity": found.quantity.name,
        "better": found.quantity.better,
        "value": measured.value,
        "lower": lower,
        "upper": upper,
        "also": dict(measured.also),
        "count": measured.count,
        "data": about,
        "threat": None if threat is None else {"norm": threat.norm, "radius": threat.radius},
        "seed": seed,
        "checkpoint": dict(clf.about),
        "seconds": round(time.perf_counter() - started, 2),
        "facts": dict(measured.facts),
        **made_with(clf.device),
    }


def made_with(device: torch.device) -> dict[str, str]:
    """Device and versions, as every result states them."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "trilemma": __version__, "torch": torch.__version__}


Row = dict[str, Any]
Which = Literal["best", "last", "both"]


def run_splits(path: str | Path) -> Splits:
    """The train, held-out and test images that the run at ``path`` was configured with."""
    return build_data(RunDirectory.open(path).config())


def evaluate_run(
    path: str | Path,
    protocols: Sequence[str] = DEFAULT_PROTOCOLS,
    data: Data | None = None,
    threat: Threat | None = None,
    images: int | None = None,
    seed: int = 0,
    *,
    checkpoint: Which = "best",
    device: torch.device | str = "cpu",
    lint: bool = True,
    progress: bool = False,
    resume: bool = False,
) -> dict[str, Row]:
    """Rows as of :func:`trilemma.evaluate`, written to ``evaluation/PROTOCOL.json`` of the run.

    Test images choose nothing here: ``best`` was chosen while training, on held-out images, and every row says in
    ``checkpoint`` which one it is of. Beside a best one, rows of the last are written to ``evaluation/last``.

    Args:
        path: a run folder.
        data: other images than the run's own test part.
        checkpoint: ``best`` (the last where a run has no best), ``last``, or ``both``.
        device: where to work.
        lint: look for mistakes first.
        resume: go on from what an interrupted evaluation left in the evaluation folder; without it, start anew.

    Returns:
        Protocol name to row; of ``both``, the rows of the last are called ``PROTOCOL@last``.

    Raises:
        RunError: not a run folder.
        CheckpointError: the run has no finished classifier yet, or not the one asked for.
    """
    run = RunDirectory.open(path)
    config = run.config()
    found: dict[str, Row] = {}
    before: Classifier | None = None
    folders: list[Path] = []
    for name in chosen_checkpoints(run, checkpoint):
        clf = load(run.classifiers()[name]).to(device)
        beside = name == "last" and "best" in run.classifiers()
        folder = run.path / "evaluation" / (LAST if beside else "")
        if data is None:
            data = open_data(clf, config.data.name, config.data.root, config.data.size)
        if before is not None and same_weights(before, clf):  # the last one was the best: measured once
            rows = {key: {**row, "checkpoint": dict(clf.about)} for key, row in found.items()}
        else:
            rows = evaluate(
                clf, data, protocols, threat, images, seed,
                lint=lint, progress=progress, state=folder, resume=resume,
            )  # fmt: skip
        for row in rows.values():
            write_row(run.path, row, LAST if beside else "")
        found |= rows if before is None else {f"{key}@{name}": row for key, row in rows.items()}
        before = clf
        folders.append(folder)
    for (
        folder
    ) in folders:  # only now: an evaluation of both that is interrupted in the second keeps the first
        for protocol in [protocols] if isinstance(protocols, str) else protocols:
            state_file(folder, protocol).unlink(missing_ok=True)
    return found


def chosen_checkpoints(run: RunDirectory, asked: Which) -> list[str]:
    """Which classifiers of a run are meant, in the order to evaluate them.

    Raises:
        CheckpointError: there is none, or not the one asked for.
    """
    there = list(run.classifiers())
    if not there:
        load(run.path)  # says why
    if asked == "last" and "last" not in there:
        raise CheckpointError(f"{run.path}: has no last classifier, only {there[0]}; leave --checkpoint out")
    return there if asked == "both" else ["last"] if asked == "last" else there[:1]


def same_weights(first: Classifier, second: Classifier) -> bool:
    """Whether two classifiers of one run are the same one."""
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[key]) for key, value in ours.items()
    )


def evaluate_into(
    folder: Path | None,
    clf: Classifier,
    data: Data,
    protocols: Sequence[str],
    threat: Threat | None = None,
    images: int | None = None,
    seed: int = 0,
    *,
    lint: bool = True,
    progress: bool = False,
    resume: bool = False,
) -> dict[str, dict[str, Any]]:
    """Rows as of :func:`trilemma.evaluate`, written to ``evaluation/PROTOCOL.json`` of ``folder``, as of a run.

    Args:
        folder: made if it is not there; ``None`` keeps nothing.
        lint: look for mistakes first.
        resume: go on from what an interrupted evaluation left there.
    """
    kept = None if folder is None else folder / "evaluation"
    rows = evaluate(
        clf, data, protocols, threat, images, seed, lint=lint, progress=progress, state=kept, resume=resume
    )
    if folder is not None and kept is not None:
        for row in rows.values():
            write_row(folder, row)
        for name in protocols:
            state_file(kept, name).unlink(missing_ok=True)
    return rows
