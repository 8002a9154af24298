"""``trilemma.evaluate``: runs protocols on a data set; each result row holds all that is needed to repeat it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import torch

from trilemma import __version__
from trilemma.attacks.arguments import AnyThreat
from trilemma.classifier.batch_size import resolve_batch_size
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.load import load
from trilemma.classifier.output import accepted_shape, check_finite, shape_text
from trilemma.config.registry import PROTOCOLS
from trilemma.data.image_set import ImageSet, Splits
from trilemma.defences.purification import Purification
from trilemma.errors import CheckpointError, ConfigError, DataError, ImageError, NetworkError
from trilemma.evaluation.adversarial import OPTION, check_adversarial_file
from trilemma.evaluation.adversarial import save_adversarial as save_adversarial_images
from trilemma.evaluation.lint.rows import add_lint, lint_data, print_findings
from trilemma.evaluation.protocol import (
    ACCURACY,
    Measurement,
    Protocol,
    Request,
    ResumeState,
    Verdicts,
    find_protocol,
)
from trilemma.evaluation.source import Data, Source, find_run, open_images, open_source
from trilemma.memory import freed_memory_kept
from trilemma.metrics.accuracy import chance
from trilemma.printing import print_message
from trilemma.progress import bar
from trilemma.runs.lock import writing
from trilemma.runs.records import LAST, write_row
from trilemma.runs.run_directory import RunDirectory
from trilemma.storing import discard
from trilemma.tables import Rows
from trilemma.threat import Threat
from trilemma.training.build import build_data
from trilemma.units import count, seed_number
from trilemma.workers import Workers, device_names

DEFAULT_PROTOCOLS = ("clean", "pgd-20")

# Largest number of images on which logits that are not finite are counted before a refusal.
_FINITE_IMAGES = 128

# One threat or several; a radius alone is one in L-inf unless ``norm`` is given.
Threats = AnyThreat | Sequence[AnyThreat]


# Attacks need gradients, also inside the caller's inference mode.
@torch.inference_mode(False)
def evaluate(
    clf: Source,
    data: Data | None = None,
    protocols: Sequence[str] = DEFAULT_PROTOCOLS,
    threat: Threats = None,
    images: int | None = None,
    seed: int = 0,
    *,
    norm: Any = None,
    batch_size: int | Literal["auto"] = "auto",
    lint: bool = True,
    progress: bool = False,
    state: str | Path | None = None,
    resume: bool = False,
    device: torch.device | str | None = None,
    save_adversarial: str | Path | None = None,
    purify: int | Purification | None = None,
    devices: int = 1,
) -> Rows:
    """Runs protocols on a classifier and returns one result row per protocol.

    Of a run, the best checkpoint is evaluated, and the rows are also written into the run folder
    (:func:`evaluate_run`), for the report and for comparisons.

    Args:
        clf: a run folder, the :class:`Run` that :func:`trilemma.train` returns, a classifier file, a
            :class:`Classifier`, or any network from images in [0, 1] to logits; its state is restored.
        data: name of a data set or a path; or images with labels: ``(images, labels)`` as tensors, arrays or lists, a
            ``Dataset`` or a ``DataLoader`` (:func:`trilemma.data.given.given_images`), or an image set. Of a name, and
            of a path with splits, the test split is used; of a path without splits all images, unless the classifier
            was trained on them (:func:`trilemma.data.load_images`). By default the test images of the data that the
            classifier was trained on.
        protocols: names (``trilemma list protocols``).
        threat: norm and radius of attacks, or a radius such as ``8 / 255``, or a list of several; by default the threat
            stored with the classifier. With several, the rows of attacks are named ``PROTOCOL@RADIUS``.
        images: number of images, the first ones of a fixed stratified order; ``None`` for all.
        seed: seed of all random numbers.
        norm: norm of ``threat`` if that is a radius; ``"linf"`` by default.
        batch_size: images per forward pass; ``"auto"`` fits it to the free memory. Changes results by rounding only.
        lint: check for common evaluation mistakes first (:mod:`trilemma.evaluation.lint`) and print the findings on
            standard error.
        progress: show a progress bar on standard error.
        state: folder in which long protocols (AutoAttack) save unfinished work, every half minute and when interrupted,
            as ``PROTOCOL.state.safetensors``. The files are not deleted here; the caller deletes them. Of a run, its
            evaluation folder, whose files are deleted at the end.
        resume: resume from the files in that folder; the verdicts equal those of an uninterrupted evaluation.
        device: device to run on; by default that of a given classifier, and the CPU for everything that is loaded.
        save_adversarial: a new ``.npz`` file for the images of the attack
            (:func:`trilemma.evaluation.adversarial.save_adversarial`); for one protocol that attacks, with one threat.
        purify: number of Langevin steps on E(x) before every image is classified, or a
            :class:`trilemma.defences.Purification` with all settings. Attacks then go through the purifier. The rows
            have other names (``purify-10:pgd-20:eot-10``) and an entry ``purification``. For ``clean``, ``pgd-20`` and
            ``pgd-50-10``.
        devices: number of processes that share the images: on ``device``, or if that is ``cuda`` on as many GPUs. The
            verdicts are those of one process. ``clean``, ``pgd-20``, ``pgd-50-10``, ``screen`` and AutoAttack are
            shared out; everything else runs in this process. The classifier has to be picklable.

    Returns:
        Protocol name to row: ``protocol``, ``version``, ``quantity`` (``accuracy`` in [0, 1], or another quantity of
        the protocol), ``better`` (``higher`` or ``lower``), ``value``, ``lower`` and ``upper`` (95 % interval, Wilson's
        for an accuracy; ``None`` if unknown), ``chance`` (the value that one answer for every image can have: for an
        accuracy the share of the most frequent class; ``None`` for other quantities), ``also`` (further metrics),
        ``count``, ``data`` (name, split, which images), ``threat`` (norm and exact radius, or ``None``), ``seed``,
        ``checkpoint``, ``parameters`` (number of weights of the network), ``seconds``, ``device``, ``trilemma``,
        ``torch``, the protocol's own ``facts``, and ``lint`` (findings and number of images checked, the same in every
        row; ``None`` without lint).

    Raises:
        UnknownNameError: unknown protocol.
        ConfigError: an attack without a threat, a network without data, a count below 1, or a protocol that is
            undefined for this number of classes, or that cannot attack through a purifier.
        CheckpointError: a state file belongs to another evaluation or cannot be read.
        DataError: data that cannot be read or have other classes.
        ImageError: images of a shape that the classifier does not take.
    """
    run = find_run(clf)
    if run is not None:
        if state is not None:
            raise ConfigError(
                f"state={state}: not used with a run, which has its own folder; leave state out"
            )
        return evaluate_run(
            run.path, protocols, data, threat, images, seed, norm=norm,
            device=device or "cpu", batch_size=batch_size, lint=lint, progress=progress, resume=resume,
            save_adversarial=save_adversarial, purify=purify, devices=devices,
        )  # fmt: skip
    purification = None if purify is None else Purification.of(purify)
    clf = open_source(clf, data, device)
    names = [protocols] if isinstance(protocols, str) else list(protocols or ())
    if not names:
        raise ConfigError("protocols: none given; name at least one, such as 'clean' or 'pgd-20'")
    definitions = _definitions(names, clf, purification)
    if purification is not None and save_adversarial is not None:
        raise ConfigError(
            f"{OPTION}: not with --purify, whose verdicts are not of single images; leave it out"
        )
    attacking = [name for name, definition in definitions.items() if definition.needs_threat]
    given = threat is not None or norm is not None
    threats = _threats(attacking, threat, norm, clf) if attacking or given else []
    saved = (
        None if save_adversarial is None else check_adversarial_file(save_adversarial, definitions, threats)
    )
    images = None if images is None else count("evaluate", "images", images)
    seed = seed_number("evaluate", seed)
    everything = open_images(clf, None, data)
    part = everything if images is None or images >= len(everything) else everything.first(images)
    check_fit(clf, part)
    names_of_devices = device_names(devices, clf.device, len(part), "images")
    check_output(clf, part)
    about = {"name": part.name, "split": part.split, "images": which_images(part, len(everything))}
    size = resolve_batch_size(clf, part.images, batch_size)
    lint_result = lint_data(clf, part, threats[0] if attacking else None, seed, size) if lint else None
    # Printed before the protocols, which may take hours.
    print_findings(lint_result.findings if lint_result else ())
    request = Request(
        clf, part.images, part.labels, None, seed, size, progress=progress, purification=purification
    )
    rows = Rows()
    with Workers(clf, names_of_devices) as workers, freed_memory_kept(clf.device):
        for name, definition in definitions.items():
            title = name if purification is None else purification.row_name(name, definition.needs_threat)
            for row_name, used_threat in _row_names(title, definition, threats).items():
                state_of_row = None if state is None else ResumeState(state_file(state, row_name), resume)
                request = replace(request, threat=used_threat, resume_state=state_of_row, workers=workers)
                rows[row_name] = _row(title, definition, request, about, saved)
    add_lint(rows, lint_result)
    return rows


def _threats(attacking: Sequence[str], threat: Threats, norm: Any, clf: Classifier) -> list[Threat]:
    """The threats of an evaluation, each once.

    Args:
        attacking: the protocols that attack.
        threat, norm: as in :func:`evaluate`.
        clf: its threat is the default.

    Raises:
        ConfigError: there is none, or one is invalid.
    """
    if threat is None and norm is None and clf.threat is None:
        raise ConfigError(
            f"{attacking[0]}: the classifier has no threat stored; pass threat=trilemma.Threat(norm, radius)"
        )
    given: Sequence[AnyThreat] = threat if isinstance(threat, list | tuple) else [threat]  # type: ignore[list-item]
    if not given:
        raise ConfigError("threat: an empty list; pass a threat, a radius, or several")
    first_written: dict[tuple[str, Fraction], Threat] = {}
    for one in given:
        parsed = Threat.of(one, norm, default=clf.threat)
        first_written.setdefault((parsed.norm, parsed.fraction), parsed)
    return list(first_written.values())


def _row_names(name: str, definition: Protocol, threats: Sequence[Threat]) -> dict[str, Threat | None]:
    """The names of a protocol's rows and their threats; with several threats ``PROTOCOL@RADIUS``."""
    if not definition.needs_threat:
        return {name: None}
    if len(threats) == 1:
        return {name: threats[0]}
    one_norm = len({threat.norm for threat in threats}) == 1
    return {f"{name}@{threat.radius if one_norm else threat}": threat for threat in threats}


