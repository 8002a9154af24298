"""The progress bar in a notebook: one output that is updated, with HTML for the page and text for everything else."""

from __future__ import annotations

import io
import re
import sys
from types import ModuleType
from typing import Any

import pytest

from trilemma import progress
from trilemma.training.progress import Bar, reporter


class Output:
    """What a notebook shows: the contents of one output, the newest last."""

    def __init__(self) -> None:
        self.contents: list[dict[str, str]] = []

    def display(self, content: dict[str, str], raw: bool, display_id: bool) -> Output:
        assert raw and display_id
        self.contents.append(content)
        return self

    def update(self, content: dict[str, str], raw: bool) -> None:
        self.contents.append(content)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Output:
    """A stand-in for IPython in the kernel of a notebook."""
    output = Output()
    shell = type("ZMQInteractiveShell", (), {})()
    modules: dict[str, Any] = {
        "IPython": {"get_ipython": lambda: shell},
        "IPython.display": {"display": output.display},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(progress._NotebookBar, "EVERY_SECONDS", -1.0)
    return output


def test_a_notebook_is_recognised_by_its_shell(notebook: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress.in_notebook() and progress.can_draw()
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: None)
    assert not progress.in_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not progress.in_notebook()


def test_one_output_shows_title_share_and_amount(
    notebook: Output, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.bar("<b>pgd</b>", 10, True) as advance:
        advance(3)
        advance(4)
    started, first, second, end = notebook.contents
    assert 'max="10" value="3"' in first["text/html"] and "&lt;b&gt;pgd&lt;/b&gt;" in first["text/html"]
    assert second["text/plain"].startswith("<b>pgd</b> 7/10")
    assert 'value="0"' in started["text/html"] and end == {"text/plain": "", "text/html": ""}
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_training_shows_its_metrics_and_messages(
    notebook: Output, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = reporter("digits", True)
    assert isinstance(bar, Bar)
    bar.metrics({"epoch": 1.5, "loss": 0.25, "images_per_second": 100.0}, 0.3, 65.0)
    bar.message("alarm: divergence")
    bar.close()
    last = notebook.contents[-1]
    assert (
        last["text/plain"].startswith("digits 30% 1:05 left epoch 1.5  loss 0.250")
        and 'value="0.3"' in last["text/html"]
    )
    assert "\x1b" not in str(notebook.contents)
    assert capsys.readouterr().err == "alarm: divergence\n"


def test_a_hidden_bar_shows_nothing(notebook: Output) -> None:
    with progress.bar("pgd", 10, False) as advance:
        advance(3)
    assert notebook.contents == []


@pytest.mark.parametrize("columns", [80, 120])
def test_a_line_on_a_terminal_starts_with_bar_share_and_time_left_and_is_cut_at_its_end(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    with progress.ProgressBar("digits-eb-jdat", 1.0, unit="share", transient=False) as bar:
        bar.update(done=0.45, text="epoch 4.5  " + "loss 0.123  " * 20, seconds_left=75.0)
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n").splitlines()
    line = next(part for part in reversed(drawn) if "45%" in part)
    width = 20 if columns >= 100 else 12
    assert len(line) <= columns
    assert re.match(rf"[-\u2501]{{{width}}}  45%  1:15 left  digits-eb-jdat  epoch 4\.5", line)


def test_words_of_a_line_are_ordered_by_importance() -> None:
    assert progress.line_words("pgd-20", 30, 120, 61.0, "count") == " 25%  1:01 left  pgd-20  30/120"
    assert progress.line_words("cifar", 5e6, 1e7, None, "bytes") == " 50%  cifar  5/10 MB"
    assert progress.line_words("apgd-ce: 3 images left", 30, 120, 3725.0, "text") == (
        "1:02:05 left  apgd-ce: 3 images left"
    )
    assert progress.line_words("clean", 0, None, None, "count") == "clean"
