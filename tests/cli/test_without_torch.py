"""Help, lists and mistakes are answered at once: without torch, numpy or anything else that takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "numpy",
    "PIL",
    "scipy",
    "matplotlib",
    "lightning_fabric",
    "torchmetrics",
    "jinja2",
    "safetensors",
)
CODE = f"""
import sys
from trilemma.cli.main import main
try:
    main()
except SystemExit as end:
    print("code", end.code, "loaded", [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["train", "--help"], 0),
        (["list"], 0),
        (["list", "methods", "--json"], 0),
        (["trian"], 2),
        (["train", "digits/standart"], 2),
        (["train", "digits/standard", "training.epoch=3"], 2),
        (["sweep", "digits/standard", "training.epoch=3,4"], 2),
        (["validate", "digits/standard", "method.name=pgd"], 2),
        (["evaluate", "runs/nothing"], 2),
        (["evaluate", "runs/nothing", "--protocol", "pgd"], 2),
        (["generate", "runs/nothing", "--sampler", "sgld"], 2),
        (["predict", "runs/nothing", "missing.png"], 2),
        (["report", "runs/nothing"], 2),
        (["compare", "runs/nothing"], 2),
        (["monitor", "nothing.csv"], 2),
    ],
)
def test_answers_without_loading_anything_heavy(arguments, code, tmp_path):
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
        cwd=tmp_path,
        check=False,
    )
    assert done.stderr.splitlines()[-1] == f"code {code} loaded []"


@pytest.mark.parametrize("form", ["markdown", "csv", "json"])
def test_a_text_table_of_runs_needs_neither_torch_nor_matplotlib(form, finished_run, tmp_path):
    """Run folders are JSON, YAML and one header: nothing has to be loaded to compare them."""
    (finished := tmp_path / "run").symlink_to(finished_run)
    code = f"""
import sys
sys.modules |= dict.fromkeys({HEAVY!r})  # importing one of them raises
from trilemma.cli.main import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", str(finished), "--format", form],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0 and "pgd-at" in done.stdout, done.stderr
