"""One case of the fault suite: a damaged or hostile input, what is run on it, and who judges the outcome."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Above the memory of a process that has imported everything and computes nothing.
MEGABYTES = 200
# Processor time of a refusal.
SECONDS = 2.0
# Wall-clock time after which a case is ended.
LONGEST_SECONDS = 120.0

# Exit codes with one line about a mistake: user error, training failed, not stored.
REFUSALS = (2, 3, 4)
ERROR = "trilemma: error: "
# Terminals act on these; newline and tab only move the cursor.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# First words of lines on standard error that say what was passed over.
WARNINGS = ("warning: ", "note: ")
# Those of lines that say what is done.
REMARKS = (
    *WARNINGS,
    "evaluating ",
    "checking ",
    "exporting ",
    "generating ",
    "moving ",
    "lint: ",
    "skipped: ",
)


class Verdict(enum.StrEnum):
    """The outcome of a case. The first two are good."""

    RIGHT = "right"
    ONE_LINE = "one clear line"
    UNTIDY = "untidy"
    TRACEBACK = "traceback"
    OVER_LIMIT = "over limit"
    SILENTLY_WRONG = "silently wrong"


GOOD = (Verdict.RIGHT, Verdict.ONE_LINE)


@dataclass(frozen=True)
class Ended:
    """What a case left behind.

    Attributes:
        folder: its folder.
        code: exit code; negative for the signal that ended the process.
        stdout, stderr: the output as text; bytes that are not UTF-8 are replaced.
        seconds: processor time.
        megabytes: peak memory above that of a process that computes nothing.
        timed_out: ended after the time that the case has.
        left: files that exist now and did not before.
    """

    folder: Path
    code: int
    stdout: str
    stderr: str
    seconds: float
    megabytes: float
    timed_out: bool
    left: tuple[str, ...]

    @property
    def remarks(self) -> list[str]:
        """The lines on standard error that warn or note."""
        return [line for line in self.stderr.splitlines() if line.startswith(WARNINGS)]

    @property
    def error(self) -> str:
        """The line of the error; empty if there is none."""
        lines = [line for line in self.stderr.splitlines() if line.startswith(ERROR)]
        return lines[-1] if lines else ""


Judge = Callable[[Ended], str]


@dataclass(frozen=True)
class Case:
    """A fault.

    Args:
        name: unique in its part; also the seed of its random numbers.
        prepare: writes the input into an empty folder.
        action: the arguments of a ``trilemma`` command, or a function; either runs in the folder of the case.
        judge: of an outcome that is no refusal, traceback or excess: returns what is wrong with it, empty if it is
            right.
        refusals: exit codes that are right; others are reported as untidy.
        error: judges a refusal beside its form; returns what is wrong with it.
        megabytes: limit of memory.
        seconds: limit of the processor time of a refusal.
        may_leave: pattern of new files that a refusal may leave behind.
        timeout: wall-clock time in seconds after which the case is ended.
        surroundings: called in the process before the action; of a string, the reason why the case cannot be tried.
    """

    name: str
    prepare: Callable[[Path], Any]
    action: tuple[str, ...] | Callable[[], Any]
    judge: Judge
    refusals: tuple[int, ...] = (2,)
    error: Judge = field(default=lambda ended: "")
    megabytes: float = MEGABYTES
    seconds: float = SECONDS
    may_leave: str = r"(^|/)\.lock$"
    timeout: float = LONGEST_SECONDS
    surroundings: Callable[[], str | None] = field(default=lambda: None)


def judged(case: Case, ended: Ended) -> tuple[Verdict, str]:
    """The verdict on a case, and its reason unless it is good."""
    if ended.timed_out:
        return Verdict.OVER_LIMIT, f"not done after {case.timeout:g} s"
    if "MemoryError" in ended.stderr or "can't allocate memory" in ended.stderr:
        return Verdict.OVER_LIMIT, "out of memory"
    if ended.megabytes > case.megabytes:
        return Verdict.OVER_LIMIT, f"{ended.megabytes:.0f} MB"
    if "Traceback (most recent call last)" in ended.stderr or ended.code == 1 or ended.code < 0:
        lines = ended.stderr.strip().splitlines()
        return Verdict.TRACEBACK, f"exit code {ended.code}: {lines[-1] if lines else ''}"
    if ended.code in REFUSALS:
        return _judged_refusal(case, ended)
    if ended.code != 0:
        return Verdict.UNTIDY, f"exit code {ended.code}"
    problem = case.judge(ended)
    if problem:
        return Verdict.SILENTLY_WRONG, problem
    raw = CONTROL.search(ended.stdout + ended.stderr)
    if raw:
        return Verdict.UNTIDY, f"control character {raw[0]!r} in the output"
    temporary = [name for name in ended.left if name.endswith(".tmp")]
    return (Verdict.UNTIDY, f"left behind: {temporary[0]}") if temporary else (Verdict.RIGHT, "")


def _judged_refusal(case: Case, ended: Ended) -> tuple[Verdict, str]:
    """The verdict on an outcome with an exit code of :data:`REFUSALS`."""
    if ended.code == 2 and ended.seconds > case.seconds:
        return Verdict.OVER_LIMIT, f"refused after {ended.seconds:.1f} s"
    lines = ended.stderr.splitlines()
    errors = [line for line in lines if line.startswith(ERROR)]
    others = [line for line in lines if line.strip() and line not in errors and not line.startswith(REMARKS)]
    left = [name for name in ended.left if not re.search(case.may_leave, name)]
    raw = CONTROL.search(ended.stdout + ended.stderr)
    problem = (
        f"exit code {ended.code}" if ended.code not in case.refusals
        else f"{len(errors)} lines of error" if len(errors) != 1
        else f"another line: {others[0]}" if others
        else f"a line of {len(errors[0])} characters" if len(errors[0]) > LONGEST_LINE
        else f"control character {raw[0]!r} in the output" if raw
        else f"left behind: {left[0]}" if left
        else case.error(ended)
    )  # fmt: skip
    return (Verdict.UNTIDY, problem) if problem else (Verdict.ONE_LINE, "")


# A line that quotes a whole hostile input is not clear.
LONGEST_LINE = 1600


def nothing_wrong(ended: Ended) -> str:
    """The judge of cases that may succeed with any result."""
    return ""


def must_refuse(ended: Ended) -> str:
    """The judge of inputs that have no right result."""
    return f"accepted: {' '.join((ended.stdout or 'exit code 0').split())[:120]}"
