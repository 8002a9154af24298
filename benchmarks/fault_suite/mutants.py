"""Mutants: the library with one check removed. A suite that is worth its name reports failures for each of them."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

from benchmarks.fault_suite import bombs, files, headers, rough, terminal
from benchmarks.fault_suite.case import GOOD, Case
from benchmarks.fault_suite.process import outcome, run

from trilemma.files import parse_json
from trilemma.text_files import DIGEST


@dataclass(frozen=True)
class Mutant:
    """A removed check.

    Attributes:
        function: the function with the check, as ``module:name``.
        without: a function of the same arguments without the check.
        cases: makes the cases of the part that must catch it.
        matching: texts, one of which the names of those cases contain.
    """

    function: str
    without: Callable[..., Any]
    cases: Callable[[Path, bool], Any]
    matching: tuple[str, ...]

    def apply(self) -> None:
        """Removes the check, wherever the function has been imported to; names are those of its module."""
        module, _, name = self.function.partition(":")
        target: Any = importlib.import_module(f"trilemma.{module}")
        for part in name.split("."):
            target = getattr(target, part)
        target = target.fget if isinstance(target, property) else getattr(target, "__wrapped__", target)
        assert isinstance(target, FunctionType) and isinstance(self.without, FunctionType)
        target.__code__ = self.without.__code__

    def apply_in_a_process(self) -> None:
        """Checks that the function exists; raises :class:`SystemExit` otherwise."""
        ended = run(self.apply, Path.cwd())
        if isinstance(ended, str) or ended.code:
            raise SystemExit(f"{self.function}: cannot be removed: {ended}")


def _always(*arguments: Any, **named: Any) -> bool:
    return True


def _unchecked(text: str) -> Any:
    content = parse_json(text)
    content.pop(DIGEST, None)
    return content


def _no_lock(folder: Any) -> Any:
    yield


def _as_it_is(text: str) -> str:
    return text


def _without_limit(self: Any) -> int:
    return 1 << 62


def _unmodelled(self: Any, path: Any, metadata: Any) -> Any:
    self._check(path, metadata)
    content = parse_json(metadata.get(self.key, ""))
    try:
        return self.validate(content)
    except Exception:
        return self.validate.__self__.model_construct(**content)


def _nothing(*arguments: Any, **named: Any) -> None:
    return None


MUTANTS = {
    "the digest of a file of tensors": Mutant(
        "files:intact", _always, files.cases,
        ("exponent bit flip 1: predict", "exponent bit flip 2: predict", "exponent bit flip 1: export",
         "state.safetensors, exponent bit flip"),
    ),
    "the digest of a row": Mutant(
        "text_files:_object", _unchecked, files.cases,
        ("evaluation/clean.json, bit flip 1: compare", "evaluation/clean.json, bit flip 2: compare",
         "evaluation/clean.json, bit flip 3: compare", "pgd-20.json, bit flip 3: compare"),
    ),
    "the number of lines of a log": Mutant(
        "runs.run_directory:RunDirectory.lost_lines", _nothing, files.cases,
        ("events.jsonl, half of its lines: compare", "metrics.jsonl, a line less: monitor"),
    ),
    "the lock of a run folder": Mutant(
        "runs.lock:writing", _no_lock, rough.cases, ("while another process writes: evaluate",),
    ),
    "the model of a header": Mutant(
        "files:TensorFormat._header", _unmodelled, headers.cases,
        ('threat = {"evil": 1}: predict', 'num_classes = "ten": predict', "num_classes = 1000000000: predict",
         'class_names = "abc": predict', "mean = [NaN]: evaluate", 'about = "text": predict', "output = 1.5: predict"),
    ),
    "the types of weights in a file": Mutant(
        "classifier.foreign_weights:_holds", _always, headers.cases,
        ("weights in int8: predict", "weights in int64: predict", "one weight in int8: predict"),
    ),
    "the statistics in a file": Mutant(
        "classifier.statistics:wrong_statistic", _nothing, headers.cases, ("statistics",),
    ),
    "control characters on terminals": Mutant(
        "printing:visible", _as_it_is, terminal.cases,
        ("a title in an argument: evaluate TEXT", "a title in a folder of images: score"),
    ),
    "the limits of what is read": Mutant(
        "limits:Limit.value", _without_limit, bombs.cases,
        ("a PNG of 9400 x 9400, 16 bits as", "an anchor bomb as bomb.yaml: validate"),
    ),
}  # fmt: skip


def mutated(case: Case, mutant: Mutant) -> Case:
    """The case with the check removed in its process."""

    def surroundings() -> str | None:
        mutant.apply()
        return case.surroundings()

    return dataclasses.replace(case, name=f"{case.name}, mutated", surroundings=surroundings)


def caught(name: str, sound: Path, folder: Path) -> dict[str, Any]:
    """The row of a mutant: of how many cases that are good how many fail once the check is removed."""
    mutant = MUTANTS[name]
    # A function that no longer exists would fail in every case.
    mutant.apply_in_a_process()
    tried, failing = 0, []
    for case in mutant.cases(sound, False):
        if not any(text in case.name for text in mutant.matching):
            continue
        if outcome(case, folder).get("verdict") not in GOOD:
            continue
        tried += 1
        row = outcome(mutated(case, mutant), folder)
        if row.get("verdict") not in GOOD:
            failing.append(row)
    return {"mutant": name, "function": mutant.function, "cases": tried, "failing": failing}
