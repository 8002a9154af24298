"""The classifier in this package, which ``trilemma demo`` shows when there is nothing else."""

from __future__ import annotations

from pathlib import Path

# Trained and measured by the commands in README.md beside it.
CLASSIFIER = Path(__file__).with_name("digits.safetensors")
ACCURACY = (("clean", "98.2 % of 397 test images"), ("autoattack-standard", "52.1 % of 397 test images"))
