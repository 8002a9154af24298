"""The pages: self-contained, in both themes, whole from whatever the run folder holds, and never trusting its text."""

from __future__ import annotations

import json
import re
import shutil
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from trilemma.errors import NotStoredError, RunError
from trilemma.evaluation.evaluate import evaluate_into, evaluate_run
from trilemma.pages.comparison import write_comparison
from trilemma.pages.html import write_report
from trilemma.runs.records import write_row
from trilemma.threat import Threat

LOADING = {"src", "srcset", "href", "data", "poster", "action", "xlink:href"}


class Page(HTMLParser):
    """What a page would load, its text, and whether its tags are balanced."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.media: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(self.html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attributes if name in LOADING]
        self.media += [value for name, value in attributes if name == "media"]
        if tag not in {"meta", "img", "source", "br", "wbr"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def check_scripts(page: Page) -> None:
    """Any script is inside the page, and its policy allows that one alone."""
    scripts = re.findall(r"<script>(.*?)</script>", page.html, re.S)
    assert len(scripts) == page.tags.count("script")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page.html)
    allowed = re.findall(r"'sha256-([^']*)'", policy)
    assert allowed == [b64encode(sha256(script.encode()).digest()).decode() for script in scripts]
    assert "script-src" in policy if scripts else "script" not in policy


def check_self_contained(page: Page) -> None:
    assert page.loaded
    assert all(address.startswith("data:image/png;base64,") for address in page.loaded)
    assert not {"link", "iframe", "object"} & set(page.tags)
    check_scripts(page)
    assert "url(" not in page.html
    assert "@import" not in page.html
    assert "http://" not in page.html
    assert "https://" not in page.html
    assert page.open == []


@pytest.fixture(scope="module")
def full_run(complete_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with results, samples and diagnosis."""
    return Path(shutil.copytree(complete_run.path, tmp_path_factory.mktemp("full") / "full"))


@pytest.fixture
def run_without_steps(run_copy: Path) -> Path:
    """A run that has no curve to draw."""
    (run_copy / "metrics.jsonl").unlink()
    return run_copy


@pytest.fixture(scope="module")
def page(full_run: Path) -> Page:
    return Page(write_report(full_run))


def test_a_full_report_is_self_contained_in_both_themes_and_fits_a_phone(page):
    check_self_contained(page)
    assert page.media.count("(prefers-color-scheme: dark)") == page.tags.count("img") == 12
    assert "@media (prefers-color-scheme: dark)" in page.html
    assert '<meta name="viewport" content="width=device-width' in page.html
    assert "Not run yet" not in page.text


def test_a_full_report_shows_rows_energies_samples_and_events(full_run, page):
    text = page.text
    row = json.loads((full_run / "evaluation" / "pgd-20.json").read_text())
    assert f"{100 * row['lower']:.1f} to {100 * row['upper']:.1f}" in text
    for expected in (
        "digits/pgd-at",
        "cross-entropy on multi-step adversarial images",
        "radius 0.2",
        "rollback",
        "real test images",
        "clean and adversarial",
        "Under each attack",
        "DLR, 3 targets x 50 steps",
        "best by pgd-10 on held-out images, epoch 4",
    ):
        assert expected in text
    assert "loss <b>not</b> finite" in text  # escaped in the page, so the parser reads it as text


def test_rows_of_the_last_checkpoint_stand_below_those_of_the_best(run_without_steps):
    evaluate_run(run_without_steps, ["clean"], images=20)
    last = json.loads((run_without_steps / "evaluation" / "clean.json").read_text())
    last["checkpoint"] |= {"checkpoint": "last", "epoch": 9.0}
    write_row(run_without_steps, last, "last")
    text = Page(write_report(run_without_steps)).text
    assert 0 < text.index("best, epoch 4") < text.index("last, epoch 9")


def test_what_has_not_been_run_names_its_command(run_without_steps):
    text = Page(write_report(run_without_steps)).text
    for command in ("evaluate", "diagnose", "generate"):
        assert f"trilemma {command} pgd-at" in text
    assert str(run_without_steps.parent) not in text


def test_a_run_that_has_not_logged_a_step_still_has_a_page(run_without_steps):
    (run_without_steps / "status.json").write_text(
        '{"status": "failed", "step": 0, "epochs": 0, "minutes": 0.1}'
    )
    text = Page(write_report(run_without_steps)).text
    assert "No step has been logged yet" in text
    assert "failed after all remedies" in text


def test_a_report_can_lie_elsewhere_and_a_folder_without_a_run_is_refused(run_without_steps, tmp_path):
    assert write_report(run_without_steps, tmp_path / "page.html") == tmp_path / "page.html"
    with pytest.raises(RunError, match=r"not a run folder .* nor a folder of result rows"):
        write_report(tmp_path)


@pytest.fixture
def row_folder(toy: Any, tmp_path: Path) -> Path:
    """Rows of a classifier from elsewhere, on data of its own."""
    clf = toy.mlp(threat=Threat("linf", "8/255"))
    evaluate_into(tmp_path / "rows", clf, (toy.images(30), toy.labels(30)), ["clean", "pgd-20"])
    return tmp_path / "rows"


def test_rows_without_a_run_have_a_page_of_what_was_measured(row_folder):
    page = Page(write_report(row_folder))
    text = " ".join(page.text.split())
    assert page.open == [] and page.loaded == []
    for expected in (
        "What was measured",
        "made elsewhere",
        "tensors:",
        "8/255",
        "The lint checked 30 images",
    ):
        assert expected in text
    for part_of_runs in ("Training", "Energy landscape", "Environment", "Not run yet"):
        assert part_of_runs not in text


