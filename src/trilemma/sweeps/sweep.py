"""``trilemma.sweep``: trains every combination of values, each in a run folder of its own, and compares them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

from trilemma.config.grid import grid_of, parse_grid
from trilemma.config.registry import PROTOCOLS
from trilemma.errors import ConfigError, NotStoredError
from trilemma.pages.gather import comparison_table
from trilemma.pages.table import Table
from trilemma.printing import print_message
from trilemma.runs.lock import writing
from trilemma.runs.run_directory import default_folder
from trilemma.storing import go_on_without
from trilemma.sweeps.launchers import LAUNCHERS, cores, run_local, run_submitted, slurm_executor
from trilemma.sweeps.plan import LOGS, MAX_RUNS, Plan, make_plan
from trilemma.sweeps.progress import SweepProgress
from trilemma.sweeps.task import Task, failure, is_trained, missing_protocols

PAGE = "comparison.html"


@dataclass(frozen=True, repr=False)
class Sweep:
    """A sweep that has ended; prints itself as a table.

    Attributes:
        path: folder of the sweep.
        runs: folders of all trained runs in it, also of earlier sweeps.
        failed: name of a run to why it failed, in one line, of the runs of this sweep.
        table: one entry for the runs that differ by their seed only: mean, standard deviation, lowest and highest.
        page: the comparison page; ``None`` if no run is trained, or if it cannot be written.
    """

    path: Path
    runs: tuple[Path, ...]
    failed: Mapping[str, str]
    table: Table
    page: Path | None

    def __repr__(self) -> str:
        return "\n".join([*self._lines(), repr(self.table)])

    def _repr_html_(self) -> str:
        return "<br>".join(map(escape, self._lines())) + self.table._repr_html_()

    def _lines(self) -> list[str]:
        first = f"Sweep {self.path}: {len(self.runs)} runs trained, {len(self.failed)} failed"
        return [first, *(f"failed: {name}: {line}" for name, line in self.failed.items())]


def sweep(
    recipe: str,
    values: Mapping[str, Any] | Iterable[str],
    out: str | Path | None = None,
    *,
    jobs: int | None = None,
    launcher: Literal["local", "slurm"] = "local",
    slurm: Mapping[str, Any] | None = None,
    evaluate: Sequence[str] = (),
    images: int | None = None,
    device: str = "auto",
    progress: bool = True,
    max_runs: int = MAX_RUNS,
) -> Sweep:
    """Trains a recipe with every combination of some values, and compares the runs.

    Each combination is a run in a folder of its own, named by its values. Calling it again continues: trained runs are
    skipped, interrupted ones resumed. A call with further values of the same keys adds runs to the folder. A run that
    fails leaves the others alone.

    With several jobs, the processes import the program that calls this function, which therefore belongs below
    ``if __name__ == "__main__":``.

    Args:
        recipe: name of a packaged recipe (``digits/eb-jdat``) or a YAML file.
        values: ``{"seed": range(5), "method.beta": [0.1, 1]}``, where a list, tuple or range holds several values and
            anything else is one value that all runs share; or ``["seed=0..4", "method.beta=0.1,1"]``. ``seed`` is
            short for ``training.seed``.
        out: folder of the sweep; by default ``runs/`` and the name of the recipe and ``-sweep``.
        jobs: number of runs at once; by default one on this machine, and all of them on a cluster. Several runs share
            the cores; with another number of threads, results differ by rounding.
        launcher: ``local`` or, on a cluster, ``slurm`` (extra ``slurm``).
        slurm: options of the jobs of a cluster, such as ``{"partition": "gpu", "time": 240}`` (minutes), as of
            ``submitit.SlurmExecutor``.
        evaluate: names of protocols to evaluate each trained run by, on its own test images and with its own threat.
            Without, the table has the accuracies on held-out images only.
        images: number of test images; ``None`` for all.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``, of every run.
        progress: show progress on standard error.
        max_runs: more combinations are refused.

    Returns:
        The trained runs, the failed ones, the table and the path of the comparison page.

    Raises:
        UserError: a mistake in the values, the recipe or the folder, before the first run begins.
        KeyboardInterrupt: SIGINT or SIGTERM, after every run has saved its state.
    """
    jobs = _check_jobs(jobs, launcher)
    # The child of a program without `if __name__ == "__main__":` would begin the sweep again.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigError('sweep: with several jobs, call it below `if __name__ == "__main__":`')
    grid = grid_of(values) if isinstance(values, Mapping) else parse_grid(values)
    folder = Path(out) if out is not None else Path(f"{default_folder(recipe)}-sweep")
    protocols = list(dict.fromkeys(evaluate))
    for name in protocols:
        PROTOCOLS.row(name)
    plan = make_plan(recipe, grid, folder, max_runs)
    _check_threats(plan, protocols)
    executor = None
    if launcher == "slurm":
        executor = slurm_executor(folder / LOGS / "slurm", slurm or {})
    else:
        # Imported here, because it imports torch, which a mistake in the values does not need.
        from trilemma.training.devices import available_device

        device = available_device(device)
    with writing(folder):
        plan.write_record()
        own = launcher == "local" and (jobs or 1) == 1
        tasks = [
            Task(
                run.name, recipe, {**plan.fixed, **run.values}, folder / run.name, folder / LOGS / f"{run.name}.log",
                device, protocols, images, progress and own, run.config.training.epochs,
            )
            for run in plan.runs
        ]  # fmt: skip
        failed = _run(tasks, jobs, executor, progress)
        return _compare(plan, failed)


def _check_jobs(jobs: int | None, launcher: str) -> int | None:
    """Returns ``jobs``, after a warning if it is more than the cores.

    Raises:
        ConfigError: no positive number, or an unknown launcher.
    """
    if launcher not in LAUNCHERS:
        raise ConfigError(f"launcher {launcher!r}: unknown; use {' or '.join(LAUNCHERS)}")
    if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1):
        raise ConfigError(f"jobs: {jobs!r}; must be an integer of at least 1")
    if launcher == "local" and jobs is not None and jobs > cores():
        print_message(
            f"warning: {jobs} jobs on {cores()} cores: they slow each other down, and finish no sooner"
        )
    return jobs


def _check_threats(plan: Plan, protocols: Sequence[str]) -> None:
    """Checks that every run has a threat model if a protocol attacks.

    Raises:
        ConfigError: one has none.
    """
    without = next((run.name for run in plan.runs if run.config.threat is None), None)
    if without is None or not protocols:
        return
    # Protocols import torch, which a mistake in the values does not need.
    from trilemma.evaluation.protocol import find_protocol

    if attacking := [name for name in protocols if find_protocol(name).needs_threat]:
        raise ConfigError(
            f"evaluate {attacking[0]}: {without} has no threat model; add threat.norm=linf threat.radius=8/255"
        )


def _run(tasks: Sequence[Task], jobs: int | None, executor: Any, progress: bool) -> dict[str, str]:
    """Does the tasks that are not done; returns why tasks failed, by name."""
    failed = {task.name: line for task in tasks if (line := failure(task.folder)) is not None}
    todo = [task for task in tasks if task.name not in failed and not _is_done(task)]
    if progress:
        already = f"{len(failed)} failed before" if failed else ""
        words = [f"{len(tasks)} runs", f"{len(tasks) - len(todo) - len(failed)} done before", already]
        print_message(f"sweep: {', '.join(filter(None, words))}")
    if not todo:
        return failed
    at_once = jobs or (len(todo) if executor is not None else 1)
    with SweepProgress(todo, at_once, progress) as shown:

        def ended(task: Task, line: str | None) -> None:
            if line is not None:
                failed[task.name] = line
            shown.end(task, line)

        if executor is None:
            run_local(todo, at_once, ended, shown.update)
        else:
            run_submitted(executor, todo, at_once, ended, shown.update)
    return failed


def _is_done(task: Task) -> bool:
    return is_trained(task.folder) and not missing_protocols(task.folder, task.protocols, task.images)


def _compare(plan: Plan, failed: Mapping[str, str]) -> Sweep:
    """Returns the result of a sweep, and writes the comparison page of all trained runs in its folder."""
    trained = tuple(plan.folder / name for name in plan.names if is_trained(plan.folder / name))
    if not trained:
        return Sweep(plan.folder, (), failed, Table((), ()), None)
    from trilemma.pages.comparison import write_comparison

    title, count = f"Sweep of {plan.recipe}", len(plan.names)
    note = f"{len(trained)} of {count} runs are trained." if len(trained) < count else ""
    page: Path | None = None
    try:
        page = write_comparison(trained, plan.folder / PAGE, title, note=note, held_out=True)
    except NotStoredError as error:
        go_on_without(error)
    return Sweep(plan.folder, trained, failed, comparison_table(trained, held_out=True), page)
