"""What the studies share: cases and seeds as processes of their own, rows kept on disk, tables, figures, pages.

A study says which runs it needs (:meth:`Study.jobs`), what is measured of each (:meth:`Study.measure`) and how the
rows become tables and figures. :func:`main` does the rest:

- each run is one process on one thread, ``--jobs`` of them at a time;
- what a finished run measured is a file ``rows/KEY.json`` of the work folder, and no such run is made again. KEY ends
  in a hash of the run's configuration, so that a changed setting is another run. An interrupted run goes on from its
  own checkpoint;
- rows of ``benchmarks/results`` with the same configuration are taken over (``--fresh``: they are not), so that a study
  goes on with another work folder or on another machine. A run that others start from is trained again where its
  folder is missing; its row stays;
- a run whose training failed after every remedy (exit code 3) is a row with that outcome; one that ended otherwise is
  reported with its log, leaves the others alone, and is tried again by the next call;
- results go to ``benchmarks/results/STUDY-DATA.{json,md,png}`` and into ``docs/studies.md``. What a person wrote below
  ``## Setting`` and ``## Reading`` in the ``.md`` is kept and shown on the page.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import sys
import textwrap
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from trilemma import processes
from trilemma.config.recipe import recipe_tree
from trilemma.errors import TrainingFailedError, UserError
from trilemma.figures.style import Theme, save_figure
from trilemma.files import dark_path, write_text
from trilemma.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    from trilemma.classifier.classifier import Classifier

ROOT = Path(__file__).resolve().parents[2]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
# Stand for the folders of this machine in configurations, so that the same run has the same key on every machine.
WORK, PATH = "WORK", "PATH"
SETTING, RESULT, READING = "## Setting", "## Results", "## Reading"
NOT_READ = "Not written yet."
INTERRUPTED = 130
TEST_IMAGES = {
    **dict.fromkeys(("cifar10", "cifar10-32", "cifar10-resnet8"), 1000),
    **dict.fromkeys(("cifar10-shallow", "cifar10-cnn", "mnist-small-cnn"), 2000),
}

Row = dict[str, Any]
Draw = Callable[[Theme], Figure]


@dataclass(frozen=True)
class Scale:
    """What the command line chose.

    Attributes:
        data: ``digits``; ``cifar10`` (16x16, from the image archives in ``root``); ``cifar10-shallow``, whole images
            and the network of the recipe ``cifar10/fgsm-shallow``; or ``cifar10-32``, for an accelerator: whole images,
            all of them, PreActResNet-18.
        toy: every run as small as it can be, to see that the script works; its numbers mean nothing.
        work: where runs and rows are kept.
    """

    data: str
    work: Path
    toy: bool = False
    root: Path | None = None
    device: str = "cpu"

    def base(self) -> Row:
        """Data and network of every run, as the sections of a recipe."""
        data: Row = {"name": "digits"}
        network: Row = {"name": "small-resnet", "width": 16, "depth": 8}
        if self.photographs:
            data = {"name": "cifar10", "root": PATH}
        if self.data == "cifar10":
            data["size"] = 16
        if self.data == "cifar10-32" and not self.toy:
            network = {"name": "preact-resnet"}
        if self.data == "cifar10-shallow":
            network = recipe_tree("cifar10/fgsm-shallow")["network"]
        if self.toy:
            data["train_images"] = 40
            network |= {"filters": 1} if "filters" in network else {"width": 4}
        return {"data": data, "network": network}

    @property
    def photographs(self) -> bool:
        return self.data.startswith("cifar10")

    @property
    def test_images(self) -> int | None:
        """How many test images a protocol sees, the first ones; ``None``: all."""
        return 20 if self.toy else TEST_IMAGES.get(self.data)


@dataclass(frozen=True)
class Job:
    """One training run of a study.

    Attributes:
        case: what the run shows; a row of the table.
        config: a recipe as a tree, seed included; folders begin with :data:`WORK` or :data:`PATH`.
        group: which of the study's tables it belongs to.
        first: must be there before jobs of a smaller number are trained or measured; 0: no job waits for it.
        measures: another group, if this job makes no run but measures more of the run that has the same case, seed and
            configuration in that group; such jobs come last, unless they are ``first``.
    """

    case: str
    seed: int
    config: Row
    group: str = "main"
    first: int = 0
    measures: str = ""

    @cached_property
    def key(self) -> str:
        return self._key(self.group)

    @property
    def run_key(self) -> str:
        """Key of the job that makes the run which this one measures."""
        return self._key(self.measures or self.group)

    def _key(self, group: str) -> str:
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()[:8]
        name = re.sub(r"[^\w.+=-]+", "_", f"{group}-{self.case}")
        return f"{name}-{self.seed}-{digest}"

    @property
    def turn(self) -> int:
        """Jobs of one turn may be done at the same time, once those of the turns before are done."""
        return 2 if self.measures and not self.first else 1 - self.first


class Study(ABC):
    """One question, asked of several cases by several seeds."""

    name: str
    title: str
    scales: tuple[str, ...] = ("digits", "cifar10")
    # Whether a toy run has its own data and needs no --root.
    toy_has_data: bool = False

    def stem(self, scale: Scale) -> str:
        """Name of the result files, and of the study's part of the page."""
        return self.name if self.name == scale.data else f"{self.name}-{scale.data}"

    @abstractmethod
    def jobs(self, scale: Scale) -> list[Job]:
        """Every run of the study."""

    @abstractmethod
    def measure(self, job: Job, run: Path, scale: Scale) -> Row:
        """What the row of a finished run holds."""

    @abstractmethod
    def tables(self, rows: list[Row], scale: Scale) -> str:
        """The rows as Markdown: tables, each with the line that says how to read it."""

    @abstractmethod
    def figures(self, rows: list[Row], scale: Scale) -> dict[str, Draw]:
        """Suffix of the file name (``""`` for the main figure) to painter; rows are those that finished."""


