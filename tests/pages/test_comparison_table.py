"""The table of several runs: what stands in one column was measured in one way, and what was not says so."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from trilemma.figures.trade_off import draw_trade_off
from trilemma.pages.comparison import trade_off_pictures, write_comparison
from trilemma.pages.gather import comparison_table
from trilemma.pages.table import as_csv, as_latex, as_markdown, as_tree, latex_escaped
from trilemma.pages.words import DASH
from trilemma.runs.records import write_row

BEST = {"checkpoint": "best", "epoch": 4.0, "data": "digits"}


def row(protocol: str, value: float, **other: Any) -> dict[str, Any]:
    threat = None if protocol in ("clean", "ece") else {"norm": "linf", "radius": "0.2"}
    data = {"name": "digits", "split": "test", "images": "all 397"}
    return {
        "protocol": protocol, "version": 1, "quantity": "accuracy", "better": "higher", "value": value,
        "lower": value - 0.02, "upper": value + 0.02, "also": {}, "count": 397, "data": data, "threat": threat,
        "seed": 0, "checkpoint": BEST, "seconds": 1.0, **other,
    }  # fmt: skip


ECE = {"quantity": "ECE", "better": "lower", "lower": None, "upper": None}


def samples(path: Path, distance: float, named: float | None = None) -> None:
    distances = {"start": 4.0, "sample": distance, "real": 2.0}
    figures = {
        "count": 50,
        "named": named,
        "named_lower": named,
        "named_upper": named,
        "distance_median": 0.0,
    }
    record = {
        "name": "uniform_momentum_joint_9", "start": "uniform", "sampler": "momentum", "energy": "joint", "steps": 9,
        "seed": 0, "per_class": 5, "checkpoint": BEST, "reference": {"name": "digits", "images": 1200},
        "namer": None if named is None else {"recipe": "digits/standard"},
        "figures": {key: {**figures, "distance": value} for key, value in distances.items()},
    }  # fmt: skip
    (path / "samples").mkdir(exist_ok=True)
    (path / "samples" / "uniform_momentum_joint_9.json").write_text(json.dumps(record))


def set_config(path: Path, **training: Any) -> None:
    """Changes values of the section ``training`` of a run's configuration."""
    file = path / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["training"] |= training
    file.write_text(yaml.safe_dump(config))


@pytest.fixture
def seeds(finished_run: Path, tmp_path: Path) -> list[Path]:
    """Three training seeds of one recipe, and a run of another one."""
    values = {f"pgd-at-seed-{seed}": (0.5 + seed / 10, 0.2 + seed / 10) for seed in range(3)}
    values["other"] = (0.55, 0.1)
    paths = [Path(shutil.copytree(finished_run, tmp_path / name)) for name in values]
    for seed, (path, (clean, robust)) in enumerate(zip(paths, values.values(), strict=True)):
        set_config(path, **({"lr": 0.5} if path.name == "other" else {"seed": seed}))
        write_row(path, row("clean", clean, chance=0.1))
        write_row(path, row("pgd-20", robust, chance=0.1))
    return paths


@pytest.fixture
def two(finished_run: Path, tmp_path: Path) -> list[Path]:
    """Two runs of other recipes with rows of their best, and of their last where it was evaluated."""
    paths = [Path(shutil.copytree(finished_run, tmp_path / name)) for name in ("one", "two")]
    set_config(paths[1], lr=0.03)
    for path, clean, robust in zip(paths, (0.9, 0.8), (0.4, 0.5), strict=True):
        write_row(path, row("clean", clean))
        write_row(path, row("pgd-20", robust))
    write_row(paths[0], row("ece", 0.05, **ECE))
    write_row(paths[0], row("clean", 0.95, checkpoint={"checkpoint": "last", "epoch": 9.0}), "last")
    samples(paths[0], 3.0, 0.75)
    samples(paths[1], 5.0)
    return paths


def test_a_column_names_protocol_version_quantity_threat_and_data(two):
    cards = [column.card for column in comparison_table(two).columns]
    assert cards[:2] == [
        ("clean v1", "accuracy, higher is better", "digits test, all 397"),
        ("pgd-20 v1", "accuracy, higher is better", "L∞, radius 0.2", "digits test, all 397"),
    ]
    assert ("ece v1", "ECE, lower is better", "digits test, all 397") in cards


