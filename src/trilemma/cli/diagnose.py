"""``trilemma diagnose``: the energy landscape of a classifier, as figures and metrics."""

from __future__ import annotations

from typing import Annotated, Any

from trilemma.classifier.source import ClassifierSource
from trilemma.cli.common import (
    Data,
    Device,
    Json,
    Norm,
    Out,
    Quiet,
    Radius,
    Seed,
    choose_device,
    lint_summary,
    option,
    output_folder,
    parse_threat,
    percent,
    print_json,
    print_progress,
    print_table,
    print_text,
    require_threat,
    show_progress_bar,
)
from trilemma.cli.model import with_classifier
from trilemma.config.presets import DIAGNOSE, DIAGNOSE_DEFAULT, diagnose_presets
from trilemma.printing import print_lines
from trilemma.storing import collecting_unstored, go_on_without

ATTACK_HELP = (
    f"repeatable: {', '.join(DIAGNOSE)}, or a registered attack  [default: {', '.join(DIAGNOSE_DEFAULT)}]"
)


@with_classifier
def diagnose(
    classifier: ClassifierSource,
    data: Data = None,
    images: Annotated[int, option("--images N", "number of test images, class-balanced", min=1)] = 512,
    attack: Annotated[list[str] | None, option("--attack NAME", ATTACK_HELP)] = None,
    norm: Norm = None,
    radius: Radius = None,
    out: Out = None,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Runs the lint and analyses the energy landscape.

    Prints the mean energies of clean, adversarial and generated images, the distances between the three sets, and
    how each attack changes the energies of correctly classified images. Writes histograms of E(x) and E(x,y), a map
    of how the first attack moves each image, and two figures of all attacks.

    \b
    Examples:
      trilemma diagnose runs/digits-eb-jdat
      trilemma diagnose model.safetensors --data cifar10 --norm linf --radius 8/255 --out figures
      trilemma diagnose runs/digits-pgd-at --attack square --attack he-pgd --images 100
    """
    names = list(diagnose_presets(attack))
    classifier.check()
    run = classifier.run
    threat = parse_threat(norm, radius)
    folder = output_folder(out, run, "figures")
    from trilemma.evaluation.diagnose import diagnose as diagnose_classifier
    from trilemma.evaluation.source import open_images

    clf = classifier.open(choose_device(device), data)
    require_threat(threat, clf.threat)
    print_progress(f"generating and attacking up to {images} images: {', '.join(names)}", quiet)
    test_images = open_images(clf, run, data)
    with collecting_unstored() as errors:
        record = diagnose_classifier(
            clf,
            test_images,
            threat,
            images,
            seed,
            attacks=names,
            out=folder,
            progress=show_progress_bar(quiet),
        )
    for error in errors:
        go_on_without(error)
    if as_json:
        print_json({**record, "figures": None if errors else str(folder)})
        return
    print_findings(record)
    print_table(sets(record))
    print_table(distances(record))
    print_table(attacks(record))
    print_table(moves(record))
    print_text(note(record))
    if not errors:
        print_lines(f"figures: {folder}")


def print_findings(record: dict[str, Any]) -> None:
    """Prints each finding of the lint with its advice, or one line if there is none."""
    from trilemma.evaluation.lint.rows import findings_of

    findings, _, _ = findings_of([record])
    if not findings:
        print_lines(lint_summary([record]))
    for finding in findings:
        print_text(f"lint: {finding}")


def sets(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the mean energies of each set of images, logit units."""
    return [
        {
            "images": name,
            "count": energies["count"],
            "mean E(x)": energies["marginal"]["mean"],
            "mean E(x,y)": energies["joint"]["mean"],
        }
        for name, energies in record["sets"].items()
    ]


def distances(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the 1-Wasserstein distances between the sets, logit units."""
    return [
        {"distance": pair.replace("-", " to "), "in E(x)": values["marginal"], "in E(x,y)": values["joint"]}
        for pair, values in record["distances"].items()
    ]


def attacks(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the budget of each attack, and the shares of images it misclassifies and whose E(x) it raises."""
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
    """Returns mean energies under each attack, mean delta energies, and 1-Wasserstein distances to clean energies."""
    results = record["moves"]
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
        for name, move in results["attacks"].items()
    ]
    if not rows:
        return []
    clean = {"attack": "none", "E(x)": results["clean"]["marginal"]["mean"]}
    return [dict.fromkeys(rows[0]) | clean | {"E(x,y)": results["clean"]["joint"]["mean"]}, *rows]


def note(record: dict[str, Any]) -> str:
    """Returns the line that explains the two tables of attacks."""
    count = record["moves"]["count"]
    if not count:
        return "attacks: no image is classified correctly, so none was attacked"
    return f"attacks: means over the {count} correctly classified images; dE is clean minus attacked, W1 to clean"