# --- Rows ------------------------------------------------------------------------------------------------


def row_file(scale: Scale, job: Job) -> Path:
    return scale.work / "rows" / f"{job.key}.json"


def run_folder(scale: Scale, job: Job) -> Path:
    return scale.work / "runs" / job.run_key


def as_start(job: Job) -> str:
    """The run folder of ``job`` as ``training.start`` of another job."""
    return f"{WORK}/runs/{job.key}"


def on_this_machine(config: Row, scale: Scale) -> Row:
    """``config`` with the folders of this machine in place of :data:`WORK` and :data:`PATH`."""
    folders = {WORK: scale.work, PATH: scale.root}

    def placed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: placed(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [placed(inner) for inner in value]
        first, slash, rest = value.partition("/") if isinstance(value, str) else ("", "", "")
        return f"{folders[first]}{slash}{rest}" if first in folders else value

    result: Row = placed(config)
    return result


def stored_rows(jobs: Sequence[Job], scale: Scale) -> list[Row]:
    """The rows that are there, in the order of the jobs."""
    files = [row_file(scale, job) for job in jobs]
    return [json.loads(file.read_text()) for file in files if file.is_file()]


def finished(rows: Iterable[Row], **where: Any) -> list[Row]:
    """Rows that ended well and have these values."""
    return [row for row in rows if row["outcome"] == "finished" and _has(row, where)]


def of(rows: Iterable[Row], **where: Any) -> list[Row]:
    """Rows with these values, however they ended."""
    return [row for row in rows if _has(row, where)]


def _has(row: Row, where: Mapping[str, Any]) -> bool:
    return all(row.get(key) == value for key, value in where.items())


def make_row(study: Study, job: Job, scale: Scale) -> Row:
    """Trains (or goes on, or finds it done), measures, and writes the row; a row that is there already stays."""
    import trilemma
    from trilemma.config.recipe import build_config

    config, folder = build_config(on_this_machine(job.config, scale)), run_folder(scale, job)
    row: Row = {"case": job.case, "group": job.group, "seed": job.seed, "key": job.key, "config": job.config}
    if job.measures:
        row["measures"] = job.measures
    try:
        # A finished run is only measured, also where it was made by a version with other defaults.
        if RunDirectory(folder).status().get("status") != "finished":
            resume = (folder / "config.yaml").is_file()
            trilemma.train(config, out=folder, resume=resume, progress=False, device=scale.device)
        if row_file(scale, job).is_file():
            return stored_rows([job], scale)[0]
        began = time.perf_counter()
        row |= {"outcome": "finished", **study.measure(job, folder, scale)}
        row["measure_seconds"] = round(time.perf_counter() - began, 1)
    except TrainingFailedError as error:
        if row_file(scale, job).is_file():
            raise
        row |= {"outcome": "failed", "message": str(error)}
    run = RunDirectory(folder)
    row["train_seconds"] = 0.0 if job.measures else round(60 * run.status()["minutes"], 1)
    row["events"] = [{key: event[key] for key in ("step", "epoch", "kind", "name")} for event in run.events()]
    write_text(row_file(scale, job), json.dumps(row) + "\n")
    return row


def take_over(jobs: Sequence[Job], scale: Scale, published: Path) -> None:
    """Writes the rows of ``published`` whose case, seed and configuration are those of a job without a row."""
    if not published.is_file():
        return

    def identity(row: Mapping[str, Any]) -> str:
        return json.dumps([row["group"], row["case"], row["seed"], row["config"]], sort_keys=True)

    rows = {identity(row): row for row in json.loads(published.read_text(encoding="utf-8"))["rows"]}
    for job in jobs:
        row = rows.get(_without_places(identity(vars(job)), scale))
        if row is not None and not row_file(scale, job).is_file():
            write_text(row_file(scale, job), json.dumps(row | {"key": job.key}) + "\n")
            tell(f"{job.group}: {job.case}, seed {job.seed}: taken over from {published.name}")


def missing_jobs(jobs: Sequence[Job], scale: Scale) -> list[Job]:
    """The jobs without a row, and those that they need whose run folder is missing or incomplete."""
    missing = {job.key for job in jobs if not row_file(scale, job).is_file()}

    def untrained(job: Job) -> bool:
        status = RunDirectory(run_folder(scale, job)).status().get("status")
        return job.first > 0 and status not in ("finished", "stopped", "failed")

    return [job for job in jobs if job.key in missing or (missing and untrained(job))]


# --- Processes -------------------------------------------------------------------------------------------


def make_rows(study: Study, jobs: Sequence[Job], scale: Scale, parallel: int) -> list[str]:
    """Makes what is missing; returns the keys of the jobs that failed.

    Args:
        parallel: processes at a time, one thread each; 0 works in this process.

    Raises:
        KeyboardInterrupt: after every process saved its state.
    """
    missing = missing_jobs(jobs, scale)
    tell(f"{study.name}, {scale.data}: {len(jobs)} runs, {len(jobs) - len(missing)} of them done before")
    logs = scale.work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    progress = _Progress(len(missing), max(parallel, 1))
    by_key, began = {job.key: job for job in missing}, dict[str, float]()

    def ended(key: str, error: BaseException | None) -> None:
        progress.done(by_key[key], scale, time.monotonic() - began.get(key, time.monotonic()))
        if error is not None:
            failed.append(key)
            tell(f"  see {logs / key}.log: {error}")

    for turn in sorted({job.turn for job in missing}):
        work = [
            processes.Job(job.key, _make_row, (study, job, scale), logs / f"{job.key}.log", threads=1)
            for job in missing
            if job.turn == turn
        ]
        processes.run_jobs(work, parallel, lambda key, _: began.update({key: time.monotonic()}), ended, _idle)
    return failed


def _make_row(say: processes.Say, study: Study, job: Job, scale: Scale) -> None:
    say("begun")
    make_row(study, job, scale)


def _idle() -> None: ...


class _Progress:
    """One line on standard error per finished run, with the time left."""

    def __init__(self, total: int, parallel: int) -> None:
        self.total, self.parallel, self.count, self.seconds = total, parallel, 0, 0.0

    def done(self, job: Job, scale: Scale, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds
        left = self.seconds / self.count * (self.total - self.count) / self.parallel
        file = row_file(scale, job)
        outcome = json.loads(file.read_text())["outcome"] if file.is_file() else "no row"
        tell(
            f"[{self.count}/{self.total}] {job.group}: {job.case}, seed {job.seed}: {outcome}, {seconds:.0f} s; "
            f"about {left / 60:.1f} min left"
        )


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- Measures that several studies take -------------------------------------------------------------------


def accuracies(
    run: Path,
    checkpoint: str,
    protocols: Sequence[str],
    scale: Scale,
    radius: str | None = None,
    images: int | None = None,
) -> Row:
    """Protocol name to accuracy on the run's test images, of its ``best`` or ``last`` checkpoint.

    Args:
        radius: by default the run's own.
        images: how many test images, by default ``scale.test_images``.
    """
    import trilemma
    from trilemma.evaluation.source import open_data

    directory = RunDirectory(run)
    data = directory.config().data
    clf = loaded(directory, checkpoint, scale)
    threat = None if radius is None else trilemma.Threat(clf.threat.norm if clf.threat else "linf", radius)
    test = open_data(clf, data.name, data.root, data.size)
    rows = trilemma.evaluate(clf, test, list(protocols), threat, images or scale.test_images)
    return {name: row["value"] for name, row in rows.items()}


def loaded(run: RunDirectory, checkpoint: str, scale: Scale) -> Classifier:
    """The classifier of a checkpoint, in the memory format in which attacks on it are fastest."""
    import trilemma
    from trilemma.classifier.memory_format import preferred_memory_format, set_memory_format

    clf = trilemma.load(classifier_file(run, checkpoint)).to(scale.device)
    set_memory_format(clf.network, preferred_memory_format(clf.network, clf.device))
    return clf


def classifier_file(run: RunDirectory, checkpoint: str) -> Path:
    return run.best_classifier if checkpoint == "best" else run.last_classifier


def epoch_rows(run: Path) -> list[Row]:
    """The lines of the evaluations on held-out images, in order."""
    return [row for row in RunDirectory(run).metrics() if row["kind"] == "epoch"]


def curves(run: Path, names: Sequence[str], width: float = 1.0) -> Row:
    """``epoch`` and the named training values, one mean per ``width`` epochs (at most 200 points)."""
    lines = [row for row in RunDirectory(run).metrics() if row["kind"] == "step"]
    width = max(width, lines[-1]["epoch"] / 200) if lines else width
    bins: dict[int, list[Row]] = {}
    for row in lines:
        bins.setdefault(int((row["epoch"] - 1e-9) / width), []).append(row)
    result: Row = {"epoch": [round(part[-1]["epoch"], 3) for part in bins.values()]}
    for name in names:
        values = [[row[name] for row in part if row.get(name) is not None] for part in bins.values()]
        result[name] = [round(mean(part), 5) if part else None for part in values]
    return result


# --- Tables ----------------------------------------------------------------------------------------------


def cell(values: Iterable[float | None], digits: int = 3) -> str:
    """``mean (lowest-highest)``; a dash where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ({min(known):.{digits}f} to {max(known):.{digits}f})" if len(known) > 1 else ""
    return f"{mean(known):.{digits}f}{spread}"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def paragraph(text: str) -> str:
    """``text`` in lines of at most 120 characters."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def cases(rows: Iterable[Row]) -> list[str]:
    """Case names in their first order."""
    return list(dict.fromkeys(row["case"] for row in rows))


# --- Results ---------------------------------------------------------------------------------------------


def write_results(
    study: Study, jobs: Sequence[Job], scale: Scale, results: Path, docs: Path | None, command: str
) -> Path:
    """Writes JSON, Markdown and figures of the rows that are there, and the page; returns the Markdown."""
    rows = stored_rows(jobs, scale)
    name = study.stem(scale)
    about = _about(rows, jobs)
    lines = _without_places(",\n".join("  " + json.dumps(row) for row in rows), scale)
    described = json.dumps(
        {"study": study.name, "data": scale.data, "command": command, "about": about}, indent=1
    )
    write_text(results / f"{name}.json", described[:-2] + ',\n "rows": [\n' + lines + "\n]\n}\n")
    drawn = study.figures([row for row in rows if row["outcome"] == "finished"], scale) if rows else {}
    for suffix, draw in drawn.items():
        save_figure(results / f"{name}{suffix}.png", draw)
    page = results / f"{name}.md"
    setting, reading = _written(page, SETTING), _written(page, READING)
    tables = study.tables(rows, scale)
    pictures = "\n\n".join(f"![{study.title}]({{}}{name}{suffix}.png)" for suffix in drawn)
    title = study.title if name == study.name else f"{study.title}: {scale.data}"
    head = (f"# {title}", f"`{command}`", paragraph(about))
    parts = (*head, SETTING, setting, RESULT, tables, pictures.replace("{}", ""), READING, reading)
    write_text(page, "\n\n".join(part for part in parts if part) + "\n")
    if docs is not None:
        for suffix in drawn:
            for path in (results / f"{name}{suffix}.png", dark_path(results / f"{name}{suffix}.png")):
                copy = docs / "images" / "studies" / path.name
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
        run = paragraph(f"**How it was run.** {' '.join(setting.split())} {about}")
        shown = (run, tables, pictures.replace("{}", "images/studies/"), "**Reading**", reading)
        update_page(docs / "studies.md", name, "\n\n".join(part for part in shown if part))
    return page


def _without_places(text: str, scale: Scale) -> str:
    """``text`` with WORK and PATH for the folders of this machine: published rows name none."""
    for folder, name in ((scale.work, WORK), (scale.root, PATH)):
        if folder is not None:
            text = text.replace(str(folder), name)
    return text


def _written(page: Path, heading: str) -> str:
    """What a person wrote in one section of the page; later runs of the study keep it."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    return text.partition(f"\n{heading}\n")[2].partition("\n## ")[0].strip() or NOT_READ


def update_page(page: Path, name: str, text: str) -> None:
    """Puts ``text`` between the marks ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->`` of the page."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, mark, rest = page.read_text(encoding="utf-8").partition(begin)
    _, last, tail = rest.partition(end)
    if not mark or not last:
        raise SystemExit(f"{page}: has no marks '{begin}' and '{end}'")
    write_text(page, f"{head}{begin}\n\n{text}\n\n{end}{tail}")


def _about(rows: list[Row], jobs: Sequence[Job]) -> str:
    import torch

    import trilemma

    minutes = sum(row["train_seconds"] + row.get("measure_seconds", 0) for row in rows) / 60
    runs = [row for row in rows if not row.get("measures")]
    wanted = sum(not job.measures for job in jobs)
    missing = f" {wanted - len(runs)} of {wanted} runs are missing." if len(runs) < wanted else ""
    further, count = len(jobs) - wanted, len(rows) - len(runs)
    if count < further:
        missing += f" {further - count} of {further} longer measurements are missing."
    made = f"{len(runs)} runs" if wanted else f"{count} rows"
    return (
        f"trilemma {trilemma.__version__}, torch {torch.__version__}, {platform.machine()}; {made}, one thread each, "
        f"{minutes:.0f} minutes of one core in all. Mean over seeds (lowest to highest).{missing}"
    )


# --- Command line ----------------------------------------------------------------------------------------


def main(study: Study, about: str, argv: Sequence[str] | None = None) -> int:
    """Runs a study; returns the exit code."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--data", choices=study.scales, default=study.scales[0])
    parser.add_argument("--root", type=Path, help="folder with the archives of the data (not for digits)")
    parser.add_argument(
        "--jobs", type=int, default=2, help="runs at a time, one core each; 0: in this process"
    )
    parser.add_argument("--work", type=Path, help="where runs and rows are kept [runs/studies/STUDY-DATA]")
    parser.add_argument("--results", type=Path, help="where tables and figures go [benchmarks/results]")
    parser.add_argument("--cases", nargs="+", help="only these cases (results then say what is missing)")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these seeds")
    parser.add_argument("--groups", nargs="+", help="only these groups of rows, such as main")
    parser.add_argument(
        "--toy", action="store_true", help="tiny runs that show the script works; writes to --work"
    )
    parser.add_argument(
        "--report", action="store_true", help="no runs: tables and figures of the rows that are there"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="make every run here, also those in benchmarks/results"
    )
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(argv)
    if options.data != "digits" and options.root is None and not (options.toy and study.toy_has_data):
        parser.error(f"--data {options.data} needs --root, the folder with train.tar.gz and test.tar.gz")
    own = study.stem(Scale(options.data, Path())) + ("-toy" if options.toy else "")
    work = (options.work or Path("runs") / "studies" / own).resolve()
    root = None if options.root is None else options.root.resolve()
    scale = Scale(options.data, work, options.toy, root, options.device)
    everything = study.jobs(scale)
    if unknown := set(options.cases or ()) - {job.case for job in everything}:
        known = ", ".join(cases({"case": job.case} for job in everything))
        parser.error(f"--cases: no {', '.join(sorted(unknown))}; there are {known}")
    if unknown := set(options.groups or ()) - {job.group for job in everything}:
        known = ", ".join(dict.fromkeys(job.group for job in everything))
        parser.error(f"--groups: no {', '.join(sorted(unknown))}; there are {known}")
    chosen = [job for job in everything if _asked(job, options)]
    _check(chosen)
    results = options.results or (work / "results" if options.toy else RESULTS)
    # Rows of tiny runs mean nothing; they are taken over only from a folder that was named.
    if not options.fresh and (options.results or not options.toy):
        take_over(chosen, scale, results / f"{study.stem(scale)}.json")
    failed: list[str] = []
    # Spinning threads take the cores of the other processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        if not options.report:
            failed = make_rows(study, chosen, scale, options.jobs)
    except KeyboardInterrupt:
        tell("interrupted: finished rows and the state of the others are kept; the same command goes on")
        return INTERRUPTED
    docs = None if options.toy or options.results else DOCS
    command = f"python benchmarks/studies/{study.name}.py --data {options.data}"
    command += " --root PATH" if options.root else ""
    page = write_results(study, everything, scale, results, docs, command)
    print(page.read_text(encoding="utf-8"))
    if failed:
        tell(
            f"{len(failed)} runs gave no row; their logs are in {work / 'logs'}; the same command tries them again"
        )
    return 1 if failed else 0


def _asked(job: Job, options: argparse.Namespace) -> bool:
    """Whether a run is wanted; what others need is wanted with every case and group."""
    named = options.cases is None or job.first > 0 or job.case in options.cases
    grouped = options.groups is None or job.first > 0 or job.group in options.groups
    return named and grouped and (options.seeds is None or job.group == "judge" or job.seed in options.seeds)


def _check(jobs: Sequence[Job]) -> None:
    """Every configuration is possible, before the first run begins."""
    from trilemma.config.recipe import build_config

    wrong = []
    for job in jobs:
        try:
            build_config(job.config)
        except UserError as error:
            wrong.append(f"{job.group}: {job.case}: {error}")
    if wrong:
        raise SystemExit("these runs are impossible:\n" + "\n".join(dict.fromkeys(wrong)))
    if len({job.key for job in jobs}) < len(jobs):
        raise SystemExit("two runs of the study are the same; a bug of the study")
