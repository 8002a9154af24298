"""What the subcommands share: printing, arguments, folders, threats, and the classifier and images meant."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trilemma.errors import ConfigError, DataError, RunError, nearest
from trilemma.runs.records import checkpoint_name
from trilemma.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    import torch

    from trilemma.classifier.classifier import Classifier
    from trilemma.data.image_set import ImageSet
    from trilemma.threat import Threat


def complain(message: str, kind: str = "error: ") -> None:
    """One line on standard error, whatever the message holds."""
    print(f"trilemma: {kind}{' '.join(message.splitlines())}", file=sys.stderr)


def tell(message: str, quiet: bool = False) -> None:
    """A line of progress on standard error; nothing when ``quiet``."""
    if not quiet:
        print(message, file=sys.stderr, flush=True)


def watched(quiet: bool) -> bool:
    """Whether to draw a progress bar: somebody looks at standard error, and wants it."""
    return not quiet and sys.stderr.isatty()


def print_json(value: object) -> None:
    """A result for machines: indented JSON on standard output; a number that is not finite is ``null``."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(rows: Sequence[Mapping[str, object]], title: str | None = None) -> None:
    """A table on standard output: one column per key of the first row.

    On a terminal it fits the width; in a pipe or a file no cell is ever folded.
    """
    if not rows:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for key in rows[0]:
        numeric = all(isinstance(row[key], int | float | None) for row in rows)
        table.add_column(key, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    terminal = sys.stdout.isatty()
    text = io.StringIO()  # printed by us: rich itself would answer a closed pipe with exit code 1
    width = shutil.get_terminal_size().columns if terminal else 400
    console = Console(
        file=text, width=width, force_terminal=terminal, markup=False, highlight=False, emoji=False
    )
    console.print(table)
    print("\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip()))


def share(value: float | None) -> str | None:
    """``"97.5%"`` for 0.975; ``None`` stays."""
    return None if value is None else f"{value:.1%}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="a packaged name (`trilemma list recipes`) or a YAML file")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="key=value", help="config keys with dots, such as training.epochs=5", show_default=False
    ),
]
Source = Annotated[
    str, typer.Argument(metavar="RUN_OR_FILE", help="a run folder, a classifier file, or timm:NAME")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="seed of every random number")]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="cpu, cuda or cuda:N; the accelerator if there is one",
        show_default=False,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="NAME",
        help="a data set or a path; by default the run's own data",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="where to write  [default: a folder in the run, or here]",
        show_default=False,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress on standard error")]
Json = Annotated[bool, typer.Option("--json", help="the result as JSON on standard output")]
Norm = Annotated[
    str | None, typer.Option("--norm", metavar="N", help="linf or l2; with --radius", show_default=False)
]
Radius = Annotated[
    str | None,
    typer.Option(
        "--radius",
        metavar="R",
        help="such as 8/255, pixel units; by default the stored threat",
        show_default=False,
    ),
]


def out_folder(out: Path | None, run: RunDirectory | None, name: str) -> Path:
    """``--out``, or by default the folder ``name`` of the run; without a run, of the working directory. It is made."""
    return writable_folder(out or (Path(name) if run is None else run.path / name))