def _definitions(
    names: Sequence[str], clf: Classifier, purification: Purification | None
) -> dict[str, Protocol]:
    """The protocols of these names, each after a check that it is defined for the classifier.

    With a purification, ``measure`` is replaced by ``purified``.

    Raises:
        ConfigError: a protocol is undefined for the classifier, or has no variant for purified images.
    """
    definitions = {name: find_protocol(name) for name in names}
    for name, definition in definitions.items():
        definition.check_classifier(clf)
        if purification is not None:
            if definition.purified is None:
                raise ConfigError(
                    f"--purify: {name} cannot be measured through a purifier; use {', '.join(_purified_protocols())}"
                )
            definitions[name] = replace(definition, measure=definition.purified, long=False)
    return definitions


def _purified_protocols() -> list[str]:
    """The built-in protocols that have a variant for purified images."""
    plain = [name for name, row in PROTOCOLS.rows().items() if row.built_in and not row.blank]
    return [name for name in plain if find_protocol(name).purified is not None]


def state_file(folder: str | Path, row_name: str) -> Path:
    """The path of the file in which a long protocol saves the unfinished work of a row."""
    return Path(folder) / f"{row_name.replace('/', '-')}.state.safetensors"


def check_fit(clf: Classifier, data: ImageSet) -> None:
    """Checks that data and classifier have the same number of classes and the same image shape.

    Raises:
        DataError: they differ.
    """
    if data.num_classes != clf.num_classes:
        raise DataError(
            f"{data.name}: has {data.num_classes} classes, but the classifier has {clf.num_classes}; "
            "evaluate it on data with the classes it was trained for"
        )
    if clf.image_shape is not None and data.image_shape != tuple(clf.image_shape):
        raise DataError(
            f"{data.name}: images are {shape_text(data.image_shape)} (C, H, W), but the classifier takes "
            f"{shape_text(clf.image_shape)}; {_resize(data.image_shape, clf.image_shape)}"
        )


