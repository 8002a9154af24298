"""``trilemma quickstart``: trains three classifiers on the embedded digits and compares them in one report."""

from __future__ import annotations

import os
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
)
from trilemma.cli.exits import INTERRUPTED
from trilemma.printing import print_lines
from trilemma.processes import Job, Say, run_jobs
from trilemma.progress import ProgressBar, can_draw
from trilemma.runs.run_directory import ENDED, RunDirectory
from trilemma.storing import writable_folder
from trilemma.units import duration

# Labels the samples of the other two runs; it was trained on neither adversarial nor generated images.
NAMER = "standard"
NAMES = (NAMER, "pgd-at", "eb-jdat")
PROTOCOLS = ("clean", "pgd-20")
# AutoAttack on as many images as take some ten seconds: enough to see by how much PGD-20 overestimates robustness.
AUTOATTACK, AUTOATTACK_IMAGES = "autoattack-standard", 64
DIAGNOSED_IMAGES = 128
# Two thirds of the recipes' epochs.
EPOCHS = 40
# Share of the whole work of each run, and of a run's work its training, for the progress bar.
SHARES = {NAMER: 0.15, "pgd-at": 0.35, "eb-jdat": 0.5}
TRAINING_SHARE = 0.7
# Runs at once: each keeps one core busy, and more of them would gain little of the longest.
WORKERS = min(2, os.cpu_count() or 1)
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


def quickstart(
    out: Annotated[Path, option("--out DIR", "output folder")] = Path("quickstart"),
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Trains, evaluates, samples and reports, in minutes.

    Three runs on the 8x8 digits in this package, offline: standard, pgd-at and eb-jdat. Each is evaluated on
    clean images, under PGD-20 and (64 images) under AutoAttack at linf 0.2, sampled and diagnosed. DIR/report.html
    compares them: it is there as soon as the first run has ended, and grows with each further one. Repeating the
    command resumes an unfinished quickstart, and prints the report of a finished one.

    \b
    Examples:
      trilemma quickstart
      trilemma quickstart --out /tmp/first-look
    """
    writable_folder(out)
    page = out / "report.html"
    if not is_finished(out, page):
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
        print_lines(page)


def _print_results(runs: list[dict[str, Any]]) -> None:
    """Prints two tables: accuracies of every run, and metrics of its samples next to those of their starts."""
    print_table(
        [
            {
                "run": run["run"],
                "method": run["method"],
                "training": duration(60 * run["minutes"]),
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


def is_finished(out: Path, page: Path) -> bool:
    """Whether every run is done and ``page`` was written after all of them."""
    reports = [out / name / "report.html" for name in NAMES]
    if not (page.is_file() and all(report.is_file() for report in reports)):
        return False
    return page.stat().st_mtime_ns >= max(report.stat().st_mtime_ns for report in reports)


def run_all_stages(out: Path, page: Path, device: str | None, quiet: bool) -> None:
    """Runs all stages that are not finished yet, several runs at once; ``page`` is written again as each run ends."""
    chosen = str(choose_device(device))
    began = time.monotonic()
    # The longest run beside the other two; the first one first, because its page is the first.
    order = sorted(NAMES, key=lambda name: (name != NAMER, -SHARES[name]))
    in_work: dict[str, str] = {}
    ended: list[str] = []
    with ProgressBar("quickstart", 1.0, not quiet and can_draw(), "share") as bar:

        def said(name: str, text: str) -> None:
            in_work[name] = text
            line = f"[{time.monotonic() - began:4.0f} s] {name}: {text}"
            if can_draw():
                bar.message(line)
            else:
                print_progress(line, quiet)

        def finished(name: str, error: BaseException | None) -> None:
            if error is not None:
                raise error
            ended.append(name)
            in_work.pop(name, None)
            write_page(out, page, [name for name in NAMES if name in ended])
            said("page", str(page))

        def idle() -> None:
            parts = {name: trained_share(out / name) for name in in_work if name in NAMES}
            done = sum(SHARES[name] for name in ended) + sum(
                TRAINING_SHARE * SHARES[name] * part for name, part in parts.items()
            )
            texts = [
                f"{name} {part:.0%}" if part < 1 else f"{name}: {in_work[name]}"
                for name, part in parts.items()
            ]
            bar.update(done=done, text=", ".join(texts))

        # The networks are so small that threads spend their time waiting for each other.
        jobs = [Job(name, make_run, (name, out, chosen), threads=1) for name in order]
        run_jobs(jobs, WORKERS if WORKERS > 1 else 0, said, finished, idle)


def write_page(out: Path, page: Path, names: list[str]) -> None:
    """Writes the comparison of the runs that have ended."""
    from trilemma.pages.comparison import write_comparison

    missing = [name for name in NAMES if name not in names]
    note = f"{EPOCHS} epochs per run, fewer than those of the recipes digits/..., so that the page is soon complete."
    if missing:
        note = f"Not complete: {' and '.join(missing)} will follow; reload this page in a minute. {note}"
    write_comparison(
        [out / name for name in names], page, "Quickstart: three classifiers of digits", note=note
    )


def trained_share(run: Path) -> float:
    """Returns the completed share of a run's training."""
    rows = RunDirectory(run).metrics()
    return min(1.0, rows[-1]["epoch"] / EPOCHS) if rows else 0.0


def make_run(say: Say, name: str, out: Path, device: str) -> None:
    """Trains, evaluates, samples and diagnoses one run, and writes its report; skips what an earlier call has done."""
    from trilemma.pages.html import write_report

    if RunDirectory(out / name).status().get("status") not in ENDED:
        say("training")
        train_or_resume(name, out / name, device)
    while RunDirectory(out / NAMER).status().get("status") not in ENDED:
        time.sleep(0.2)
    say("evaluating, sampling and diagnosing")
    analyse(out / name, out / NAMER, device)
    write_report(out / name)


def train_or_resume(name: str, folder: Path, device: str) -> None:
    """Trains one run, from its last checkpoint if there is one."""
    from trilemma.training import train as training

    resume = RunDirectory(folder).exists()
    overrides = {"training.epochs": EPOCHS}
    training.train(f"digits/{name}", overrides, out=folder, resume=resume, progress=False, device=device)


def analyse(run: Path, namer: Path, device: str) -> None:
    """Evaluates, samples and diagnoses a run; skips results that an earlier quickstart has written.

    Args:
        namer: run whose classifier labels the samples of the other runs.
    """
    from trilemma.evaluation.diagnose import diagnose
    from trilemma.evaluation.evaluate import evaluate_run
    from trilemma.evaluation.samples import generate
    from trilemma.runs.read import read_contents
    from trilemma.runs.records import is_stale
    from trilemma.threat import Threat

    contents = read_contents(run)
    rows = {name: row for name, row in contents.rows.items() if not is_stale(row)}
    missing = [name for name in PROTOCOLS if name not in rows]
    if missing:
        evaluate_run(run, missing, threat=Threat(*THREAT), device=device)
    if AUTOATTACK not in rows:
        options: dict[str, Any] = {"images": AUTOATTACK_IMAGES, "resume": True}
        evaluate_run(run, [AUTOATTACK], threat=Threat(*THREAT), device=device, **options)
    for start, steps in STARTS.items():
        if start not in [record["start"] for record in contents.samples if not is_stale(record)]:
            other_namer = None if run == namer else namer
            generate(run, start=start, steps=steps, namer=other_namer, **CHAIN)
    if contents.diagnosis is None or is_stale(contents.diagnosis):
        diagnose(run, attacks=ATTACKS, images=DIAGNOSED_IMAGES, device=device)
