"""``trilemma evaluate``: result rows of a run, a classifier file, or the user's own network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from trilemma.classifier.source import ClassifierSource
from trilemma.cli.common import (
    Data,
    Device,
    Devices,
    Json,
    Norm,
    Quiet,
    Seed,
    choose_device,
    completed_by,
    decimal,
    lint_summary,
    option,
    parse_threats,
    percent,
    print_error,
    print_json,
    print_progress,
    print_table,
    print_text,
    require_threat,
    show_progress_bar,
)
from trilemma.cli.exits import resumable
from trilemma.cli.model import with_classifier
from trilemma.cli.samples import (
    Draws,
    ExtractorName,
    Origin,
    Reference,
    SampleOptions,
    SamplesPath,
    evaluate_samples,
)
from trilemma.config.registry import PROTOCOLS
from trilemma.errors import ConfigError, NotStoredError
from trilemma.pages.words import NOT_ABOVE, not_above_chance
from trilemma.runs.records import checkpoint_name
from trilemma.runs.run_directory import RunDirectory
from trilemma.storing import writable_folder

if TYPE_CHECKING:
    from trilemma.defences.purification import Purification

Protocols = Annotated[
    list[str] | None,
    option(
        "--protocol NAME",
        "repeatable; see `trilemma list protocols`  [default: clean, pgd-20]",
        autocompletion=completed_by(PROTOCOLS.names),
    ),
]
Images = Annotated[
    int | None, option("--images N", "number of test images, class-balanced  [default: all]", min=1)
]
Radii = Annotated[
    list[str] | None,
    option(
        "--radius R", "radius in pixel units, repeatable: 4/255,8/255  [default: the stored threat model]"
    ),
]
SaveAdversarial = Annotated[
    Path | None, option("--save-adversarial FILE", "new .npz file for the images of one attack")
]
Checkpoint = Annotated[
    Literal["best", "last", "both"],
    option("--checkpoint", "checkpoint of a run: best on held-out images, last, or both"),
]
OutDir = Annotated[
    Path | None,
    option("--out DIR", "output folder for results and resume state (not used with a run folder)"),
]
Resume = Annotated[bool, option("--resume", "resume an interrupted AutoAttack evaluation")]
NoLint = Annotated[bool, option("--no-lint", "skip the checks of the classifier and its images")]

Purify = Annotated[
    int | None,
    option("--purify STEPS", "Langevin steps on E(x) before classifying; attacks go through them", min=0),
]
PurifyStep = Annotated[
    float | None,
    option("--purify-step-size S", "gradient factor of the Langevin steps  [default: 0.25]", parser=decimal),
]
PurifyNoise = Annotated[
    float | None,
    option("--purify-noise N", "standard deviation of their noise  [default: 0.005]", parser=decimal),
]
PurifyDraws = Annotated[
    int | None,
    option("--purify-draws N", "draws of noise per gradient of the attack  [default: 10]", min=1),
]
PurifyGradient = Annotated[
    str | None,
    option("--purify-gradient G", "of the attack: bpda, unrolled, or both  [default: both]"),
]

PURIFY_OPTIONS = {
    "step_size": "--purify-step-size", "noise_std": "--purify-noise", "draws": "--purify-draws",
    "gradient": "--purify-gradient",
}  # fmt: skip

Rows = dict[str, dict[str, Any]]


@with_classifier
def evaluate(
    classifier: ClassifierSource,
    protocol: Protocols = None,
    data: Data = None,
    images: Images = None,
    norm: Norm = None,
    radius: Radii = None,
    checkpoint: Checkpoint = "both",
    samples: SamplesPath = None,
    extractor: ExtractorName = None,
    origin: Origin = None,
    draws: Draws = None,
    reference: Reference = None,
    out: OutDir = None,
    resume: Resume = False,
    save_adversarial: SaveAdversarial = None,
    purify: Purify = None,
    purify_step_size: PurifyStep = None,
    purify_noise: PurifyNoise = None,
    purify_draws: PurifyDraws = None,
    purify_gradient: PurifyGradient = None,
    no_lint: NoLint = False,
    seed: Seed = 0,
    device: Device = None,
    devices: Devices = 1,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Evaluates accuracy and other metrics by named protocols.

    Result rows of a run are also written to its evaluation folder. For a run, evaluates the best checkpoint (selected
    on held-out images during training) and the last; test images are never used for selection. With --model or
    --network, RUN_OR_FILE may hold weights from elsewhere: a .pt, .pth or .safetensors file with a state dict.
    With --samples, generated images are evaluated instead. An interrupted AutoAttack evaluation saves its state in
    the run's evaluation folder or in --out; repeat the command with --resume to continue. With several radii, the
    report shows a curve of robustness. With --save-adversarial, the images of the attack, their predictions and
    verdicts are saved as NumPy arrays. With --purify, images are purified before they are classified, and the attack
    is one through the purifier; the rows have names of their own. With --devices, several processes share the images
    of clean, pgd-20, pgd-50-10, screen and AutoAttack; the verdicts are those of one process, and --resume may use
    another number.

    \b
    Examples:
      trilemma evaluate runs/digits-eb-jdat
      trilemma evaluate model.safetensors --protocol pgd-20 --data cifar10 --images 1000 --json
      trilemma evaluate model.safetensors --protocol autoattack-standard --data cifar10 --out results/
      trilemma evaluate --model mynets:wide --data photos/ --norm linf --radius 8/255
      trilemma evaluate weights.pt --network wide-resnet,depth=34,width=10 --data cifar10 --radius 8/255
      trilemma evaluate runs/digits-pgd-at --protocol ece --protocol ood:uniform-noise
      trilemma evaluate runs/digits-pgd-at --protocol pgd-50-10 --radius 0.1,0.2,0.3
      trilemma evaluate runs/digits-pgd-at --protocol pgd-20 --save-adversarial pgd-20.npz
      trilemma evaluate runs/digits-eb-jdat --purify 10 --protocol clean --protocol pgd-20
      trilemma evaluate --samples photos/ --extractor runs/digits-standard --data digits
      trilemma evaluate runs/digits-eb-jdat --samples samples.npz --extractor efficientnet-lite0 --draws 10
    """
    sample_options = SampleOptions(samples, extractor, origin, draws, reference)
    if sample_options.given:
        if devices > 1:
            raise ConfigError(
                "--devices: not used with --samples, which are measured in one process; leave it out"
            )
        return evaluate_samples(classifier, sample_options, data, seed, device, quiet, as_json)
    protocols = protocol or ["clean", "pgd-20"]
    for name in protocols:
        PROTOCOLS.row(name)
    classifier = replace(classifier, checkpoint="last" if checkpoint == "last" else "best")
    classifier.check()
    run = classifier.run
    _check_out(run, out, resume, quiet)
    threat = parse_threats(norm, radius)
    print_progress(f"evaluating {classifier}: {', '.join(protocols)}", quiet)
    needs_threat = _attacks(protocols)
    options: dict[str, Any] = {"progress": show_progress_bar(quiet), "resume": resume, "lint": not no_lint}
    options |= {"save_adversarial": save_adversarial, "devices": devices}
    options["purify"] = _purification(
        purify,
        {
            "step_size": purify_step_size,
            "noise_std": purify_noise,
            "draws": purify_draws,
            "gradient": purify_gradient,
        },
    )
    if run is not None:
        from trilemma.evaluation.evaluate import evaluate_run

        if needs_threat:
            require_threat(threat, run.config().threat)
        if checkpoint == "both" and len(run.classifiers()) == 2:
            print_progress(
                "evaluating the best and the last checkpoint; --checkpoint best skips the last", quiet
            )
        options |= {"device": choose_device(device), "checkpoint": checkpoint}
        with resumable(run.path):
            rows = evaluate_run(run.path, protocols, data, threat, images, seed, **options)
    else:
        from trilemma.evaluation.evaluate import evaluate_into
        from trilemma.evaluation.source import open_images

        clf = classifier.open(choose_device(device), data)
        image_set = open_images(clf, None, data)
        if needs_threat:
            require_threat(threat, clf.threat)
        with resumable(out):
            rows = evaluate_into(out, clf, image_set, protocols, threat, images, seed, **options)
    print_progress(lint_summary(rows.values()), quiet)
    if save_adversarial is not None and save_adversarial.exists():
        print_progress(f"adversarial images: {save_adversarial}", quiet)
    (print_json if as_json else _print)(rows)


