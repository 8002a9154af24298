"""``trilemma lint``: the checks that precede every evaluation, on their own."""

from __future__ import annotations

from trilemma.classifier.source import ClassifierSource
from trilemma.cli.common import (
    Data,
    Device,
    Json,
    Norm,
    Quiet,
    Radius,
    Seed,
    choose_device,
    parse_threat,
    print_json,
    print_progress,
)
from trilemma.cli.diagnose import print_findings
from trilemma.cli.model import with_classifier


@with_classifier
def lint(
    classifier: ClassifierSource,
    data: Data = None,
    norm: Norm = None,
    radius: Radius = None,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Looks for mistakes in a classifier and its images.

    Checks for wrong normalisation, hidden gradients, random forward passes, probabilities instead of logits, labels of
    another order and more, and prints each finding with its cause and remedy. `trilemma evaluate` and `diagnose` make
    the same checks. Without a stored threat model and without --radius, nothing is attacked.

    \b
    Examples:
      trilemma lint runs/digits-pgd-at
      trilemma lint weights.pt --network wide-resnet,depth=34,width=10 --data cifar10 --radius 8/255
      trilemma lint --model mynets:wide --data photos/ --json
    """
    classifier.check()
    threat = parse_threat(norm, radius)
    from trilemma.evaluation.evaluate import check_fit, check_output
    from trilemma.evaluation.lint.rows import lint_data
    from trilemma.evaluation.source import open_images

    clf = classifier.open(choose_device(device), data)
    images = open_images(clf, classifier.run, data)
    check_fit(clf, images)
    check_output(clf, images)
    print_progress(f"checking {classifier} on images of {images.name}", quiet)
    record = {"lint": lint_data(clf, images, threat or clf.threat, seed).record()}
    if as_json:
        print_json({**record["lint"], "data": {"name": images.name, "split": images.split}})
    else:
        print_findings(record)