def test_best_and_last_are_rows_of_their_own_and_say_which_they_are(two):
    entries = comparison_table(two).entries
    assert [(entry.run, entry.checkpoint) for entry in entries] == [
        ("one", "best, epoch 4"), ("one", "last, epoch 9"), ("two", "best, epoch 4"),
    ]  # fmt: skip
    assert [len(entry.values) for entry in entries] == [5, 1, 3]


def test_samples_are_named_by_whom_and_measured_by_real_images(two):
    table = comparison_table(two)
    named, distance = table.columns[2:4]
    assert named.card[1:] == ("named as their class, higher is better", "by digits/standard")
    assert named.card[0] == distance.card[0] == "samples uniform_momentum_joint_9 v1"
    assert [entry.values[distance]["value"] for entry in table.entries if distance in entry.values] == [
        1.5,
        2.5,
    ]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"version": 2}, "other version"),
        ({"threat": {"norm": "l2", "radius": "0.5"}}, "other threat"),
        ({"data": {"name": "digits", "split": "test", "images": "first 20 of 397"}, "count": 20}, "other images"),
        ({"version": 2, "threat": {"norm": "linf", "radius": "4/255"}}, "other version and threat"),
    ],
)  # fmt: skip
def test_rows_of_one_protocol_that_differ_stand_in_two_columns_and_say_why(two, other, expected):
    (two[1] / "evaluation" / "pgd-20.json").unlink()
    write_row(two[1], row("pgd-20", 0.9, **other))
    table = comparison_table(two)
    assert [column.protocol for column in table.columns].count("pgd-20") == 2
    note = f"pgd-20: {expected}"
    assert [entry.notes for entry in table.entries] == [(note,), (), (note,)]
    assert as_markdown(table).splitlines()[-1].endswith(f" | {note} |")
    assert as_csv(table).count(note) == 2
    assert as_tree(table)["rows"][0]["not_comparable"] == [note]
    assert len(trade_off_pictures(table)) == 2  # of the run that has both on the same images


OTHER_DATA = {"data": {"name": "letters", "split": "test", "images": "all 50"}, "count": 50}


def test_rows_of_other_data_are_compared_with_each_other_and_only_where_two_runs_have_them(two):
    write_row(two[0], row("clean", 0.3, **OTHER_DATA))
    assert [column.data for column in comparison_table(two).columns if column.protocol == "clean"] == [
        "digits test, all 397"
    ]
    write_row(two[1], row("clean", 0.4, **OTHER_DATA))
    table = comparison_table(two)
    values = {
        column.data: [entry.values[column]["value"] for entry in table.entries if column in entry.values]
        for column in table.columns
        if column.protocol == "clean"
    }
    assert values == {"digits test, all 397": [0.9, 0.95, 0.8], "letters test, all 50": [0.3, 0.4]}
    assert not any(entry.notes for entry in table.entries)


def test_a_run_that_has_only_other_data_says_so(two):
    (two[1] / "evaluation" / "clean.json").unlink()
    write_row(two[1], row("clean", 0.4, **OTHER_DATA))
    assert [entry.notes for entry in comparison_table(two).entries] == [(), (), ("clean: other images",)]


def test_where_most_agree_only_the_odd_one_says_so(two, tmp_path):
    third = Path(shutil.copytree(two[0], tmp_path / "three"))
    write_row(third, row("pgd-20", 0.9, version=2))
    notes = [entry.notes for entry in comparison_table([*two, third]).entries]
    assert notes == [(), (), (), ("pgd-20: other version",), ()]


def test_another_seed_or_time_is_no_difference(two):
    write_row(two[1], row("pgd-20", 0.5, seed=7, seconds=3.0))
    assert not any(entry.notes for entry in comparison_table(two).entries)


def test_markdown_has_one_cell_per_column_with_interval(two):
    lines = as_markdown(comparison_table(two)).splitlines()
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert lines[2].startswith(
        "| one | pgd-at | best, epoch 4 | 0.4 | 90.0 % (88.0 to 92.0) | 40.0 % (38.0 to 42.0) |"
    )
    assert lines[4].rstrip(" |").endswith(f"| {DASH}")


