"""Part ``kill``: ``kill -9`` at random moments, and between and within writes; the resumed result must be the same."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fault_suite import results
from benchmarks.fault_suite.case import LONGEST_SECONDS, Case, Ended
from benchmarks.fault_suite.damage import copy_of
from benchmarks.fault_suite.files import FINISHED, Sound, remove, succeed
from benchmarks.fault_suite.process import exit_code

MOMENTS = 20
_QUICK = ("-q", "--json")
_SMALL = (
    "network.width=4", "training.log_every=3", "training.evaluate_every=1", "training.held_out_images=40",
    "training.checkpoint_minutes=0.0001",
)  # fmt: skip
_STAGE = """
data: {name: digits}
network: {name: small-resnet, width: 4, depth: 8}
method: {name: pgd-at}
threat: {norm: l2, radius: 0.5}
attack: {steps: 2}
training: {epochs: 2, log_every: 3, held_out_images: 40, checkpoint_minutes: 0.0001, evaluate_every: 1}
"""


@dataclass(frozen=True)
class Job:
    """A command that is killed.

    Attributes:
        first: the command.
        again: the command that goes on.
        read: reads the result.
        codes: exit codes of the command that was not killed.
        wasted: of the folder of the case before the last command and what that command left, work that was done twice;
            empty if none was.
        moments: number of moments at which it is killed.
        timeout: wall-clock time in seconds of a case.
    """

    first: tuple[str, ...]
    again: tuple[str, ...]
    read: Callable[[Ended], Any]
    codes: tuple[int, ...] = (0,)
    wasted: Callable[[Path, Path], str] = lambda before, after: ""
    moments: int = MOMENTS
    timeout: float = LONGEST_SECONDS


def _training(recipe: str, *overrides: str, codes: tuple[int, ...] = (0,), stage: bool = False) -> Job:
    """A training run in ``run``; with ``stage``, the result is that of both stages."""
    command = ("train", recipe, *_SMALL, *overrides, "--out", "run", *_QUICK)

    def read(ended: Ended) -> Any:
        found = {"run": results.of_run("run")(ended)}
        return found | ({"stage": results.of_run("run/stage-1")(ended)} if stage else {})

    # Killed before there was a run, the command begins; else it resumes.
    return Job(command, (*command, "--resume"), read, codes)


def _sweep(jobs: int, moments: int = MOMENTS, timeout: float = LONGEST_SECONDS) -> Job:
    """A sweep of three runs, each of which is evaluated."""
    command = (
        "sweep", "digits/pgd-at", "seed=0..2", *_SMALL, "training.epochs=1", "attack.steps=2", "--evaluate", "clean",
        "--images", "40", "--jobs", str(jobs), "--out", "sweep", *_QUICK,
    )  # fmt: skip

    def read(ended: Ended) -> Any:
        runs = [f"sweep/seed={seed}" for seed in range(3)]
        found = {
            run: (results.of_run(run)(ended), results.of_rows(f"{run}/evaluation")(ended)) for run in runs
        }
        return {
            **found,
            "table": results.of_json(ended),
            "page": results.of_page("sweep/comparison.html")(ended),
        }

    return Job(command, command, read, wasted=trained_twice, moments=moments, timeout=timeout)


def trained_twice(before: Path, after: Path) -> str:
    """Which finished run of a sweep was trained again, or which interrupted one was not resumed from its state."""
    for run in sorted(path.parent for path in before.glob("sweep/*/config.yaml")):
        now = after / run.relative_to(before)
        status, lines = _text(run / "status.json"), _text(run / "events.jsonl")
        added = _text(now / "events.jsonl").removeprefix(lines)
        if '"finished"' in status:
            if _trained(run) != _trained(now) or added:
                return f"{run.name} was finished, and was trained again"
        elif steps := sorted((run / "checkpoints" / "last").glob("state-*")):
            # Killed between the two, the newest state has no copy yet.
            least = int(steps[-1].stem.removeprefix("state-"))
            begun = [int(step) for step in re.findall(r"from the checkpoint of step (\d+)", added)]
            if not begun or begun[0] < least:
                return f"{run.name} had a state of step {least}, and was resumed from {begun or 'none'}"
    return ""


def _trained(run: Path) -> dict[str, int]:
    """When the files of a training were written."""
    files = [run / "metrics.jsonl", *(run / "checkpoints").rglob("*.safetensors")]
    return {str(file.relative_to(run)): file.stat().st_mtime_ns for file in files}


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else ""


_EVALUATE = ("evaluate", "done", "--protocol", "autoattack-standard", "--images", "8", *_QUICK)
_GENERATE = ("generate", "done", "--per-class", "1", "--steps", "4", "--seed", "3", *_QUICK)
JOBS = {
    "training pgd-at": _training("digits/pgd-at", "training.epochs=2", "attack.steps=2"),
    "training eb-jdat": _training(
        "digits/eb-jdat", "training.epochs=2", "sampler.steps=3", "sampler.buffer_size=200", "attack.steps=2"
    ),
    "training dat in two stages": _training(
        "digits/dat", "training.start=stage.yaml", "training.epochs=2", "sampler.steps=3", stage=True
    ),
    "training with remedies": _training(
        "digits/fgsm", "training.epochs=3", "training.lr=40", "monitors.max_rollbacks=3",
        "schedule.name=constant", codes=(0, 3),
    ),
    "evaluation with AutoAttack": Job(
        _EVALUATE, (*_EVALUATE, "--resume"),
        lambda ended: (results.of_json(ended), results.of_rows("done/evaluation")(ended)),
    ),
    "generation": Job(
        _GENERATE, _GENERATE,
        lambda ended: (results.of_json(ended), results.of_arrays("done/samples")(ended)),
    ),
    "report": Job(("report", "done"), ("report", "done"), results.of_page("done/report.html")),
    "sweep": _sweep(1),
    # Slow, since each of its processes imports everything.
    "sweep in two processes": _sweep(2, moments=4, timeout=900),
}  # fmt: skip


def cases(folder: Path, short: bool) -> Iterator[Case]:
    """The cases; of the short form one of each kind of job."""
    jobs = _Jobs(Sound(folder))
    for moment in range(1 if short else MOMENTS):
        for name, job in JOBS.items():
            if moment < job.moments:
                yield jobs.case(name, moment)


class _Jobs:
    """The results of the jobs that nobody killed."""

    def __init__(self, sound: Sound) -> None:
        self.sound = sound
        # Of the case under way, before its last command.
        self.before = sound.folder / "before"
        self._peace: dict[str, tuple[Any, float, int, int]] = {}

    def prepare(self, target: Path) -> None:
        copy_of(self.sound.folder / FINISHED, target / "done")
        (target / "stage.yaml").write_text(_STAGE)

    def peace(self, name: str) -> tuple[Any, float, int, int]:
        """Result, wall-clock seconds, number of changes of files and exit code of a job that was not killed."""
        if name not in self._peace:
            place, job = self.sound.folder / "sound-job", JOBS[name]
            place.mkdir()
            self.prepare(place)
            begin = time.monotonic()
            ended = succeed(job.first, place, job.codes, job.timeout)
            seconds = time.monotonic() - begin
            found = job.read(ended)
            remove(place)
            place.mkdir()
            self.prepare(place)
            changes = int(
                succeed(lambda: _count_changes(job.first), place, timeout=job.timeout).stderr.split()[-1]
            )
            remove(place)
            self._peace[name] = found, seconds, changes, ended.code
        return self._peace[name]

    def case(self, name: str, moment: int) -> Case:
        """The case of one moment: in time for even ones, at a change of a file for odd ones."""
        job, title = JOBS[name], f"{name}, killed at moment {moment + 1}"

        def action() -> None:
            chance = random.Random(title)
            _, seconds, changes, _ = self.peace_before
            # Every fourth is killed again while it resumes.
            for _ in range(2 if moment % 4 > 1 else 1):
                command = (
                    job.again if Path("run/config.yaml").exists() or "run" not in job.first else job.first
                )
                if moment % 2:
                    _kill_at_change(command, chance.randrange(1, changes + 1))
                else:
                    _kill_after(command, chance.uniform(0, seconds))
            command = job.again if Path("run/config.yaml").exists() or "run" not in job.first else job.first
            copy_of(Path(), self.before)
            code = exit_code(command)
            if others := _processes_here():
                raise RuntimeError(f"a process of a killed command has not ended: {others[0]}")
            sys.exit(code)

        def prepare(target: Path) -> None:
            self.prepare(target)
            self.peace_before = self.peace(name)
            shutil.rmtree(self.before, ignore_errors=True)

        def judge(ended: Ended) -> str:
            found, _, _, code = self.peace(name)
            if ended.code != code:
                return f"exit code {ended.code} instead of {code}"
            temporary = [file for file in ended.left if file.endswith(".tmp")]
            return (
                results.same_as(found, job.read)(ended)
                or job.wasted(self.before, ended.folder)
                or (f"left behind: {temporary[0]}" if temporary else "")
            )

        return Case(title, prepare, action, judge, job.codes[1:], judge, megabytes=600, may_leave=".",
                    timeout=job.timeout)  # fmt: skip


def _changes_files(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event of Python is the change of a file."""
    if event == "open":
        path, mode, flags = arguments
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR)) if isinstance(flags, int) else "w" in str(mode)
        return writes and "/dev/" not in str(path)
    return event in ("os.rename", "os.remove", "os.link", "os.mkdir")


def _count_changes(command: tuple[str, ...]) -> None:
    """Runs a command, and prints how often it changes a file."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        count += _changes_files(event, arguments)

    sys.addaudithook(hook)
    exit_code(command)
    print(count, file=sys.stderr)


def _processes_here() -> list[str]:
    """The commands of processes that work in this folder, beside this process and those that it has started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if (process / "cwd").readlink() == Path.cwd() and os.getpid() not in (parent, int(process.name)):
                found.append((process / "cmdline").read_text(errors="replace").replace("\0", " "))
        # It has ended meanwhile, or belongs to somebody else.
        except OSError:
            continue
    return found


def _forked(command: tuple[str, ...], prepare: Callable[[], None] = lambda: None) -> int:
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if not pid:
        # What a killed process had to say does not count.
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1), os.dup2(nothing, 2)
        prepare()
        os._exit(exit_code(command))
    return pid


def _kill_after(command: tuple[str, ...], seconds: float) -> None:
    pid = _forked(command)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _kill_at_change(command: tuple[str, ...], number: int) -> None:
    """Runs a command that is killed just before it changes a file for the ``number``-th time."""
    left = number

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        left -= _changes_files(event, arguments)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(_forked(command, lambda: sys.addaudithook(hook)), 0)
