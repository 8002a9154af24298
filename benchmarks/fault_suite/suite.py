"""The suite: the cases of the chosen parts one after another, their rows kept in files, and the page of counts."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.fault_suite import bombs, disk, files, fuzz, headers, kill, long, numbers, rough, terminal
from benchmarks.fault_suite.case import GOOD, Case, Verdict
from benchmarks.fault_suite.mutants import MUTANTS, caught
from benchmarks.fault_suite.process import import_all, outcome
from benchmarks.result_page import write

Row = dict[str, Any]
RESULTS_NAME = "faults.json"
# The cases of each part, from the folder of sound inputs and whether the form is short.
PARTS: dict[str, Callable[[Path, bool], Iterator[Case]]] = {
    "files": files.cases,
    "headers": headers.cases,
    "numbers": numbers.cases,
    "disk": disk.cases,
    "memory": bombs.cases,
    "terminal": terminal.cases,
    "kill": kill.cases,
    "rough": rough.cases,
    "long": long.cases,
    "fuzz": fuzz.cases,
}


class Suite:
    """Runs the parts and keeps their rows.

    Args:
        work: folder of sound inputs, of the rows, and of the case under way.
        label: name of this state of the library; rows of other labels stay.
        short: whether to run the short form.
        only: a text that the names of the cases must contain.
        every: run only every so-many-th case of a part.
    """

    def __init__(self, work: Path, label: str, short: bool = False, only: str = "", every: int = 1) -> None:
        self.work, self.label, self.short, self.only, self.every = work, label, short, only, every
        self.folder = work / (f"{label}-short" if short else label)
        self.folder.mkdir(parents=True, exist_ok=True)

    def _rows_file(self, part: str) -> Path:
        return self.folder / f"{part}.jsonl"

    def rows(self, part: str) -> list[Row]:
        """The rows of a part so far."""
        file = self._rows_file(part)
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def forget(self, parts: Iterable[str]) -> None:
        """Removes the rows of parts."""
        for part in parts:
            self._rows_file(part).unlink(missing_ok=True)

    def run(self, parts: Iterable[str]) -> bool:
        """Runs the cases that have no row yet; returns whether all rows are good."""
        os.environ["TRILEMMA_CACHE"] = str(self.folder / "cache")
        import_all()
        for part in parts:
            done = {row["name"] for row in self.rows(part)}
            cases = PARTS[part](self.work / f"sound-{self.label}", self.short)
            for case in islice(cases, 0, None, self.every):
                if case.name in done or self.only not in case.name:
                    continue
                row = outcome(case, self.folder / "case")
                with self._rows_file(part).open("a") as file:
                    file.write(json.dumps(row) + "\n")
                if row.get("verdict") not in GOOD:
                    print(shown(row), flush=True)
            print(f"{part}: {counts(self.rows(part))}", flush=True)
        return all(row["verdict"] in GOOD for part in parts for row in self.rows(part) if "verdict" in row)

    def run_mutants(self, names: Iterable[str] = MUTANTS) -> bool:
        """Removes one check after the other; returns whether the suite reports each removal."""
        os.environ["TRILEMMA_CACHE"] = str(self.folder / "cache")
        import_all()
        rows = []
        for name in names:
            rows.append(caught(name, self.work / f"sound-{self.label}", self.folder / "case"))
            print(f"without {name}: {len(rows[-1]['failing'])} of {rows[-1]['cases']} cases fail", flush=True)
        self._mutants_file.write_text(json.dumps(rows, indent=1))
        return all(row["failing"] for row in rows)

    @property
    def _mutants_file(self) -> Path:
        return self.folder / "mutants.json"

    def write(self, results: Path) -> None:
        """Adds the counts and the failing cases of all parts that have rows to the page."""
        found = {
            f"{self.label}: {part}": {
                "counts": counts(self.rows(part)),
                "failing": [row for row in self.rows(part) if row.get("verdict") not in (*GOOD, None)],
                "not tried": sorted({row["not tried"] for row in self.rows(part) if "not tried" in row}),
            }
            for part in PARTS
            if self.rows(part)
        }
        if self._mutants_file.exists():
            found["mutants"] = json.loads(self._mutants_file.read_text())
        write(results, "python benchmarks/faults.py", found, page)


def counts(rows: list[Row]) -> dict[str, int]:
    """The number of cases tried, and of each verdict."""
    verdicts = Counter(row["verdict"] for row in rows if "verdict" in row)
    return {"tried": verdicts.total(), **{str(verdict): verdicts[str(verdict)] for verdict in Verdict}}


def shown(row: Row) -> str:
    """A failing case in one line."""
    if "not tried" in row:
        return f"not tried: {row['name']}: {row['not tried']}"
    return f"{row['verdict']}: {row['name']}: {row['reason']} | {row.get('line', '')[:300]}"


def page(content: dict[str, Any]) -> str:
    """The page: one table of counts per label, the failing cases of the last one, and the mutants."""
    rows = dict(content["rows"])
    mutants = rows.pop("mutants", [])
    lines = ["# Fault suite", "", f"`{content['command']}`: {content['about']}", ""]
    heads = ["part", "tried", *map(str, Verdict)]
    for label in dict.fromkeys(key.partition(": ")[0] for key in rows):
        parts = {key.partition(": ")[2]: row for key, row in rows.items() if key.startswith(f"{label}: ")}
        total = {head: sum(row["counts"][head] for row in parts.values()) for head in heads[1:]}
        lines += [f"## {label}", "", f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
        for part, counted in [*((part, row["counts"]) for part, row in parts.items()), ("all", total)]:
            lines.append(f"| {part} | {' | '.join(str(counted[head]) for head in heads[1:])} |")
        lines.append("")
        lines += [f"Not tried: {reason}." for row in parts.values() for reason in row["not tried"]]
        failing = Counter(row["verdict"] for part in parts.values() for row in part["failing"])
        lines += [f"Failing cases are listed in `{RESULTS_NAME}`.", ""] if failing else [""]
    if mutants:
        lines += ["## Mutants", "", "A check is removed; the cases are good with it.", ""]
        lines += ["| removed | function | cases | of them fail |", "|---|---|---:|---:|"]
        for row in mutants:
            lines.append(
                f"| {row['mutant']} | `{row['function']}` | {row['cases']} | {len(row['failing'])} |"
            )
        lines.append("")
    return "\n".join(lines)