def test_names_of_runs_are_no_markup(two, tmp_path):
    name = "a|b *c* <i>d __e__ $f_g$ `h`"
    paths = [two[0].rename(tmp_path / name), two[1]]
    lines = as_markdown(comparison_table(paths)).splitlines()
    assert lines[2].startswith(r"| a\|b \*c\* &lt;i&gt;d \_\_e\_\_ \$f_g\$ \`h\` | pgd-at |")
    html = write_comparison(paths, tmp_path / "page.html").read_text()
    assert "<bdi>a|b *c* &lt;i&gt;d _<wbr>_<wbr>e" in html and "<i>" not in html


def test_csv_and_json_hold_the_numbers_as_they_are(two):
    table = comparison_table(two)
    first, *rows = csv.reader(io.StringIO(as_csv(table)))
    assert first[:8] == [
        "run",
        "method",
        "checkpoint",
        "minutes",
        "seeds",
        "clean",
        "clean_lower",
        "clean_upper",
    ]
    place = first.index("pgd_20_lower")
    assert [line[place] for line in rows] == ["0.38", "", "0.48"]
    tree = json.loads(json.dumps(as_tree(table)))
    assert [column["name"] for column in tree["columns"]][:2] == ["clean", "pgd_20"]
    assert tree["columns"][1]["threat"] == "L∞, radius 0.2"
    value = {"value": 0.8, "lower": 0.78, "upper": 0.8 + 0.02, "seed": 0, "seconds": 1.0}
    assert tree["rows"][2]["values"][0] == value


def test_the_page_shows_every_value_once_and_sorts_by_it(two, tmp_path):
    html = write_comparison(two, tmp_path / "page.html").read_text()
    text = re.sub("<[^>]*>", "", html)
    assert html.count('<table class="sortable">') == 1 and html.count("<script>") == 1
    assert html.count('data-value="0.9"') == html.count('data-value="0.95"') == 1
    assert "last, epoch 9" in html and "90.0 % (88.0 to 92.0)" in text


def test_generation_is_plotted_beside_robustness_only_where_there_are_samples(two):
    assert [picture.alt for picture in trade_off_pictures(comparison_table(two))] == [
        "clean accuracy against robust accuracy", "metric of generated images against robust accuracy",
    ]  # fmt: skip
    for path in two:
        shutil.rmtree(path / "samples")
    assert len(trade_off_pictures(comparison_table(two))) == 1


def test_the_strongest_attack_that_all_have_is_plotted(two, monkeypatch):
    for name, paths in (("autoattack-standard", two), ("pgd-50-10", two[:1])):
        for path in paths:
            write_row(path, row(name, 0.3))
    plotted: list[str] = []

    def noted(runs: Any, robust_name: str, *rest: Any) -> Any:
        plotted.append(robust_name)
        return draw_trade_off(runs, robust_name, *rest)

    monkeypatch.setattr("trilemma.pages.comparison.draw_trade_off", noted)
    trade_off_pictures(comparison_table(two))
    assert set(plotted) == {"autoattack-standard"}


def test_runs_that_differ_by_their_seed_share_a_line_of_mean_deviation_and_range(seeds):
    table = comparison_table(seeds)
    assert [(entry.run, entry.seeds) for entry in table.entries] == [("pgd-at", (0, 1, 2)), ("other", (0,))]
    robust = table.columns[1]
    value = table.entries[0].values[robust]
    assert value["value"] == pytest.approx(0.3) and value["std"] == pytest.approx(0.1)
    assert (value["min"], value["max"], value["runs"], value["lower"]) == (0.2, 0.4, 3, None)
    assert (
        "| pgd-at (3 seeds) | pgd-at | best, epoch 4 | 0.4 | 60.0 % ± 10.0 (50.0 to 70.0) |"
        in as_markdown(table)
    )
    assert "Mean ± standard deviation over training seeds" in as_markdown(table)
    first, group, single = csv.reader(io.StringIO(as_csv(table)))
    values = dict(zip(first, group, strict=True))
    assert values["seeds"] == "0 1 2" and values["pgd_20_runs"] == "3" and values["clean_lower"] == ""
    assert (
        float(values["clean_std"]) == pytest.approx(0.1)
        and dict(zip(first, single, strict=True))["clean_std"] == ""
    )
    assert as_tree(table)["rows"][0]["values"][0]["std"] == pytest.approx(0.1)


