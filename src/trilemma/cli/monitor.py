"""``trilemma monitor``: judges the log of any training run by the monitors of the training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from trilemma.cli.common import Json, argument, option, print_json, print_table, print_text
from trilemma.errors import ConfigError, NotStoredError
from trilemma.monitors.verdict import Verdict, judge
from trilemma.printing import print_lines
from trilemma.storing import go_on_without, writable_file

LogFile = Annotated[Path, argument("LOG", "CSV, TSV, JSON or JSON lines file, or a run folder")]
Images = Annotated[
    int | None,
    option(
        "--images N", "number of held-out images of each evaluation  [default: as in the log, or many]", min=1
    ),
]
Classes = Annotated[
    int | None, option("--classes N", "number of classes  [default: chance as in the log, or 10]", min=2)
]
Picture = Annotated[
    Path | None, option("--figure FILE", "PNG file for the curves with the alarms, beside a dark version")
]


def monitor(
    log: LogFile,
    images: Images = None,
    classes: Classes = None,
    figure: Picture = None,
    as_json: Json = False,
) -> None:
    """Judges a training log: collapsed, overfit or healthy.

    Reads the accuracies of a run, from any program, as the training loop of trilemma does, and prints the alarms, a
    verdict, and the best epoch to keep. The log has one row per evaluation with the columns epoch and pgd, and where
    known fgsm and clean; accuracies lie in [0, 1]. Accepted for pgd: pgd, pgd10, PGD-10, pgd_20, pgd-50-10, robust,
    adversarial, adv; for clean also natural or test_acc. Words such as test, val, held_out and acc may be added.
    The exit code is 0 whatever the verdict.

    \b
    Examples:
      trilemma monitor log.csv
      trilemma monitor log.csv --images 1000 --figure curves.png
      trilemma monitor runs/digits-fgsm --json
    """
    if figure is not None and figure.suffix.lower() != ".png":
        raise ConfigError(f"--figure {figure}: the name must end in .png")
    if figure is not None:
        writable_file(figure, "choose another --figure")
    verdict = judge(log, images, classes)
    if figure is not None:
        try:
            _save(figure, verdict)
        except NotStoredError as error:
            go_on_without(error)
            figure = None
    if as_json:
        print_json(
            {
                "log": str(log),
                "verdict": verdict.state,
                "text": verdict.text,
                "best_epoch": verdict.best_epoch,
                "evaluations": len(verdict.evaluations),
                "alarms": [
                    {
                        "epoch": alarm.epoch,
                        "name": alarm.name,
                        "message": alarm.message,
                        "since": alarm.since,
                    }
                    for alarm in verdict.alarms
                ],
                "figure": None if figure is None else str(figure),
            }
        )
        return
    print_table(
        [
            {"epoch": f"{alarm.epoch:g}", "alarm": alarm.name, "message": alarm.message}
            for alarm in verdict.alarms
        ]
    )
    print_text(verdict.text)
    if figure is not None:
        print_lines(figure)


def _save(path: Path, verdict: Verdict) -> None:
    """Draws the log and writes the light and the dark version."""
    from trilemma.figures.style import save_figure
    from trilemma.figures.training_curves import draw_log

    rows = [
        {"epoch": row.epoch, "clean": row.clean, "fgsm": row.fgsm, "pgd": row.pgd10}
        for row in verdict.evaluations
    ]
    events = [{"kind": "alarm", "name": alarm.name, "epoch": alarm.epoch} for alarm in verdict.alarms]
    save_figure(path, lambda theme: draw_log(rows, events, verdict.best_epoch, theme))