def check_output(clf: Classifier, data: ImageSet) -> None:
    """Checks with one image that the network takes this image shape and returns one finite logit per class.

    If the logits of the first image are not finite, more images are checked.

    Raises:
        ImageError: the network takes images of another shape.
        NetworkError: it raises an exception, returns no logits ``[1, K]``, or returns NaN for all images checked.
    """
    image = data.float_images([0], device=clf.device)
    with inner_loop(clf, "eval"), torch.no_grad():
        try:
            logits = clf(image)
        except NetworkError as error:
            shape = accepted_shape(clf.network, image.to(clf.dtype), error.__cause__)
            if shape is None:
                raise NetworkError(f"{data.name}: {error}") from error
            raise ImageError(
                f"{data.name}: images are {shape_text(data.image_shape)} (C, H, W), but the network takes "
                f"{shape_text(shape)}; {_resize(data.image_shape, shape)}"
            ) from error
        if not bool(torch.isfinite(logits).all()):
            images = data.float_images(range(min(len(data), _FINITE_IMAGES)), device=clf.device)
            try:
                check_finite(clf(images), all_of_them=False)
            except NetworkError as error:
                raise NetworkError(f"{data.name}: {error}") from None


def _resize(given: tuple[int, ...], needed: tuple[int, ...]) -> str:
    """What to do about images of shape ``given`` (C, H, W) where ``needed`` is the shape that a network takes."""
    remedies = []
    if given[0] != needed[0]:
        remedies.append(f"convert the images to {needed[0]} channel{'s' if needed[0] > 1 else ''}")
    if given[1:] != needed[1:]:
        square = needed[1] == needed[2]
        remedies.append(f"add --size {needed[1]} to resize them" if square else "resize the images")
    return " and ".join(remedies)