def writable_folder(path: Path) -> Path:
    """``path``, made if it is not there.

    Raises:
        RunError: it is a file, or it cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path}: cannot be made a folder ({error.strerror}); choose another --out") from None
    if not os.access(path, os.W_OK):
        raise RunError(f"{path}: is not writable; choose another --out")
    return path


def asked_threat(norm: str | None, radius: str | None) -> Threat | None:
    """The threat model, linf if only a radius is given; ``None`` means the one stored with the classifier.

    Raises:
        ConfigError: a norm without a radius, or either is no norm or no radius.
    """
    if radius is None:
        if norm is not None:
            raise ConfigError(f"--norm {norm}: needs --radius too, such as --radius 8/255")
        return None
    from trilemma.threat import Threat

    return Threat(norm or "linf", radius)


def check_threat(asked: Threat | None, stored: object | None) -> None:
    """Refuses to attack without knowing how far.

    Raises:
        ConfigError: no threat model was asked for and none is stored.
    """
    if asked is None and stored is None:
        raise ConfigError(
            "no threat model is stored with this classifier; give one, such as --norm linf --radius 8/255"
        )


PUBLISHED = ("timm:", "robustbench:")


def find_source(source: str) -> RunDirectory | None:
    """The run folder that ``source`` is, or ``None`` for a file or a published network's name. Needs no torch.

    Raises:
        RunError: nothing is there, or the folder is not a run.
    """
    path = Path(source)
    if source.startswith(PUBLISHED) or path.is_file():
        return None
    if path.is_dir():
        return RunDirectory.open(path)
    around = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = nearest(path.name, around)
    raise RunError(
        f"{source}: no such run folder or classifier file.{hint} `trilemma train RECIPE` makes a run"
    )


def load_classifier(source: str, device: str | None) -> Classifier:
    """The classifier of ``source`` on the device asked for, in eval mode."""
    from trilemma.classifier.load import load

    chosen = choose_device(device)
    return load(source).to(chosen).eval()


def choose_device(name: str | None) -> torch.device:
    """The device called ``name``; by default the accelerator if there is one.

    Raises:
        ConfigError: no such device here.
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
        there = f"cuda:0 to cuda:{count - 1}" if count else "only the CPU"
        raise ConfigError(f"--device {name}: this machine has {there}; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: not supported; use cpu, cuda or cuda:N")
    return device


def images_for(clf: Classifier, run: RunDirectory | None, name: str | None) -> ImageSet:
    """The test images a classifier is judged on: ``name`` (a data set or a path), else the run's own data.

    A classifier file knows the name of its data only; a run knows their place and size too.

    Args:
        clf: its class names give the label order, its image size the size of other data.
        run: the run it comes from, or ``None``.
        name: what ``--data`` says.

    Raises:
        DataError: no data are known, or they are at fault.
    """
    from trilemma.config.registry import DATASETS
    from trilemma.data.image_set import source_name
    from trilemma.evaluation.evaluate import open_data

    own = None if run is None else run.config().data
    if own is not None and name in (None, own.name):
        return open_data(clf, own.name, own.root, own.size)
    if name is None:
        name = source_name(str(clf.about.get("data", "no data it names")))
        if name not in DATASETS:
            raise DataError(
                f"this classifier was trained on {name}; say with --data where they are (a name or a path)"
            )
    found = open_data(clf, name)
    if clf.image_shape is None or found.image_shape == clf.image_shape:
        return found
    return open_data(clf, name, size=clf.image_shape[1])


Results = list[dict[str, Any]]


def results(paths: Sequence[Path]) -> Results:
    """Per run: method, minutes of training, accuracy by protocol, and the figures of its samples."""
    from trilemma.runs.read import read_contents

    runs = [read_contents(path) for path in paths]
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


def print_results(found: Results) -> None:
    """Two tables: accuracy of every run, and its samples beside their starts."""
    print_table(
        [
            {
                "run": row["run"],
                "method": row["method"],
                "minutes": row["minutes"],
                **{protocol: share(value) for protocol, value in row["accuracy"].items()},
            }
            for row in found
        ]
    )
    print_table(
        [
            {
                "run": row["run"],
                "samples": record["name"],
                "named: start": share(record["start"]["named"]),
                "sample": share(record["sample"]["named"]),
                "distance: start": record["start"]["distance"],
                "sample ": record["sample"]["distance"],
                "real": record.get("real", {}).get("distance"),
            }
            for row in found
            for record in row["samples"]
        ]
    )


def measures(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The value, which way is better, and what was found beside it."""
    return [
        {
            "protocol": row["protocol"],
            "quantity": f"{row['quantity']}, {row['better']} is better",
            "value": row["value"],
            "95 % interval": None if row["lower"] is None else f"{row['lower']:.3f} to {row['upper']:.3f}",
            "also": ", ".join(f"{name} {value:.4g}" for name, value in row["also"].items()),
            "images": row["count"],
            "checkpoint": checkpoint_name(row["checkpoint"]),
            "data": f"{row['data']['name']} {row['data']['split']}",
            "threat": "-" if row["threat"] is None else f"{row['threat']['norm']} {row['threat']['radius']}",
            "seconds": row["seconds"],
        }
        for row in rows
    ]
