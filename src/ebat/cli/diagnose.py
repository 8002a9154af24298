"""``ebat diagnose``: the energy landscape of a classifier, in figures and numbers."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ebat.cli.console import print_json, print_table, tell, watched
from ebat.cli.folder import out_folder
from ebat.cli.options import Data, Device, Json, Norm, Out, Quiet, Radius, Seed, Source
from ebat.cli.source import find_source, images_for, load_classifier
from ebat.cli.threat import asked_threat, check_threat


def diagnose(
    source: Source,
    data: Data = None,
    images: Annotated[
        int, typer.Option("--images", metavar="N", min=1, help="test images, in a stratified order")
    ] = 512,
    norm: Norm = None,
    radius: Radius = None,
    out: Out = None,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Shows the energies of clean, adversarial and generated images.

    Writes histograms of E(x) and E(x,y) and the map of where the attack moves each image, and prints the
    three means and the distances between the three sets.

    \b
    Examples:
      ebat diagnose runs/digits-eb-jdat
      ebat diagnose model.safetensors --data cifar10 --norm linf --radius 8/255 --out figures
    """
    run = find_source(source)
    threat = asked_threat(norm, radius)
    folder = out_folder(out, run, "figures")
    from ebat.evaluation.diagnose import diagnose as diagnose_classifier

    clf = load_classifier(source, device)
    check_threat(threat, clf.threat)
    tell(f"attacking and generating {images} images", quiet)
    record = diagnose_classifier(
        clf, images_for(clf, run, data), threat, images, seed, out=folder, progress=watched(quiet)
    )
    if as_json:
        print_json({**record, "figures": str(folder)})
        return
    print_table(sets(record))
    print_table(distances(record))
    print(f"figures: {folder}")


def sets(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Mean energies of each set of images, logit units."""
    return [
        {
            "images": name,
            "count": found["count"],
            "mean E(x)": found["marginal"]["mean"],
            "mean E(x,y)": found["joint"]["mean"],
        }
        for name, found in record["sets"].items()
    ]


def distances(record: dict[str, Any]) -> list[dict[str, Any]]:
    """1-Wasserstein distances between the sets, logit units."""
    return [
        {"distance": pair.replace("-", " to "), "in E(x)": found["marginal"], "in E(x,y)": found["joint"]}
        for pair, found in record["distances"].items()
    ]
