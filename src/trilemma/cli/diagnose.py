"""``trilemma diagnose``: the energy landscape of a classifier, in figures and numbers."""

from __future__ import annotations

from typing import Annotated, Any

from trilemma.cli.common import (
    Data,
    Device,
    Json,
    Norm,
    Out,
    Quiet,
    Radius,
    Seed,
    Source,
    find_run,
    lint_summary,
    load_classifier,
    load_test_images,
    option,
    output_folder,
    parse_threat,
    percent,
    print_json,
    print_progress,
    print_table,
    require_threat,
    show_progress_bar,
)
from trilemma.config.presets import DIAGNOSE, DIAGNOSE_DEFAULT, diagnose_presets

ATTACKS = f"may be repeated: {', '.join(DIAGNOSE)}, or a registered attack  [default: {', '.join(DIAGNOSE_DEFAULT)}]"


def diagnose(
    source: Source,
    data: Data = None,
    images: Annotated[int, option("--images N", "test images, in a stratified order", min=1)] = 512,
    attack: Annotated[list[str] | None, option("--attack NAME", ATTACKS)] = None,
    norm: Norm = None,
    radius: Radius = None,
    out: Out = None,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Lints, and shows the energy landscape.

    Prints the means of the three sets, the distances between them, and how each attack moves the energies of
    the images that are classified right. Writes histograms of E(x) and E(x,y), the map of where the first
    attack moves each image, and two figures of all attacks.

    \b
    Examples:
      trilemma diagnose runs/digits-eb-jdat
      trilemma diagnose model.safetensors --data cifar10 --norm linf --radius 8/255 --out figures
      trilemma diagnose runs/digits-pgd-at --attack square --attack he-pgd --images 100
    """
    names = list(diagnose_presets(attack))
    run = find_run(source)
    threat = parse_threat(norm, radius)
    folder = output_folder(out, run, "figures")
    from trilemma.evaluation.diagnose import diagnose as diagnose_classifier

    clf = load_classifier(source, device)
    require_threat(threat, clf.threat)
    print_progress(f"generating up to {images} images, and attacking as many: {', '.join(names)}", quiet)
    found = load_test_images(clf, run, data)
    record = diagnose_classifier(
        clf, found, threat, images, seed, attacks=names, out=folder, progress=show_progress_bar(quiet)
    )
    if as_json:
        print_json({**record, "figures": str(folder)})
        return
    print_findings(record)
    print_table(sets(record))
    print_table(distances(record))
    print_table(attacks(record))
    print_table(moves(record))
    print(note(record))
    print(f"figures: {folder}")


def print_findings(record: dict[str, Any]) -> None:
    """Prints what the lint found and what to do about it, or one line if it found nothing."""
    from trilemma.evaluation.lint.rows import findings_of

    findings, _, _ = findings_of([record])
    if not findings:
        print(lint_summary([record]))
    for finding in findings:
        print(f"lint: {finding}")


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


def attacks(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What each attack was allowed, and of how many images it changed the class or raised E(x)."""
    return [
        {
            "attack": name,
            "budget": move["about"],
            "broken": percent(move["broken"]["value"]),
            "E(x) rose": percent(move["risen"]["value"]),
        }
        for name, move in record["moves"]["attacks"].items()
    ]


def moves(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Mean energies under each attack, mean delta energies, and 1-Wasserstein distances to the clean ones."""
    found = record["moves"]
    rows = [
        {
            "attack": name,
            "E(x)": move["marginal"]["mean"],
            "E(x,y)": move["joint"]["mean"],
            "dE(x)": move["delta_marginal"]["mean"],
            "dE(x,y)": move["delta_joint"]["mean"],
            "W1 E(x)": move["distance"]["marginal"],
            "W1 E(x,y)": move["distance"]["joint"],
        }
        for name, move in found["attacks"].items()
    ]
    if not rows:
        return []
    clean = {"attack": "none", "E(x)": found["clean"]["marginal"]["mean"]}
    return [dict.fromkeys(rows[0]) | clean | {"E(x,y)": found["clean"]["joint"]["mean"]}, *rows]


def note(record: dict[str, Any]) -> str:
    """How to read the two tables of attacks."""
    count = record["moves"]["count"]
    if not count:
        return "attacks: no image is classified right, so there is nothing to break"
    return f"attacks: means over the {count} images classified right; dE is clean minus attacked, W1 to clean"
