"""The fault suite: its judgements, its short form, and the mutants that it must catch."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.fault_suite import disk, files, headers, kill, long, numbers, rough, terminal
from benchmarks.fault_suite.case import GOOD, Case, Ended, Verdict, judged, must_refuse, nothing_wrong
from benchmarks.fault_suite.damage import copy_of
from benchmarks.fault_suite.mutants import MUTANTS, mutated
from benchmarks.fault_suite.process import import_all, outcome, run
from benchmarks.fault_suite.results import only_lacks, same_as
from benchmarks.fault_suite.suite import PARTS, Suite, page

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="cases run in forked processes")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sound inputs, which the first case makes."""
    import_all()
    return tmp_path_factory.mktemp("sound")


def ended(code: int = 0, stdout: str = "", stderr: str = "", **settings: Any) -> Ended:
    values = {"seconds": 0.1, "megabytes": 1.0, "timed_out": False, "left": (), **settings}
    return Ended(Path("case"), code, stdout, stderr, **values)


CASE = Case("x", lambda folder: None, ("list",), nothing_wrong)
LINE = "trilemma: error: x.npz: damaged; copy it again\n"


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (ended(), Verdict.RIGHT),
        (ended(2, stderr=LINE), Verdict.ONE_LINE),
        (ended(2, stderr=f"warning: y\n{LINE}"), Verdict.ONE_LINE),
        (ended(2, stderr=LINE + LINE), Verdict.UNTIDY),
        (ended(2, stderr=f"something else\n{LINE}"), Verdict.UNTIDY),
        (ended(2, stderr="trilemma: error: \x1b[2J\n"), Verdict.UNTIDY),
        (ended(2, stderr=LINE, left=("run/.x.tmp",)), Verdict.UNTIDY),
        (ended(3, stderr=LINE), Verdict.UNTIDY),
        (ended(0, stdout="\x9b2J"), Verdict.UNTIDY),
        (ended(0, left=("run/.x.1.tmp",)), Verdict.UNTIDY),
        (ended(1, stderr="Traceback (most recent call last):\nKeyError: 'x'\n"), Verdict.TRACEBACK),
        (ended(-11), Verdict.TRACEBACK),
        (ended(0, megabytes=201.0), Verdict.OVER_LIMIT),
        (ended(2, stderr=LINE, seconds=2.1), Verdict.OVER_LIMIT),
        (ended(-9, timed_out=True), Verdict.OVER_LIMIT),
    ],
)
def test_the_verdict_is_that_of_the_exit_code_the_lines_the_cost_and_what_is_left(
    outcome: Ended, verdict: Verdict
) -> None:
    assert judged(CASE, outcome)[0] == verdict


def test_another_result_is_right_only_if_a_line_names_the_damaged_file() -> None:
    judge = same_as({"value": 0.5}, lambda end: json.loads(end.stdout), "evaluation/clean.json")
    assert judge(ended(stdout='{"value": 0.5}')) == ""
    assert judge(ended(stdout='{"value": 0.4}')) == "/value: '0.4' instead of '0.5'"
    assert judge(ended(stdout='{"value": 0.4}', stderr="warning: left out: run/clean.json: damaged")) == ""
    assert judge(ended(stdout='{"value": 0.4}', stderr="warning: other.json: damaged")) != ""


def test_a_result_that_lacks_something_has_nothing_that_differs() -> None:
    sound = {"rows": [{"a": 1, "b": 2.5}, {"a": 3}], "name": "x"}
    assert only_lacks({"rows": [{"a": 3}], "name": None}, sound)
    assert not only_lacks({"rows": [{"a": 4}]}, sound) and not only_lacks({"more": 1}, sound)


def test_a_case_runs_in_a_process_with_its_memory_time_and_output(tmp_path: Path) -> None:
    def allocate() -> None:
        print(torch.ones(20_000_000).sum().item())

    found = run(allocate, tmp_path)
    assert isinstance(found, Ended)
    assert (found.code, found.stdout, found.left) == (0, "20000000.0\n", ())
    assert 70 < found.megabytes < 150

    def sleep() -> None:
        import time

        time.sleep(60)

    slow = run(sleep, tmp_path, timeout=0.2)
    assert isinstance(slow, Ended) and slow.timed_out and slow.code == -9
    assert run(sleep, tmp_path, lambda: "no pipe here") == "no pipe here"


def named(cases: Callable[[Path, bool], Iterator[Case]], sound: Path, *names: str) -> list[Case]:
    found = {case.name: case for case in cases(sound, False)}
    return [found[name] for name in names]


