"""``trilemma quickstart``: three classifiers of the embedded digits, side by side in one report."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from trilemma.cli.common import (
    Device,
    Json,
    Quiet,
    choose_device,
    option,
    percent,
    print_error,
    print_json,
    print_progress,
    print_table,
    run_results,
    show_progress_bar,
    writable_folder,
)
from trilemma.cli.exits import INTERRUPTED
from trilemma.runs.run_directory import RunDirectory

NAMER = "standard"  # never saw an adversarial or a generated image, so it judges the samples of the other two
NAMES = (NAMER, "pgd-at", "eb-jdat")
PROTOCOLS = ("clean", "pgd-20")
# AutoAttack on as many images as take half a minute: enough to see how far above it the quick protocol stands.
AUTOATTACK, AUTOATTACK_IMAGES = "autoattack-standard", 100
THREAT = ("linf", "0.2")
# One chain for all three, so that their samples compare: eb-jdat's own. Steps per start: the less a start
# knows of its class, the longer the way.
CHAIN: dict[str, Any] = {
    "sampler": "langevin",
    "energy": "joint",
    "step_size": 0.25,
    "noise_std": 0.03,
    "clamp": 2.0,
}
STARTS = {"class-pca": 50, "class-mean-noise": 300, "uniform": 300}
# Those of diagnose that take a second or two, of both kinds.
ATTACKS = ("pgd", "trades-kl", "apgd-ce", "pgd-targeted", "fab-t")
DONE = ("finished", "stopped")


def quickstart(
    out: Annotated[Path, option("--out DIR", "where to work")] = Path("quickstart"),
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Trains, evaluates, samples and reports, in minutes.

    Three runs on scikit-learn's 8x8 digits, no network needed: standard, pgd-at and eb-jdat. Each is put to
    clean images, PGD-20 and (100 images) AutoAttack at linf 0.2, sampled from and diagnosed; DIR/report.html
    shows them side by side.
    Asked again, a finished quickstart prints its report; an unfinished one goes on where it was.

    \b
    Examples:
      trilemma quickstart
      trilemma quickstart --out /tmp/first-look
    """
    writable_folder(out)
    page = out / "report.html"
    if not page.is_file():
        try:
            work(out, page, device, quiet)
        except KeyboardInterrupt:
            go_on = f"trilemma quickstart --out {shlex.quote(str(out))}"
            print_error(f"interrupted; what is done is kept, go on with: {go_on}", prefix="")
            raise typer.Exit(INTERRUPTED) from None
    rows = run_results([out / name for name in NAMES])
    if as_json:
        print_json({"runs": rows, "report": str(page)})
    else:
        _print_results(rows)
        print(page)


def _print_results(runs: list[dict[str, Any]]) -> None:
    """Prints two tables: accuracies of every run, and metrics of its samples next to those of their starts."""
    print_table(
        [
            {
                "run": run["run"],
                "method": run["method"],
                "minutes": run["minutes"],
                **{protocol: percent(value) for protocol, value in run["accuracy"].items()},
            }
            for run in runs
        ]
    )
    print_table(
        [
            {
                "run": run["run"],
                "samples": record["name"],
                "named: start": percent(record["start"]["named"]),
                "sample": percent(record["sample"]["named"]),
                "distance: start": record["start"]["distance"],
                "sample ": record["sample"]["distance"],
                "real": record.get("real", {}).get("distance"),
            }
            for run in runs
            for record in run["samples"]
        ]
    )


def work(out: Path, page: Path, device: str | None, quiet: bool) -> None:
    """Whatever is not done yet, in order; the page comes last and so says that all is done."""
    chosen = str(choose_device(device))
    began = time.monotonic()

    def stage(text: str) -> None:
        print_progress(f"[{time.monotonic() - began:4.0f} s] {text}", quiet)

    for name in NAMES:
        if RunDirectory(out / name).status().get("status") not in DONE:
            stage(f"{name}: training")
            train(name, out / name, chosen, quiet)
    for name in NAMES:
        stage(f"{name}: evaluating, sampling, drawing its energies")
        look(out / name, out / NAMER, chosen, quiet)
    from trilemma.report.comparison import write_comparison
    from trilemma.report.html import write_report

    stage("writing the reports")
    for name in NAMES:
        write_report(out / name)
    write_comparison([out / name for name in NAMES], page, "Quickstart: three classifiers of digits")
    stage("done")


def train(name: str, folder: Path, device: str, quiet: bool) -> None:
    """One run, from its beginning or from its last checkpoint."""
    from trilemma.training import train as training

    resume = RunDirectory(folder).config_file.is_file()
    training.train(f"digits/{name}", out=folder, resume=resume, progress=not quiet, device=device)


def look(run: Path, namer: Path, device: str, quiet: bool) -> None:
    """Evaluates, samples and diagnoses a run; what an earlier quickstart left is not done again."""
    from trilemma.evaluation.diagnose import diagnose_run
    from trilemma.evaluation.evaluate import evaluate_run
    from trilemma.evaluation.samples import generate_samples
    from trilemma.runs.read import read_contents
    from trilemma.threat import Threat

    shown = show_progress_bar(quiet)
    found = read_contents(run)
    missing = [name for name in PROTOCOLS if name not in found.rows]
    if missing:
        evaluate_run(run, missing, threat=Threat(*THREAT), device=device, progress=shown)
    if AUTOATTACK not in found.rows:
        some: dict[str, Any] = {"images": AUTOATTACK_IMAGES, "resume": True}
        evaluate_run(run, [AUTOATTACK], threat=Threat(*THREAT), device=device, progress=shown, **some)
    for start, steps in STARTS.items():
        if start not in [record["start"] for record in found.samples]:
            judge = None if run == namer else namer
            generate_samples(run, start=start, steps=steps, namer=judge, progress=shown, **CHAIN)
    if found.diagnosis is None:
        diagnose_run(run, attacks=ATTACKS, device=device, progress=shown)
