"""Every extra has a check, is on the installation page, and cannot replace the torch that was chosen."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

from benchmarks.extras import CHECKS, commands, declared

# They require torchvision, which requires one exact torch.
PIN_TORCH = ("timm", "torch-fidelity", "torchvision", "robustbench")


def test_every_extra_has_a_check_that_is_python() -> None:
    assert declared().keys() == CHECKS.keys()
    for check in CHECKS.values():
        ast.parse(textwrap.dedent(check.code))


def test_no_extra_requires_a_package_that_pins_torch() -> None:
    for name, requirements in declared().items():
        names = {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}
        assert not names & set(PIN_TORCH), name
    alone = {package for check in CHECKS.values() for package in check.alone}
    assert alone == {"timm", "torch-fidelity"}
    assert commands("timm") == ["pip install -e '.[timm]'", "pip install --no-deps timm"]


def test_the_installation_page_lists_every_extra() -> None:
    text = (Path(__file__).parents[2] / "docs" / "installation.md").read_text(encoding="utf-8")
    table = text.partition("<!-- extras: begin -->")[2].partition("<!-- extras: end -->")[0]
    listed = re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)
    assert listed == sorted(declared())
    for name in listed:
        assert all(f"`{command}`" in table for command in commands(name))
