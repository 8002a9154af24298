"""Helpers that several commands share: options, output, folders, threat models, classifiers and test images."""

from __future__ import annotations

import io
import json
import math
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trilemma.config.mistakes import shared_keys
from trilemma.config.recipe import recipe_names
from trilemma.errors import ConfigError
from trilemma.printing import print_block, print_drawn, print_lines, print_message, visible_line
from trilemma.runs.run_directory import RunDirectory
from trilemma.storing import writable_folder
from trilemma.tables import cell
from trilemma.units import MAX_SEED, parse_fraction

if TYPE_CHECKING:
    import torch

    from trilemma.threat import Threat


def option(usage: str, help_text: str, **settings: Any) -> Any:
    """Returns a typer option, for use in ``Annotated``.

    Args:
        usage: names and placeholder as the help shows them: ``"--out DIR"``, ``"--quiet -q"``.
        settings: further arguments of :func:`typer.Option`.
    """
    words = usage.split()
    names = [word for word in words if word.startswith("-")]
    metavar = " ".join(word for word in words if not word.startswith("-"))
    return typer.Option(*names, metavar=metavar or None, help=help_text, **settings)


def decimal(text: str) -> float:
    """Parses the value of an option: a decimal number or a fraction, ``0.05`` or ``8/255``.

    Raises:
        BadParameter: not a number, or one that float32 does not hold.
    """
    try:
        return float(parse_fraction(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def argument(metavar: str, help_text: str, **settings: Any) -> Any:
    """Returns a typer argument, for use in ``Annotated``; ``settings`` are further arguments of ``typer.Argument``."""
    return typer.Argument(metavar=metavar, help=help_text, show_default=False, **settings)


def completed_by(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Returns a function for ``autocompletion=``: those of ``names`` that begin with the incomplete word."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


complete_recipe = completed_by(recipe_names)
complete_key = completed_by(lambda: [f"{key}=" for key in shared_keys()])


Recipe = Annotated[
    str,
    argument(
        "RECIPE",
        "name of a packaged recipe (`trilemma list recipes`), or a YAML file",
        autocompletion=complete_recipe,
    ),
]
Overrides = Annotated[
    list[str] | None,
    argument(
        "key=value",
        "config overrides with dotted keys, such as training.epochs=5",
        autocompletion=complete_key,
    ),
]
Results = Annotated[Path, argument("RUN", "run folder, or a folder of result rows")]
Seed = Annotated[int, option("--seed N", "random seed", min=0, max=MAX_SEED)]
Device = Annotated[
    str | None, option("--device DEVICE", "cpu, cuda or cuda:N  [default: the GPU if there is one]")
]
Devices = Annotated[
    int, option("--devices N", "processes that share the work, on the CPU or on as many GPUs", min=1)
]
Data = Annotated[str | None, option("--data NAME", "data set name or path  [default: the run's own data]")]
Out = Annotated[
    Path | None,
    option("--out DIR", "output folder  [default: in the run folder, else in the working directory]"),
]
Quiet = Annotated[bool, option("--quiet -q", "print no progress on standard error")]
Json = Annotated[bool, option("--json", "print the result as JSON")]
Norm = Annotated[str | None, option("--norm N", "linf or l2; requires --radius")]
Radius = Annotated[
    str | None,
    option("--radius R", "radius in pixel units, such as 8/255  [default: the stored threat model]"),
]


def print_error(message: str, prefix: str = "error: ") -> None:
    """Prints a message on standard error as one line."""
    print_message(f"trilemma: {prefix}{message}")


def print_progress(message: str, quiet: bool = False) -> None:
    """Prints a line of progress on standard error; nothing if ``quiet``."""
    if not quiet:
        print_message(message)


def show_progress_bar(quiet: bool) -> bool:
    """Returns whether to draw a progress bar: standard error is a terminal and ``--quiet`` is not given."""
    return not quiet and sys.stderr.isatty()


def print_json(value: object) -> None:
    """Prints a value as indented JSON on standard output; non-finite numbers become ``null``."""
    print_block(json.dumps(_finite(value), indent=2, allow_nan=False, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(rows: Sequence[Mapping[str, object]], title: str | None = None) -> None:
    """Prints a table on standard output, with one column per key of the first row; nothing without rows.

    On a terminal the table fits its width (:func:`fitting_columns`); in a pipe or a file it has every column, and no
    cell is wrapped.

    Args:
        rows: the most important keys first.
    """
    if not rows:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    cells = [{key: visible_line(cell(row[key])) for key in rows[0]} for row in rows]
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else WIDEST
    shown, omitted = fitting_columns(cells, width)
    table = Table(
        title=None if title is None else visible_line(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for key in shown:
        values = [row[key] for row in rows if row[key] is not None]
        numeric = bool(values) and all(isinstance(value, int | float) for value in values)
        side: Literal["left", "right"] = "right" if numeric else "left"
        table.add_column(visible_line(key), justify=side, overflow="fold", no_wrap=not _is_prose(cells, key))
    for line in cells:
        table.add_row(*(line[key] for key in shown))
    # Rendered to a string and printed here, because rich exits with code 1 on a closed pipe.
    text = io.StringIO()
    console = Console(
        file=text, width=width, force_terminal=terminal, markup=False, highlight=False, emoji=False
    )
    console.print(table)
    print_drawn("\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip()))
    if omitted:
        print_text(f"not shown: {', '.join(omitted)}; widen the terminal, or add --json")


def print_text(text: str) -> None:
    """Prints a sentence on standard output; on a terminal it is wrapped at spaces."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = textwrap.fill(visible_line(text), width, break_on_hyphens=False, break_long_words=False)
        print_block(text)
    else:
        print_lines(text)


# Width of a table in a pipe or a file.
WIDEST = 4000
# A column with a longer cell holds sentences, which may be wrapped at spaces to this width.
PROSE = 36


def fitting_columns(cells: Sequence[Mapping[str, str]], width: int) -> tuple[list[str], list[str]]:
    """Returns the columns of a table that fit a width, and those that do not: the last ones are omitted first.

    Columns of sentences need little width, because they are wrapped at spaces. The first column is always shown.

    Args:
        cells: the rows, each with the same columns.
        width: of the terminal, in characters.
    """
    shown, least = list(cells[0]), {key: _least_width(cells, key) for key in cells[0]}
    # Besides the cells a table has a space on either side, and three between columns.
    while len(shown) > 1 and sum(least[key] + 3 for key in shown) - 1 > width:
        shown.pop()
    return shown, [key for key in cells[0] if key not in shown]


def _least_width(cells: Sequence[Mapping[str, str]], key: str) -> int:
    from rich.cells import cell_len

    texts = [key, *(line[key] for line in cells)]
    if not _is_prose(cells, key):
        return max(map(cell_len, texts))
    # Prose is wrapped, but no word is broken.
    return max(PROSE, *(cell_len(word) for text in texts for word in text.split()))


def _is_prose(cells: Sequence[Mapping[str, str]], key: str) -> bool:
    """Whether a column holds sentences: a cell is long and has several words."""
    return any(len(line[key]) > PROSE and " " in line[key] for line in cells)


def percent(value: float | None) -> str | None:
    """Returns ``"97.5%"`` for 0.975, ``None`` for ``None``."""
    return None if value is None else f"{value:.1%}"


def lint_summary(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns one line about the findings in result rows, such as ``"lint: nothing found on 397 images"``."""
    from trilemma.evaluation.lint.rows import findings_of

    findings, images, complete = findings_of(rows)
    if not complete and not images:
        return "lint: not run"
    if not findings:
        return f"lint: nothing found on {images} images"
    return f"lint: on {images} images, {', '.join(finding.name for finding in findings)} (details above)"


def run_results(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns one dictionary per run: method, training minutes, accuracy by protocol, and sample metrics."""
    from trilemma.runs.read import read_all

    runs = read_all(paths)
    protocols = sorted({name for run in runs for name in run.rows})
    return [
        {
            "run": str(run.path),
            "method": run.method,
            "minutes": run.minutes,
            "accuracy": {name: run.rows[name]["value"] if name in run.rows else None for name in protocols},
            "samples": [{"name": record["name"], **record["figures"]} for record in run.samples],
        }
        for run in runs
    ]


def output_folder(out: Path | None, run: RunDirectory | None, name: str) -> Path:
    """Returns ``--out``, by default the folder ``name`` in the run or in the working directory, if it is writable."""
    return writable_folder(out or (Path(name) if run is None else run.path / name))


def parse_threat(norm: str | None, radius: str | None) -> Threat | None:
    """Returns the threat model of ``--norm`` (default linf) and ``--radius``, or ``None`` if neither is given.

    Raises:
        ConfigError: a norm without a radius, or an invalid norm or radius.
    """
    if radius is None:
        if norm is not None:
            raise ConfigError(f"--norm {norm}: requires --radius, such as --radius 8/255")
        return None
    from trilemma.threat import Threat

    return Threat(norm or "linf", radius)


def parse_threats(norm: str | None, radii: Sequence[str] | None) -> list[Threat] | None:
    """Returns the threats of ``--norm`` and several ``--radius``, each one radius or radii separated by commas.

    Raises:
        ConfigError: as :func:`parse_threat`.
    """
    texts: list[str | None] = [text for radius in radii or () for text in radius.split(",")]
    parsed = [parse_threat(norm, text) for text in texts or [None]]
    return [threat for threat in parsed if threat is not None] or None


def require_threat(given: object | None, stored: object | None) -> None:
    """Checks that there is a threat model to attack with.

    Raises:
        ConfigError: none is given and none is stored with the classifier.
    """
    if given is None and stored is None:
        raise ConfigError(
            "no threat model is stored with this classifier; add one, such as --norm linf --radius 8/255"
        )


def choose_device(name: str | None) -> torch.device:
    """Returns the device called ``name``; for ``None``, the accelerator if there is one, else the CPU.

    Raises:
        ConfigError: the device is unknown, unsupported or not available.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name}: unknown; use cpu, cuda or cuda:N") from None
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        available = f"cuda:0 to cuda:{count - 1}" if count else "only the CPU"
        raise ConfigError(f"--device {name}: not available, this machine has {available}; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: not supported; use cpu, cuda or cuda:N")
    # Every CPU device is the same one.
    return torch.device("cpu") if device.type == "cpu" else device
