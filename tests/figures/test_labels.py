"""Names in figures: any name of a class or run is drawn readably, or numbered and listed on the page."""

from __future__ import annotations

import warnings

import pytest
import torch
from matplotlib import font_manager

from trilemma.figures import labels
from trilemma.figures.labels import LONGEST, figure_labels, font_families, label_key, one_line, shortened
from trilemma.figures.sample_grid import draw_grid
from trilemma.figures.style import DARK, LIGHT, render
from trilemma.figures.trade_off import draw_trade_off

CAT = "\u732b"
DOLLARS = ["$5_to_$10", "$10_to_$20", "over $20"]


def grid(names, theme=LIGHT):
    index = torch.arange(len(names))
    return draw_grid(
        torch.zeros(len(names), 1, 4, 4), torch.ones(len(names), 1, 4, 4), index, names, 3, theme
    )


@pytest.fixture
def no_font(monkeypatch):
    """A machine on which no other font has further characters."""
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    labels._family_with.cache_clear()
    labels._say_numbered.cache_clear()
    yield
    labels._family_with.cache_clear()


def test_dollar_signs_are_no_mathematics_in_tick_labels_and_legends():
    render(lambda theme: grid(DOLLARS, theme))
    assert [text.get_text() for text in grid(DOLLARS).axes[0].get_yticklabels()] == DOLLARS
    row = {"value": 0.5, "lower": 0.4, "upper": 0.6}
    render(lambda theme: draw_trade_off([(name, row, row) for name in DOLLARS], "pgd-20", theme))


def test_a_figure_keeps_its_theme_and_its_dollars_outside_of_render(tmp_path):
    figure = grid(DOLLARS, DARK)
    figure.savefig(tmp_path / "grid.png")
    assert figure.get_facecolor()[:3] == pytest.approx(
        [int(DARK.background[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    )
    assert not figure.axes[0].get_yticklabels()[2].get_parse_math()


@pytest.mark.usefixtures("no_font")
def test_names_without_a_font_are_numbered_and_listed_and_it_is_said_once(capsys):
    names = ["cat", CAT, CAT * 2]
    with warnings.catch_warnings():
        # matplotlib warns of a glyph that is a box
        warnings.simplefilter("error")
        render(lambda theme: grid(names, theme))
    assert figure_labels(names) == ["cat", "#1", "#2"]
    assert label_key(names) == [("#1", CAT), ("#2", CAT * 2)]
    assert capsys.readouterr().err.count("no installed font has all characters of some names") == 1


def test_a_font_that_has_the_characters_is_used_beside_the_default_one(monkeypatch):
    monkeypatch.setattr(labels, "_has", lambda character: character != "x")
    labels._family_with.cache_clear()
    families = font_families("x")
    assert families[0] == "DejaVu Sans" and len(families) == 2 and not families[1].startswith("Last Resort")
    assert grid(["x", "y"]).axes[0].get_yticklabels()[0].get_fontfamily() == list(families)


def test_long_names_keep_both_ends_and_stay_distinct():
    text = shortened("a" * 40 + "b" * 20, 28)
    assert len(text) == LONGEST and text.startswith("a" * 18) and text.endswith("b" * 9)
    same = ["a" * 18 + middle + "b" * 40 for middle in "xyz"]
    assert len(set(figure_labels(same))) == 3
    assert [name for _, name in label_key(same)] == same


def test_line_breaks_control_characters_and_decomposed_letters_become_one_plain_line():
    assert one_line("two\nlines\tand\x00 \u202emore e\u0301") == "two lines and more \u00e9"
    assert figure_labels(["", "\n"]) == ["#0", "#1"]


def test_two_hundred_names_have_two_hundred_labels():
    names = [f"class number {k} of two hundred with a long name" for k in range(200)]
    assert len(set(figure_labels(names))) == 200


def test_names_from_right_to_left_need_a_matplotlib_that_writes_so(monkeypatch):
    monkeypatch.setattr(labels, "_shapes_text", lambda: False)
    assert font_families("\u05e9\u05dc\u05d5\u05dd") == ()
    monkeypatch.setattr(labels, "_shapes_text", lambda: True)
    assert font_families("\u05e9\u05dc\u05d5\u05dd") == ("DejaVu Sans",)