def test_cases_of_the_suite_are_good(sound: Path, tmp_path: Path) -> None:
    chosen = [
        *named(
            files.cases, sound, "checkpoints/best/classifier.safetensors, exponent bit flip 1: predict",
            "evaluation/clean.json, half of it: compare",
        ),
        *named(headers.cases, sound, "version 2: predict"),
        *named(numbers.cases, sound, "train training.lr=nan", "predict --size 0", "Classifier(network, 0)"),
        *named(disk.cases, sound, "read-only, nothing to write: predict"),
        *named(terminal.cases, sound, "a title in an argument: evaluate TEXT"),
        *named(rough.cases, sound, "another processor: train --resume"),
    ]  # fmt: skip
    rows = [outcome(case, tmp_path / "case") for case in chosen]
    assert [row for row in rows if row.get("verdict", GOOD[0]) not in GOOD] == []


@pytest.mark.parametrize(
    "name", ["the digest of a file of tensors", "the lock of a run folder", "the model of a header"]
)
def test_a_mutant_is_caught(name: str, sound: Path, tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    case = next(case for case in mutant.cases(sound, False) if mutant.matching[0] in case.name)
    assert outcome(case, tmp_path / "case")["verdict"] in GOOD
    assert outcome(mutated(case, mutant), tmp_path / "case")["verdict"] not in GOOD


def test_every_mutant_removes_a_check_that_exists() -> None:
    for mutant in MUTANTS.values():
        mutant.apply_in_a_process()
    with pytest.raises(SystemExit, match="files:nothing: cannot be removed"):
        dataclasses.replace(
            MUTANTS["the lock of a run folder"], function="files:nothing"
        ).apply_in_a_process()


@pytest.mark.parametrize("part", PARTS)
def test_names_of_cases_are_unique(part: str, sound: Path) -> None:
    names = [case.name for case in PARTS[part](sound, False)]
    assert len(set(names)) == len(names) > 0


def test_the_suite_goes_on_where_it_was_and_writes_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []

    def case(name: str, code: int) -> Case:
        return Case(name, lambda folder: runs.append(name), lambda: sys.exit(code), must_refuse)

    def cases(folder: Path, short: bool) -> Iterator[Case]:
        yield from (case("a", 0), case("b", 2))

    monkeypatch.setattr("benchmarks.fault_suite.suite.PARTS", {"files": cases})
    monkeypatch.setattr("benchmarks.fault_suite.suite.import_all", lambda: None)
    suite = Suite(tmp_path / "work", "now")
    assert not suite.run(["files"]) and not suite.run(["files"])
    assert runs == ["a", "b"]
    suite.write(tmp_path / "faults.json")
    text = (tmp_path / "faults.md").read_text()
    assert "| files | 2 | 0 | 0 | 1 | 0 | 0 | 1 |" in text and "## now" in text
    assert page(json.loads((tmp_path / "faults.json").read_text())) == text


def test_a_sweep_that_repeats_work_is_seen(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for name, status in (("seed=0", "finished"), ("seed=1", "running")):
        run = before / "sweep" / name
        (run / "checkpoints" / "last").mkdir(parents=True)
        (run / "config.yaml").touch()
        (run / "metrics.jsonl").touch()
        (run / "status.json").write_text(json.dumps({"status": status}))
        (run / "events.jsonl").write_text("{}\n")
        (run / "checkpoints" / "last" / "state-000000012.safetensors").write_bytes(b"x")
    copy_of(before, after)
    events = after / "sweep" / "seed=1" / "events.jsonl"
    assert "seed=1 had a state of step 12, and was resumed from none" in kill.trained_twice(before, after)
    events.write_text("{}\nfrom the checkpoint of step 9\n")
    assert "resumed from [9]" in kill.trained_twice(before, after)
    events.write_text("{}\nfrom the checkpoint of step 12\n")
    assert kill.trained_twice(before, after) == ""
    os.utime(after / "sweep/seed=0/checkpoints/last/state-000000012.safetensors", (1, 1))
    assert "seed=0 was finished, and was trained again" in kill.trained_twice(before, after)


def test_growth_of_memory_files_or_threads_is_seen() -> None:
    rows = [{"step": n, "megabytes": 300.0, "files": 9, "threads": 2} for n in range(100)]
    assert long.flat(rows) == ""
    assert "memory" in long.flat([*rows, {**rows[-1], "megabytes": 330.0}])
    assert "10 files" in long.flat([*rows, {**rows[-1], "files": 10}])
    assert next(iter(long.cases(Path(), True))).name == "60 steps of eb-jdat"