def test_rows_without_a_run_are_compared_with_runs(row_folder, run_copy, tmp_path):
    evaluate_run(run_copy, ["clean"], images=20)
    page = Page(write_comparison([run_copy, row_folder], tmp_path / "compare.html"))
    text = " ".join(page.text.split())
    assert "Result rows only." in text and "result rows without a run; classifier: made elsewhere" in text
    assert "trilemma generate rows" not in text and "trilemma generate pgd-at" in text
    # a classifier of other data is compared with nothing by mistake
    assert text.count("clean: other images") == 2


def test_the_title_is_the_name_of_the_folder_and_the_classes_stand_below(run_without_steps):
    header = Page(write_report(run_without_steps)).html.split("</header>")[0]
    assert "<h1><bdi>pgd-at</bdi></h1>" in header
    assert "10 classes: 0, 1, 2, 3, 4, 5, 6, 7 and 2 more" in header


CHANCE_DATA = {"name": "digits", "split": "test", "images": "all 4"}


def accuracy_row(protocol: str, value: float, **other: Any) -> dict[str, Any]:
    return {
        "protocol": protocol, "version": 1, "quantity": "accuracy", "better": "higher", "value": value,
        "lower": 0.1, "upper": 0.9, "also": {}, "count": 4, "data": CHANCE_DATA, "threat": None, "seed": 0,
        "checkpoint": {"checkpoint": "best", "data": "digits"}, "seconds": 1.0, "device": "cpu", "facts": {}, **other,
    }  # fmt: skip


def test_chance_stands_beside_every_accuracy_and_what_is_not_above_it_is_marked(run_without_steps, tmp_path):
    write_row(run_without_steps, accuracy_row("clean", 0.5, chance=0.25))
    write_row(run_without_steps, accuracy_row("top:2", 0.5, chance=0.5))
    # a row of an early version
    write_row(run_without_steps, accuracy_row("pgd-20", 0.1))
    html = write_report(run_without_steps).read_text()
    # at the top and in the table
    assert html.count("<small>chance: 25.0 %</small>") == html.count("<td>25.0 %</td>") == 1
    assert html.count('<span class="alarm">50.0 %, not above</span>') == 1
    text = Page(write_comparison([run_without_steps], tmp_path / "compare.html")).text
    assert "50.0 % (10.0 to 90.0), not above chance" in text and "chance: 25.0 %" in text
    assert text.count("not above chance") == 1


def test_rows_of_several_radii_are_drawn_as_a_curve_and_a_rise_is_a_finding(run_without_steps):
    for radius, value in (("0.1", 0.5), ("0.2", 0.2), ("0.3", 0.8)):
        threat = {"norm": "linf", "radius": radius}
        write_row(run_without_steps, accuracy_row("pgd-20", value, threat=threat, count=10))
    page = Page(write_report(run_without_steps))
    assert page.tags.count("img") == 1 and (run_without_steps / "figures" / "robustness-linf.png").is_file()
    assert "rising-curve" in page.text and "80.0% at 0.3" in page.text


def test_each_class_and_the_confusion_of_classes_are_shown_worst_first(run_without_steps):
    names = ["<cat>", "$dog$", "owl\nbird"]
    per_class = [
        {"class": k, "value": value, "lower": value, "upper": value, "count": 10}
        for k, value in enumerate((0.9, 0.2, 0.6))
    ]
    facts = {
        "class_names": names, "per_class": per_class, "confusion": [[9, 1, 0], [8, 2, 0], [0, 4, 6]],
        "most_confused": [{"true": 1, "answer": 0, "count": 8}],
    }  # fmt: skip
    write_row(
        run_without_steps,
        accuracy_row("classes", 0.57, quantity="balanced accuracy", facts=facts, chance=1 / 3),
    )
    page = Page(write_report(run_without_steps))
    text = " ".join(page.text.split())
    assert page.open == [] and page.tags.count("img") == 1
    assert (run_without_steps / "figures" / "confusion.png").is_file()
    rows = text[text.index("Most frequent mistakes: 8 of $dog$ taken for <cat>") :]
    assert rows.index("$dog$20.0 %") < rows.index("owl bird60.0 %") < rows.index("<cat>90.0 %")


def test_a_page_that_cannot_be_written_is_one_clear_line(run_without_steps, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotStoredError, match="cannot be written"):
        write_report(run_without_steps, tmp_path / "file" / "page.html")


def test_a_comparison_is_self_contained_and_names_what_is_missing(full_run, run_copy, tmp_path):
    page = Page(write_comparison([full_run, run_copy], tmp_path / "compare.html"))
    check_self_contained(page)
    assert "trilemma diagnose pgd-at" in page.text
    assert "trilemma generate pgd-at" in page.text
    assert "not comparable" not in page.text


def test_rows_measured_differently_are_said_to_be_incomparable(full_run, run_copy, tmp_path):
    evaluate_run(run_copy, ["clean"], images=30)
    text = Page(write_comparison([full_run, run_copy], tmp_path / "compare.html")).text
    assert "clean: the rows differ in data, so they are not comparable." in text


def test_a_comparison_of_bare_runs_has_a_page(run_copy, tmp_path):
    page = Page(write_comparison([run_copy], tmp_path / "compare.html"))
    assert "nothing evaluated yet" in page.text
    assert page.loaded == []
