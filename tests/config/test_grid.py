"""Values of a grid: commas and integer ranges, what brackets and quotes keep together, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trilemma.config.grid import grid_of, parse_grid
from trilemma.errors import ConfigError


@pytest.mark.parametrize(
    ("entry", "values"),
    [
        ("seed=0..4", [0, 1, 2, 3, 4]),
        ("seed=-1..1", [-1, 0, 1]),
        ("seed=3..3", [3]),
        ("seed=0..2, 7", [0, 1, 2, 7]),
        ("seed=0..2,1,0", [0, 1, 2]),
        ("method.beta=0.1,1,1e-1", [0.1, 1]),
        ("training.ema=null,0.9", [None, 0.9]),
        ("training.amp=true,1", [True, 1]),
        ("training.freeze=[a, b],[]", [["a", "b"], []]),
        (
            "method={name: trades, beta: 1},{name: pgd-at}",
            [{"name": "trades", "beta": 1}, {"name": "pgd-at"}],
        ),
        ("data.root='a, b',c", ["a, b", "c"]),
        ("data.root=it's,b's", ["it's", "b's"]),
        ("threat.radius=4/255,8/255", ["4/255", "8/255"]),
    ],
)
def test_several_values(entry, values):
    grid = parse_grid([entry])
    (found,) = grid.varying.values()
    assert (list(found), grid.fixed, grid.count) == (values, {}, len(values))


@pytest.mark.parametrize(
    ("entry", "key", "value"),
    [
        ("training.freeze=[conv1, bn1]", "training.freeze", ["conv1", "bn1"]),
        ("method={name: trades, beta: 1}", "method", {"name": "trades", "beta": 1}),
        ('data.root="a,b"', "data.root", "a,b"),
        ("data.root=../photos", "data.root", "../photos"),
        ("method=trades", "method.name", "trades"),
        ("seed=5", "training.seed", 5),
        ("training.ema=", "training.ema", None),
    ],
)
def test_one_value_is_shared_by_all_runs(entry, key, value):
    grid = parse_grid([entry])
    assert (grid.fixed, grid.varying, grid.count) == ({key: value}, {}, 1)


def test_combinations_are_the_product_and_the_seed_varies_fastest():
    grid = parse_grid(["seed=0,1", "method=pgd-at,trades", "training.epochs=3"])
    assert list(grid.combinations()) == [
        {"method.name": "pgd-at", "training.seed": 0},
        {"method.name": "pgd-at", "training.seed": 1},
        {"method.name": "trades", "training.seed": 0},
        {"method.name": "trades", "training.seed": 1},
    ]


def test_python_values():
    """Lists, tuples and ranges hold several values; a list that is one value stands in a list."""
    grid = grid_of(
        {
            "seed": range(2),
            "method.beta": (0.1, np.float64(1)),
            "training.freeze": [["a", "b"]],
            "data.root": Path("x"),
        }
    )
    assert grid.fixed == {"data.root": "x"}
    assert grid.varying == {
        "method.beta": [0.1, 1.0], "training.freeze": [["a", "b"]], "training.seed": [0, 1]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["seed"], "override 'seed' is not of the form key=value, such as seed=0..4"),
        (["=1,2"], "is not of the form key=value"),
        (["seed=4..0"], "seed=4..0: the range is empty; write 0..4"),
        (["seed=1,,2"], "an empty value between commas"),
        (["seed=1,2,"], "an empty value between commas"),
        (["method.beta=0.1..1"], "a range is of two integers"),
        (["seed=0..4..2"], "a range is of two integers"),
        (["seed=0..999999999"], "1,000,000,000 values; at most 100,000 are possible"),
        (["seed=0..1", "training.seed=2"], "training.seed is given twice; give all its values at once"),
        (["training.freeze=[a,b"], "not valid YAML"),
        (["seed=010,1"], "write 10, without leading zeros"),
    ],
)
def test_mistakes(entries, message):
    with pytest.raises(ConfigError) as error:
        parse_grid(entries)
    assert message in str(error.value)


def test_a_list_without_values_is_refused():
    with pytest.raises(ConfigError, match=r"method\.beta: has no values"):
        grid_of({"method.beta": []})