def test_each_run_can_have_a_line_of_its_own(seeds):
    table = comparison_table(seeds, each=True)
    assert [entry.run for entry in table.entries] == [path.name for path in seeds]
    assert not table.grouped and "standard deviation" not in as_markdown(table)


def test_a_value_that_some_seeds_lack_says_of_how_many_it_is(seeds):
    (seeds[0] / "evaluation" / "pgd-20.json").unlink()
    text = as_markdown(comparison_table(seeds))
    assert "35.0 % ± 7.1 (30.0 to 40.0), 2 of 3 seeds" in text
    (seeds[1] / "evaluation" / "pgd-20.json").unlink()
    assert "40.0 % (38.0 to 42.0), 1 of 3 seeds" in as_markdown(comparison_table(seeds))


@pytest.mark.parametrize("change", ["seed", "status"])
def test_a_repeated_seed_or_another_end_is_no_further_seed(seeds, change):
    if change == "seed":
        set_config(seeds[2], seed=1)
    else:
        (seeds[2] / "status.json").write_text('{"status": "interrupted", "minutes": 0.1}')
    assert [len(entry.seeds) for entry in comparison_table(seeds).entries] == [2, 1, 1]


def test_the_page_of_groups_names_the_seeds_and_draws_their_range(seeds, tmp_path, monkeypatch):
    spans: list[Any] = []

    def noted(runs: Any, *rest: Any) -> Any:
        spans.extend((clean["lower"], clean["upper"]) for _, clean, _ in runs)
        return draw_trade_off(runs, *rest)

    monkeypatch.setattr("trilemma.pages.comparison.draw_trade_off", noted)
    html = write_comparison(seeds, tmp_path / "page.html").read_text()
    assert spans[:2] == [(0.5, 0.7), (pytest.approx(0.53), pytest.approx(0.57))]
    assert "4 runs;" in html and "training seeds 0, 1, 2" in html and "best, epoch 4, 3 seeds</small>" in html


def test_latex_is_a_booktabs_table_with_escaped_names_and_the_best_in_bold(seeds):
    named = seeds[3].rename(seeds[3].with_name("50%_of $x$ & {y} #1"))
    lines = as_latex(comparison_table([*seeds[:3], named]), bold=True).splitlines()
    assert lines[0] == r"% needs \usepackage{booktabs}"
    card = "pgd-20 v1, accuracy, higher is better, L∞, radius 0.2, digits test, all 397, chance: 10.0 %"
    assert f"% column 5: {card}" in lines
    assert r"% dagger: not above chance" in lines
    table = lines[lines.index(r"\begin{tabular}{lllrr}") :]
    assert table[1] == r"\toprule" and table[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert table[2] == r"run & method & checkpoint & clean & pgd-20 \\"
    assert table[3] == r" &  &  &  & L$\infty$, radius 0.2 \\"
    assert table[5] == (
        r"pgd-at (3 seeds) & pgd-at & best, epoch 4 & \textbf{60.0} $\pm$ 10.0 & \textbf{30.0} $\pm$ 10.0 \\"
    )
    assert table[6] == r"50\%\_of \$x\$ \& \{y\} \#1 & pgd-at & best, epoch 4 & 55.0 & 10.0$^\dagger$ \\"
    assert r"\textbf" not in as_latex(comparison_table(seeds[:3]))


def test_no_character_of_a_name_is_a_command_of_latex():
    assert latex_escaped("a\\b~c^d<e>|\nf") == (
        r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d\textless{}e\textgreater{}\textbar{} f"
    )


def test_column_names_are_short_and_distinct(two):
    write_row(two[0], row("pgd-20", 0.7, threat={"norm": "linf", "radius": "4/255"}))
    write_row(two[1], row("pgd-20", 0.7, threat={"norm": "linf", "radius": "4/255"}))
    names = comparison_table(two).names
    assert len(set(names)) == len(names)
    assert names == [
        "clean", "pgd_20_linf_0_2", "pgd_20_linf_4_255", "named_as_their_class", "distance_of_real", "ece"
    ]  # fmt: skip
