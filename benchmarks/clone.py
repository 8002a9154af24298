"""Reads a clone of another repository, or its git directory."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git(clone: Path, *arguments: str) -> str:
    """The output of a git command in the clone; ends the program with one line if it fails."""
    done = subprocess.run(["git", "-C", str(clone), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{clone}: no git repository ({done.stderr.strip()})")
    return done.stdout