def _purification(steps: int | None, settings: Mapping[str, Any]) -> Purification | None:
    """Returns the purification of ``--purify`` and its settings; ``None`` without it.

    Raises:
        ConfigError: settings without ``--purify``, or an invalid one.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if steps is None and not given:
        return None
    if steps is None:
        name = PURIFY_OPTIONS[next(iter(given))]
        raise ConfigError(f"{name}: requires --purify STEPS, such as --purify 10")
    from trilemma.defences.purification import Purification

    return Purification(steps, **given)


def _attacks(protocols: Sequence[str]) -> bool:
    """Whether any of the protocols attacks, and so needs a threat model."""
    from trilemma.evaluation.protocol import find_protocol

    return any(find_protocol(name).needs_threat for name in protocols)


def _check_out(run: RunDirectory | None, out: Path | None, resume: bool, quiet: bool) -> None:
    """Checks ``--out``; says if the rows of a run cannot be stored, before the evaluation that may take hours.

    Raises:
        ConfigError: ``--out`` with a run, which has its own folder, or ``--resume`` without a folder to resume from.
        NotStoredError: ``--out`` cannot be written.
    """
    if run is not None and out is not None:
        raise ConfigError(
            f"--out {out}: not used with a run, results go to {run.path / 'evaluation'}; remove --out"
        )
    folder = out if run is None else run.path
    if out is not None:
        writable_folder(out)
    if run is not None:
        try:
            writable_folder(run.path)
        except NotStoredError as error:
            print_progress(
                f"note: {run.path}: cannot be written ({error.reason}); the rows are printed and not stored",
                quiet,
            )
    if resume and folder is None:
        raise ConfigError("--resume: needs the folder with the saved state; add --out DIR")
    if resume and folder is not None and not any(folder.rglob("*.state.safetensors")):
        print_error(
            f"{folder} holds no saved state; the evaluation starts from the beginning", prefix="note: "
        )


def _print(rows: Rows) -> None:
    """Prints accuracies in one table and all other quantities in a second one, each with the notes of its rows."""
    accuracies = {name: row for name, row in rows.items() if row["quantity"] == "accuracy"}
    others = {name: row for name, row in rows.items() if name not in accuracies}
    for part, table in (
        (accuracies, _accuracy_table(accuracies)),
        (others, _measure_table(others)),
    ):
        print_table(table)
        for name, row in part.items():
            if "note" in row["facts"]:
                print_text(f"{name}: {row['facts']['note']}")
    if any(map(not_above_chance, accuracies.values())):
        print_text(f"* {NOT_ABOVE}: one answer for every image is as accurate")


def _accuracy_table(rows: Rows) -> list[dict[str, Any]]:
    """Returns table rows of accuracies with their 95 % intervals and conditions."""
    return [
        {
            "protocol": _with_checkpoint(name, row),
            "accuracy": percent(row["value"]),
            "chance": f"{percent(row['chance'])} *" if not_above_chance(row) else percent(row.get("chance")),
            "95 % interval": None
            if row["lower"] is None
            else f"{percent(row['lower'])} to {percent(row['upper'])}",
            **_conditions(row),
        }
        for name, row in rows.items()
    ]


def _measure_table(rows: Rows) -> list[dict[str, Any]]:
    """Returns table rows of other quantities: value, which direction is better, and secondary values."""
    return [
        {
            "protocol": _with_checkpoint(name, row),
            "value": row["value"],
            "quantity": f"{row['quantity']}, {row['better']} is better",
            "95 % interval": None if row["lower"] is None else f"{row['lower']:.3f} to {row['upper']:.3f}",
            **_conditions(row),
            "also": ", ".join(f"{name} {value:.4g}" for name, value in row["also"].items()),
        }
        for name, row in rows.items()
    ]


def _with_checkpoint(name: str, row: dict[str, Any]) -> str:
    """Returns the protocol, with ``@last`` for a row of the last checkpoint beside the best one."""
    return f"{row['protocol']}@last" if name.endswith("@last") else str(row["protocol"])


def _conditions(row: dict[str, Any]) -> dict[str, Any]:
    """Returns the table cells that state what a row was measured on."""
    return {
        "threat": "-" if row["threat"] is None else f"{row['threat']['norm']} {row['threat']['radius']}",
        "checkpoint": checkpoint_name(row["checkpoint"]),
        "images": row["count"],
        "data": f"{row['data']['name']} {row['data']['split']}",
        "seconds": row["seconds"],
    }
