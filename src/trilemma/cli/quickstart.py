"""``trilemma quickstart``: trains three classifiers on the embedded digits and compares them in one report."""

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

# Labels the samples of the other two runs; it was trained on neither adversarial nor generated images.
NAMER = "standard"
NAMES = (NAMER, "pgd-at", "eb-jdat")
PROTOCOLS = ("clean", "pgd-20")
# AutoAttack on as many images as take half a minute: enough to see by how much PGD-20 overestimates robustness.
AUTOATTACK, AUTOATTACK_IMAGES = "autoattack-standard", 100
THREAT = ("linf", "0.2")
# All three runs use the sampler settings of eb-jdat, so that their samples are comparable. ``STARTS`` maps each start
# to its number of steps; starts with less class information need more.
CHAIN: dict[str, Any] = {
    "sampler": "langevin",
    "energy": "joint",
    "step_size": 0.25,
    "noise_std": 0.03,
    "clamp": 2.0,
}
STARTS = {"class-pca": 50, "class-mean-noise": 300, "uniform": 300}
# The attacks of ``diagnose`` that take at most two seconds, of both aims.
ATTACKS = ("pgd", "trades-kl", "apgd-ce", "pgd-targeted", "fab-t")
DONE = ("finished", "stopped")


def quickstart(
    out: Annotated[Path, option("--out DIR", "output folder")] = Path("quickstart"),
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Trains, evaluates, samples and reports, in minutes.

    Three runs on the 8x8 digits in this package, offline: standard, pgd-at and eb-jdat. Each is evaluated on
    clean images, under PGD-20 and (100 images) under AutoAttack at linf 0.2, sampled and diagnosed; DIR/report.html
    compares them. Repeating the command resumes an unfinished quickstart, and prints the report of a finished one.

    \b
    Examples:
      trilemma quickstart
      trilemma quickstart --out /tmp/first-look
    """
    writable_folder(out)
    page = out / "report.html"
    if not page.is_file():
        try:
            run_all_stages(out, page, device, quiet)
        except KeyboardInterrupt:
            command = f"trilemma quickstart --out {shlex.quote(str(out))}"
            print_error(f"interrupted; finished steps are kept, resume with: {command}", prefix="")
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


def run_all_stages(out: Path, page: Path, device: str | None, quiet: bool) -> None:
    """Runs all stages that are not finished yet; ``page`` is written last, so it exists only after all of them."""
    chosen = str(choose_device(device))
    began = time.monotonic()

    def stage(text: str) -> None:
        print_progress(f"[{time.monotonic() - began:4.0f} s] {text}", quiet)

    for name in NAMES:
        if RunDirectory(out / name).status().get("status") not in DONE:
            stage(f"{name}: training")
            train_or_resume(name, out / name, chosen, quiet)
    for name in NAMES:
        stage(f"{name}: evaluating, sampling, diagnosing")
        analyse(out / name, out / NAMER, chosen, quiet)
    from trilemma.pages.comparison import write_comparison
    from trilemma.pages.html import write_report

    stage("writing the reports")
    for name in NAMES:
        write_report(out / name)
    write_comparison([out / name for name in NAMES], page, "Quickstart: three classifiers of digits")
    stage("done")


def train_or_resume(name: str, folder: Path, device: str, quiet: bool) -> None:
    """Trains one run, from its last checkpoint if there is one."""
    from trilemma.training import train as training

    resume = RunDirectory(folder).config_file.is_file()
    training.train(f"digits/{name}", out=folder, resume=resume, progress=not quiet, device=device)


def analyse(run: Path, namer: Path, device: str, quiet: bool) -> None:
    """Evaluates, samples and diagnoses a run; skips results that an earlier quickstart has written.

    Args:
        namer: run whose classifier labels the samples of the other runs.
    """
    from trilemma.evaluation.diagnose import diagnose
    from trilemma.evaluation.evaluate import evaluate_run
    from trilemma.evaluation.samples import generate
    from trilemma.runs.read import read_contents
    from trilemma.threat import Threat

    progress = show_progress_bar(quiet)
    contents = read_contents(run)
    missing = [name for name in PROTOCOLS if name not in contents.rows]
    if missing:
        evaluate_run(run, missing, threat=Threat(*THREAT), device=device, progress=progress)
    if AUTOATTACK not in contents.rows:
        options: dict[str, Any] = {"images": AUTOATTACK_IMAGES, "resume": True}
        evaluate_run(run, [AUTOATTACK], threat=Threat(*THREAT), device=device, progress=progress, **options)
    for start, steps in STARTS.items():
        if start not in [record["start"] for record in contents.samples]:
            other_namer = None if run == namer else namer
            generate(run, start=start, steps=steps, namer=other_namer, progress=progress, **CHAIN)
    if contents.diagnosis is None:
        diagnose(run, attacks=ATTACKS, device=device, progress=progress)