def which_images(part: ImageSet, total: int) -> str:
    """Which images of ``total`` were evaluated, and how they were chosen, in words for the result row."""
    count = f"all {total}" if len(part) == total else f"first {len(part)} of {total}, stratified order"
    return ", ".join(filter(None, (count, part.selection)))


def _row(
    name: str, definition: Protocol, request: Request, about: dict[str, Any], saved: Path | None
) -> dict[str, Any]:
    """Runs one protocol and returns its result row, without ``lint``.

    Args:
        about: describes the data.
        saved: file for the images of an attack that gives a verdict per image.
    """
    started = time.perf_counter()
    clf, threat, count = request.clf, request.threat, len(request.labels)
    keep = saved is not None and definition.needs_threat and definition.quantity == ACCURACY
    request = replace(request, keep_adversarial=keep)
    if definition.long:
        result = definition.measure(request)
    else:
        with bar(name, count, request.progress) as advance:
            result = definition.measure(replace(request, advance=advance))
    measured = _measurement(name, result, count)
    lower, upper = measured.interval or (None, None)
    by_chance = measured.chance
    if by_chance is None and definition.quantity == ACCURACY:
        by_chance = chance(request.labels)
    row = {
        "protocol": measured.name or name,
        "version": definition.version,
        "quantity": definition.quantity.name,
        "better": definition.quantity.better,
        "value": measured.value,
        "lower": lower,
        "upper": upper,
        "chance": by_chance,
        "also": dict(measured.also),
        "count": measured.count,
        "data": about,
        "threat": None if threat is None else {"norm": threat.norm, "radius": threat.radius},
        "seed": request.seed,
        "checkpoint": clf.provenance(),
        "parameters": sum(weight.numel() for weight in clf.parameters()),
        "seconds": round(time.perf_counter() - started, 2),
        "facts": dict(measured.facts),
        **environment(clf.device),
    }
    if request.purification is not None:
        row["purification"] = request.purification.record(definition.needs_threat)
    if saved is not None and keep:
        if isinstance(result, Verdicts) and result.adversarial is not None:
            identity = ("protocol", "version", "threat", "data", "seed", "checkpoint", "trilemma", "torch")
            save_adversarial_images(saved, request, result, {key: row[key] for key in identity})
        else:
            print_message(f"note: {name} returns no adversarial images; {saved} is not written")
    return row


