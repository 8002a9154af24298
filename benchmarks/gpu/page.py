"""The result page of a script for an accelerator: its command, hardware and versions above its table."""

from __future__ import annotations

from pathlib import Path

import torch

import trilemma

RESULTS = Path(__file__).resolve().parents[1] / "results"


def publish(
    name: str, title: str, command: str, device: str, about: str, table: list[str], write: bool
) -> None:
    """Prints the page, and with ``write`` also puts it into ``benchmarks/results/NAME.md``."""
    hardware = torch.cuda.get_device_name() if device.startswith("cuda") else device
    made = f"{hardware}, torch {torch.__version__}, trilemma {trilemma.__version__}, {about}"
    text = "\n".join(
        [f"# {title}", "", f"`python benchmarks/gpu/{command} --device {device}`", "", made, "", *table, ""]
    )
    print(text)
    if write:
        (RESULTS / f"{name}.md").write_text(text)
