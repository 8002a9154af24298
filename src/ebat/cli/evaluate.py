"""``ebat evaluate``: result rows of a run, of a classifier file, or of the user's own network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebat.cli.console import print_json, print_table, share, tell, watched
from ebat.cli.model import as_classifier, own_network
from ebat.cli.options import Data, Device, Json, Norm, Quiet, Radius, Seed
from ebat.cli.source import choose_device, find_source, images_for, load_classifier
from ebat.cli.threat import asked_threat, check_threat
from ebat.errors import ConfigError
from ebat.registry import PROTOCOLS

if TYPE_CHECKING:
    from ebat.classifier import Classifier
    from ebat.data.image_set import ImageSet

Rows = dict[str, dict[str, Any]]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MOD:FN",
        help="FN() gives the network: images in [0, 1] to logits",
        show_default=False,
    ),
]


def evaluate(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN_OR_FILE", help="a run folder, a classifier file, or timm:NAME", show_default=False
        ),
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            "--protocol", metavar="NAME", help="may be repeated  [default: clean, pgd-20]", show_default=False
        ),
    ] = None,
    data: Data = None,
    images: Annotated[
        int | None,
        typer.Option(
            "--images",
            metavar="N",
            min=1,
            help="only so many, in a fixed stratified order",
            show_default=False,
        ),
    ] = None,
    norm: Norm = None,
    radius: Radius = None,
    model: Model = None,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measures accuracy under protocols that have a name.

    The rows of a run are written into its evaluation folder too. With --model and a file, FN() gives the
    network whose weights the file holds.

    \b
    Examples:
      ebat evaluate runs/digits-eb-jdat
      ebat evaluate model.safetensors --protocol pgd-20 --data cifar10 --images 1000 --json
      ebat evaluate --model mynets:wide --data photos/ --norm linf --radius 8/255
    """
    protocols = protocol or ["clean", "pgd-20"]
    for name in protocols:
        PROTOCOLS.row(name)
    if source is None and model is None:
        raise ConfigError(
            "nothing to evaluate; give a run folder, a classifier file, or --model MODULE:FUNCTION"
        )
    run = None if source is None else find_source(source)
    threat = asked_threat(norm, radius)
    tell(f"evaluating {source or model}: {', '.join(protocols)}", quiet)
    attacks = any(PROTOCOLS.get(name).needs_threat for name in protocols)
    if run is not None and model is None:
        from ebat.evaluation.run import evaluate_run

        if attacks:
            check_threat(threat, run.config().threat)
        chosen = choose_device(device)
        other = None if data is None else images_for(load_classifier(str(run.path), "cpu"), run, data)
        rows = evaluate_run(
            run.path, protocols, other, threat, images, seed, device=chosen, progress=watched(quiet)
        )
    else:
        from ebat.evaluation.runner import evaluate as evaluate_classifier

        clf, image_set = _classifier_and_images(source, model, data, device)
        if attacks:
            check_threat(threat, clf.threat)
        rows = evaluate_classifier(clf, image_set, protocols, threat, images, seed, progress=watched(quiet))
    if as_json:
        print_json(rows)
    else:
        print_table(table(rows))


def _classifier_and_images(
    source: str | None, model: str | None, data: str | None, device: str | None
) -> tuple[Classifier, ImageSet]:
    if model is None:
        clf = load_classifier(str(source), device)
        return clf, images_for(clf, None, data)
    from ebat.classifier import Classifier
    from ebat.data.sources import load_images

    network = own_network(model)
    if source is not None:
        clf = Classifier.load(_weights(source), network)
        return clf.to(choose_device(device)), images_for(clf, None, data)
    if data is None:
        raise ConfigError(f"--model {model}: say on which images with --data (a data set or a path)")
    clf = as_classifier(network, load_images(data).class_names).eval()
    return clf.to(choose_device(device)), images_for(clf, None, data)


def _weights(source: str) -> Path:
    run = find_source(source)
    return Path(source) if run is None else run.best_classifier


def table(rows: Rows) -> Sequence[dict[str, Any]]:
    """Rows for a reader: accuracy with its 95 % interval, on what, against what."""
    return [
        {
            "protocol": name,
            "accuracy": share(row["value"]),
            "95 % interval": f"{share(row['lower'])} to {share(row['upper'])}",
            "images": row["count"],
            "data": f"{row['data']['name']} {row['data']['split']}",
            "threat": "-" if row["threat"] is None else f"{row['threat']['norm']} {row['threat']['radius']}",
            "seconds": row["seconds"],
        }
        for name, row in rows.items()
    ]