def _measurement(name: str, result: Verdicts | Measurement, count: int) -> Measurement:
    """The result of a protocol on ``count`` images as a measurement; a ConfigError for anything else."""
    if isinstance(result, Measurement) and isinstance(result.value, int | float):
        return result
    correct = result.correct if isinstance(result, Verdicts) else None
    if correct is None or correct.dtype != torch.bool or correct.shape != (count,):
        returned = (
            type(result).__name__ if correct is None else f"{correct.dtype} verdicts {list(correct.shape)}"
        )
        raise ConfigError(
            f"protocol {name!r}: returned {returned} for {count} images; it returns Verdicts, one bool per image, or "
            "a Measurement"
        )
    return result.measured()


def environment(device: torch.device) -> dict[str, str]:
    """Device name and versions, which every result records."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "trilemma": __version__, "torch": torch.__version__}


Row = dict[str, Any]
Which = Literal["best", "last", "both"]


def run_splits(path: str | Path) -> Splits:
    """The training, held-out and test images of the run at ``path``, as configured."""
    return build_data(RunDirectory.open(path).config())


def evaluate_run(
    path: str | Path,
    protocols: Sequence[str] = DEFAULT_PROTOCOLS,
    data: Data | None = None,
    threat: Threats = None,
    images: int | None = None,
    seed: int = 0,
    *,
    norm: Any = None,
    checkpoint: Which = "best",
    device: torch.device | str = "cpu",
    batch_size: int | Literal["auto"] = "auto",
    lint: bool = True,
    progress: bool = False,
    resume: bool = False,
    save_adversarial: str | Path | None = None,
    purify: int | Purification | None = None,
    devices: int = 1,
) -> Rows:
    """Evaluates the classifiers of a run and writes the rows to ``evaluation/PROTOCOL.json`` of the run.

    Rows of other data or another threat than the run's own are written beside those (:mod:`trilemma.runs.records`).

    Test images are never used for selection: ``best`` was selected during training, on held-out images. Every row
    records its checkpoint in ``checkpoint``. If the run has a best checkpoint, the rows of the last one are written to
    ``evaluation/last``.

    Args:
        path: a run folder.
        protocols, threat, images, seed, norm, batch_size, lint, progress, purify, devices: as in :func:`evaluate`.
        data: images to use instead of the run's own test split.
        checkpoint: ``best`` (the last one if the run has no best), ``last``, or ``both``.
        device: device to run on.
        resume: resume an interrupted evaluation from the files in the evaluation folder; otherwise start again.
        save_adversarial: as in :func:`evaluate`; with ``both``, the images are of the best checkpoint.

    Returns:
        Protocol name to row as in :func:`evaluate`; with ``both``, rows of the last checkpoint are named
        ``PROTOCOL@last``.

    Raises:
        RunError: not a run folder.
        CheckpointError: the run has no finished classifier yet, or not the requested one.
    """
    run = RunDirectory.open(path)
    with writing(run.path):
        all_rows = Rows()
        previous: Classifier | None = None
        state_files: list[Path] = []
        for name in chosen_checkpoints(run, checkpoint):
            clf = Classifier.load(run.classifiers()[name]).to(device)
            beside_best = name == "last" and "best" in run.classifiers()
            folder = run.path / "evaluation" / (LAST if beside_best else "")
            data = open_images(clf, run, data)
            # If the last checkpoint is the best one, its rows are copied.
            if previous is not None and same_weights(previous, clf):
                rows = {key: {**row, "checkpoint": clf.provenance()} for key, row in all_rows.items()}
            else:
                rows = evaluate(
                    clf, data, protocols, threat, images, seed,
                    norm=norm, batch_size=batch_size, lint=lint, progress=progress, state=folder, resume=resume,
                    save_adversarial=save_adversarial if previous is None else None, purify=purify, devices=devices,
                )  # fmt: skip
            for row in rows.values():
                write_row(run.path, row, LAST if beside_best else "")
            state_files += [state_file(folder, row_name) for row_name in rows]
            all_rows.update(rows if previous is None else {f"{key}@{name}": row for key, row in rows.items()})
            previous = clf
        # Deleted at the end only, so that interrupting the second evaluation does not lose the first.
        for file in state_files:
            discard(file)
        return all_rows


def chosen_checkpoints(run: RunDirectory, which: Which) -> list[str]:
    """The names of the classifiers of a run that ``which`` selects, in the order to evaluate them.

    Raises:
        CheckpointError: the run has none, or not the requested one.
    """
    names = list(run.classifiers())
    if not names:
        # Raises the error that explains why.
        load(run.path)
    if which == "last" and "last" not in names:
        raise CheckpointError(f"{run.path}: has no last classifier, only {names[0]}; leave --checkpoint out")
    return names if which == "both" else ["last"] if which == "last" else names[:1]


def same_weights(first: Classifier, second: Classifier) -> bool:
    """Whether two classifiers have the same weights and buffers."""
    first_state, second_state = first.state_dict(), second.state_dict()
    return first_state.keys() == second_state.keys() and all(
        torch.equal(value, second_state[key]) for key, value in first_state.items()
    )


def evaluate_into(
    folder: Path | None,
    clf: Classifier,
    data: Data,
    protocols: Sequence[str],
    threat: Threats = None,
    images: int | None = None,
    seed: int = 0,
    *,
    lint: bool = True,
    progress: bool = False,
    resume: bool = False,
    save_adversarial: str | Path | None = None,
    purify: int | Purification | None = None,
    devices: int = 1,
) -> Rows:
    """Rows of :func:`evaluate`, also written to ``evaluation/PROTOCOL.json`` of ``folder`` as for a run.

    Args:
        folder: created if missing; ``None`` to write nothing.
        clf, data, protocols, threat, images, seed, lint, progress, save_adversarial, purify, devices: as in
            :func:`evaluate`.
        resume: resume an interrupted evaluation from the files in that folder.
    """
    state_folder = None if folder is None else folder / "evaluation"
    with nullcontext() if folder is None else writing(folder):
        rows = evaluate(
            clf,
            data,
            protocols,
            threat,
            images,
            seed,
            lint=lint,
            progress=progress,
            state=state_folder,
            resume=resume,
            save_adversarial=save_adversarial,
            purify=purify,
            devices=devices,
        )
        if folder is not None and state_folder is not None:
            for row in rows.values():
                write_row(folder, row)
            for row_name in rows:
                discard(state_file(state_folder, row_name))
    return rows
