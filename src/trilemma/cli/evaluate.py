"""``trilemma evaluate``: result rows of a run, of a classifier file, or of the user's own network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trilemma.cli.common import (
    Data,
    Device,
    Json,
    Norm,
    Quiet,
    Radius,
    Seed,
    asked_threat,
    check_threat,
    choose_device,
    find_source,
    images_for,
    load_classifier,
    measures,
    print_json,
    print_table,
    share,
    tell,
    watched,
)
from trilemma.cli.exits import resumable
from trilemma.cli.lint import NoLint, tell_summary
from trilemma.cli.model import own_classifier
from trilemma.cli.samples import ExtractorName, Origin, SamplesPath, judge_samples
from trilemma.config.registry import NETWORKS, PROTOCOLS
from trilemma.errors import ConfigError
from trilemma.runs.records import checkpoint_name

if TYPE_CHECKING:
    from trilemma.classifier.classifier import Classifier

MaybeSource = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN_OR_FILE",
        help="a run folder, a classifier file, weights, timm:NAME or robustbench:NAME",
        show_default=False,
    ),
]
Protocols = Annotated[
    list[str] | None,
    typer.Option(
        "--protocol", metavar="NAME", help="may be repeated  [default: clean, pgd-20]", show_default=False
    ),
]
Images = Annotated[
    int | None,
    typer.Option(
        "--images", metavar="N", min=1, help="only so many, in a fixed stratified order", show_default=False
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="go on with an AutoAttack evaluation that was interrupted")
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MOD:FN",
        help="FN() gives the network: images in [0, 1] to logits",
        show_default=False,
    ),
]
Network = Annotated[
    str | None,
    typer.Option(
        "--network",
        metavar="NAME",
        help="the network that a file of weights belongs to; options after commas",
        show_default=False,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean",
        metavar="M,...",
        help="per channel, if the network wants normalised images",
        show_default=False,
    ),
]
Std = Annotated[str | None, typer.Option("--std", metavar="S,...", help="with --mean", show_default=False)]
Checkpoint = Annotated[
    Literal["best", "last", "both"],
    typer.Option("--checkpoint", help="of a run: the best on held-out images, or the last"),
]
Kept = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="where rows and unfinished work go; a run has its own folder for them",
        show_default=False,
    ),
]


Rows = dict[str, dict[str, Any]]


def evaluate(
    source: MaybeSource = None,
    protocol: Protocols = None,
    data: Data = None,
    images: Images = None,
    norm: Norm = None,
    radius: Radius = None,
    model: Model = None,
    network: Network = None,
    mean: Mean = None,
    std: Std = None,
    checkpoint: Checkpoint = "both",
    samples: SamplesPath = None,
    extractor: ExtractorName = None,
    origin: Origin = None,
    out: Kept = None,
    resume: Resume = False,
    no_lint: NoLint = False,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measures accuracy and more under protocols that have a name.

    The rows of a run are written into its evaluation folder too. A run's best checkpoint was chosen on
    held-out images while it trained; both its best and its last are evaluated, and no test image chooses.
    With --model or --network, the file may be weights from elsewhere: a .pt, .pth or .safetensors file with
    a state dict. With --samples, generated images are judged instead. AutoAttack saves what it has found when
    it is interrupted, in the run's evaluation folder or in --out; the same command with --resume goes on.

    \b
    Examples:
      trilemma evaluate runs/digits-eb-jdat
      trilemma evaluate model.safetensors --protocol pgd-20 --data cifar10 --images 1000 --json
      trilemma evaluate model.safetensors --protocol autoattack-standard --data cifar10 --out results/
      trilemma evaluate --model mynets:wide --data photos/ --norm linf --radius 8/255
      trilemma evaluate weights.pt --network wide-resnet,depth=34,width=10 --data cifar10 --radius 8/255
      trilemma evaluate runs/digits-pgd-at --protocol ece --protocol ood:uniform-noise
      trilemma evaluate --samples photos/ --extractor runs/digits-standard --data digits
    """
    if samples is not None or extractor is not None:
        return judge_samples(source, samples, extractor, origin, data, seed, device, quiet, as_json)
    protocols = protocol or ["clean", "pgd-20"]
    _check_question(protocols, source, model, network)
    run = None if source is None else find_source(source)
    own_folder = run is not None and model is None and network is None
    _check_folder(source, own_folder, out, resume)
    threat = asked_threat(norm, radius)
    tell(f"evaluating {source or model}: {', '.join(protocols)}", quiet)
    attacks = any(PROTOCOLS.get(name).needs_threat for name in protocols)
    options: dict[str, Any] = {"progress": watched(quiet), "resume": resume, "lint": not no_lint}
    if run is not None and own_folder:
        from trilemma.evaluation.evaluate import evaluate_run

        if attacks:
            check_threat(threat, run.config().threat)
        if checkpoint == "both" and len(run.classifiers()) == 2:
            tell("best and last, one after the other; --checkpoint best leaves the last one out", quiet)
        options |= {"device": choose_device(device), "checkpoint": checkpoint}
        other = None if data is None else images_for(load_classifier(str(run.path), "cpu"), run, data)
        with resumable(run.path):
            rows = evaluate_run(run.path, protocols, other, threat, images, seed, **options)
    else:
        from trilemma.evaluation.evaluate import evaluate_into

        clf = _classifier(source, model, network, data, mean, std, device)
        image_set = images_for(clf, None, data)
        if attacks:
            check_threat(threat, clf.threat)
        with resumable(out):
            rows = evaluate_into(out, clf, image_set, protocols, threat, images, seed, **options)
    tell_summary(rows.values(), quiet)
    if as_json:
        print_json(rows)
    else:
        _print(rows)


