"""``trilemma monitor``: anybody's log, its alarms, a verdict, and a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

COLLAPSE = """epoch,clean,fgsm,pgd
1,0.5,0.30,0.25
2,0.6,0.40,0.33
3,0.7,0.47,0.38
4,0.8,0.90,0.02
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text(COLLAPSE)
    return path


def test_alarms_and_the_verdict_are_printed_and_a_bad_verdict_is_no_failure(trilemma, log) -> None:
    result = trilemma("monitor", log)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "held-out accuracy 0.90 under FGSM, 0.02 under PGD, whose best was 0.38" in result.stdout
    assert result.stdout.splitlines()[-1] == "collapsed at epoch 4; best epoch to keep: 3, PGD 0.380"


def test_json_has_alarms_and_verdict(trilemma, log) -> None:
    result = json.loads(trilemma("monitor", log, "--json").stdout)
    assert (result["verdict"], result["best_epoch"], result["evaluations"]) == ("collapsed", 3, 4)
    assert [(alarm["name"], alarm["epoch"], alarm["since"]) for alarm in result["alarms"]] == [
        ("accuracy-gap", 4, 3)
    ]


def test_the_picture_is_written_light_and_dark(trilemma, log, tmp_path: Path) -> None:
    result = trilemma("monitor", log, "--figure", "new/curves.png")
    assert result.stdout.splitlines()[-1] == "new/curves.png"
    light, dark = (tmp_path / "new" / name for name in ("curves.png", "curves-dark.png"))
    assert light.read_bytes()[:4] == dark.read_bytes()[:4] == b"\x89PNG"


def test_a_run_folder_is_a_log(trilemma, run_folder) -> None:
    assert trilemma("monitor", run_folder).stdout.startswith("healthy (too short to judge overfitting")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("epoch,pgd\n", "is empty"),
        ("epoch,fgsm\n1,0.3\n", "no column 'pgd'"),
        ("epoch,pgd\n1,0.3\n2,x\n", "row 2: pgd is 'x', not a number"),
        ("epoch,pgd\n1,30.5\n", "percentages must be divided by 100"),
        ("epoch,pgd\n2,0.3\n1,0.3\n", "epochs must increase"),
    ],
)
def test_a_wrong_log_is_one_line(mistake, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    line = mistake("monitor", "bad.csv")
    assert line.startswith("bad.csv") and message in line


def test_wrong_files_and_names_are_one_line(mistake, log, tmp_path: Path) -> None:
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "tree.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    assert mistake("monitor", "missing.csv") == "missing.csv: no such file"
    assert mistake("monitor", "bytes.csv").startswith("bytes.csv: not a text file")
    assert mistake("monitor", "bad.json").startswith("bad.json: not JSON")
    assert mistake("monitor", "tree.json").startswith("tree.json: not a list of rows")
    assert mistake("monitor", "empty").startswith("empty: holds no metrics.jsonl")
    assert (
        mistake("monitor", log, "--figure", "curves.pdf") == "--figure curves.pdf: the name must end in .png"
    )
