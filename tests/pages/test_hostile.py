"""Names from files, in every kind of output: no script in a page, no formula in a table, no command on a terminal."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from trilemma.classifier.classifier import Classifier
from trilemma.cli.main import app
from trilemma.demo import markup
from trilemma.demo.stopping import Beat
from trilemma.errors import ConfigError
from trilemma.evaluation.evaluate import evaluate_run
from trilemma.pages.comparison import write_comparison
from trilemma.pages.gather import comparison_table
from trilemma.pages.html import write_report
from trilemma.pages.table import as_csv, as_latex, as_markdown
from trilemma.printing import CONTROLS
from trilemma.runs.records import write_row
from trilemma.runs.run_directory import RunDirectory

# As a file name, so without a slash.
NAME = "=1+1<script>evil()<img src=x onerror=evil()>\x1b]0;t\x07\x9b31m\r\u202e|[a](javascript:evil()) $x$\\input{e}\n&"


class Tags(HTMLParser):
    """What a page could run or load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts, self.text = 0, ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        for name, value in attributes:
            assert not name.startswith("on"), (tag, name)
            assert not (value or "").strip().lower().startswith("javascript:")
            assert name != "src" or (value or "").startswith("data:image/png;base64,")

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def run(run_copy: Path) -> Path:
    """A run whose folder, events, results and class names are hostile."""
    evaluate_run(run_copy, ["clean"], images=20)
    row = json.loads((run_copy / "evaluation" / "clean.json").read_text(encoding="utf-8"))
    row.pop("digest", None)
    row["facts"] |= {"note": NAME, "class_names": [f"{NAME}{k}" for k in range(10)]}
    row["data"]["selection"] = NAME
    write_row(run_copy, row)
    folder = RunDirectory(run_copy)
    event = {"kind": "alarm", "name": "divergence", "message": NAME, "step": 1, "epoch": 1.0, "minutes": 0.1}
    folder.add_event(event)
    return run_copy.rename(run_copy.with_name(NAME))


@pytest.fixture
def runs(run: Path) -> list[Path]:
    """Two runs of one method, which tables name by their folders."""
    return [run, Path(shutil.copytree(run, run.with_name(f"{NAME}2")))]


def test_pages_show_hostile_names_as_text(runs, tmp_path):
    for page in (write_report(runs[0]), write_comparison(runs, tmp_path / "compare.html")):
        html = page.read_text(encoding="utf-8")
        tags = Tags(html)
        (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
        assert tags.scripts == policy.count("'sha256-") <= 1
        assert "<script>evil()" in tags.text and "<script>evil" not in html


def test_tables_of_runs_hold_no_formula_no_markup_and_no_command(runs):
    table = comparison_table(runs)
    for text in (as_csv(table), as_markdown(table), as_latex(table), repr(table)):
        assert not CONTROLS.search(text.replace("\n", ""))
    cells = [cell for row in csv.reader(io.StringIO(as_csv(table))) for cell in row]
    assert not any(cell.startswith(("=", "+", "@")) for cell in cells)
    assert any(cell.startswith("'=1+1<script>") for cell in cells)
    markdown = as_markdown(table)
    assert (
        "&lt;script&gt;" in markdown
        and "<script" not in markdown
        and "](javascript" not in re.sub(r"\\.", "", markdown)
    )
    assert len({re.sub(r"\\.", "", line).count("|") for line in markdown.splitlines()}) == 1
    assert "\\input{" not in as_latex(table) and len(as_latex(table).splitlines()) < 20


@pytest.mark.parametrize("form", ["markdown", "csv", "latex", None])
def test_no_command_reaches_a_terminal(runs, tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, ["compare", *map(str, runs), *(["--format", form] if form else [])])
    assert ended.exit_code == 0
    assert not CONTROLS.search(ended.output.replace("\n", ""))


def test_mistakes_quote_hostile_values_as_text(run, tmp_path):
    for arguments in (
        ["evaluate", str(run), "--protocol", NAME], ["evaluate", str(run), "--data", NAME], ["train", NAME],
        ["validate", "digits/standard", f"training.{NAME}=1"], ["validate", "digits/standard", f"training.lr={NAME}"],
        ["predict", str(run), NAME], [NAME], ["evaluate", f"--{NAME}"], ["evaluate", str(run), "--seed", NAME],
        ["predict", str(run), str(tmp_path / "x.png"), "--model", NAME], ["report", NAME],
    ):  # fmt: skip
        ended = CliRunner().invoke(app, arguments)
        assert ended.exit_code == 2, ended.output
        assert not CONTROLS.search(ended.output.replace("\n", "")), arguments
        assert len(ended.stderr.splitlines()) <= 2 and ended.stdout == ""


def test_the_demo_page_shows_hostile_names_as_text(toy):
    class Subject:
        clf = Classifier(toy.mlp(classes=2).network, 2, class_names=[NAME, f"{NAME}2"], image_shape=(1, 4, 4))
        missing, offered = NAME, None

        def facts(self) -> list[tuple[str, str]]:
            return [("classifier", NAME), (NAME, NAME)]

    subject: Any = Subject()
    pixels = torch.zeros(1, 4, 4)
    parts = [
        markup.header(subject), markup.offered(subject), markup.chosen_image(pixels, NAME), markup.alert(NAME),
        markup.sentence(NAME), markup.picture(pixels, NAME, NAME), markup.table([NAME], [[NAME, NAME]]),
        markup.progress(Beat(0, None)), markup.alert(str(ConfigError(NAME))),
    ]  # fmt: skip
    for part in parts:
        assert Tags(str(part)).scripts == 0 and "<script" not in str(part)