def _check_question(
    protocols: Sequence[str], source: str | None, model: str | None, network: str | None
) -> None:
    """Refuses unknown names, no classifier at all, or two networks; needs no torch."""
    for name in protocols:
        PROTOCOLS.row(name)
    if model is not None and network is not None:
        raise ConfigError("--model and --network both name a network; give one of them")
    if network is not None:
        NETWORKS.row(network.partition(",")[0])
    if source is None and model is None and network is None:
        raise ConfigError(
            "nothing to evaluate; give a run folder, a classifier file, or --model MODULE:FUNCTION"
        )


def _check_folder(source: str | None, own_folder: bool, out: Path | None, resume: bool) -> None:
    """Refuses a place for rows beside a run's own, and going on with work that is kept nowhere."""
    if own_folder and out is not None:
        raise ConfigError(f"--out {out}: {source} is a run, which keeps its rows itself; leave it out")
    if resume and not own_folder and out is None:
        raise ConfigError("--resume: say with --out which folder keeps the unfinished work")


def _print(rows: Rows) -> None:
    """Accuracies in one table, whatever else was measured in another."""
    accuracies = {name: row for name, row in rows.items() if row["quantity"] == "accuracy"}
    print_table(table(accuracies))
    for name, row in accuracies.items():
        if "note" in row["facts"]:
            print(f"{name}: {row['facts']['note']}")
    print_table(measures([row for name, row in rows.items() if name not in accuracies]))


def _classifier(
    source: str | None, model: str | None, network: str | None, data: str | None,
    mean: str | None, std: str | None, device: str | None,
) -> Classifier:  # fmt: skip
    if model is None and network is None:
        if mean is not None or std is not None:
            raise ConfigError(f"--mean, --std: {source} states its own normalisation; leave them out")
        return load_classifier(str(source), device)
    run = None if source is None else find_source(source)
    if run is not None and network is not None:
        raise ConfigError(f"--network {network}: {source} is a run, which knows its network; leave it out")
    weights = Path(source) if source is not None else None
    if run is not None:
        there = run.classifiers()
        weights = there.get("best") or there.get("last") or run.best_classifier
    return own_classifier(model, network, weights, data, mean, std).to(choose_device(device))


def table(rows: Rows) -> Sequence[dict[str, Any]]:
    """Rows for a reader: accuracy with its 95 % interval, on what, against what."""
    return [
        {
            "protocol": name.removesuffix("@last"),
            "accuracy": share(row["value"]),
            "95 % interval": f"{share(row['lower'])} to {share(row['upper'])}",
            "images": row["count"],
            "checkpoint": checkpoint_name(row["checkpoint"]),
            "data": f"{row['data']['name']} {row['data']['split']}",
            "threat": "-" if row["threat"] is None else f"{row['threat']['norm']} {row['threat']['radius']}",
            "seconds": row["seconds"],
        }
        for name, row in rows.items()
    ]
