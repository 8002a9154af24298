"""From facts to one self-contained HTML file: figures as data URIs, no request to any network.

Pages hold no script, but for the one that sorts a table; the page's policy names it by its digest, so no other can run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from trilemma.errors import RunError
from trilemma.evaluation.records import checkpoint_name
from trilemma.report.style import DARK, LIGHT
from trilemma.training.run_directory import write_atomically


def data_uri(png: bytes) -> str:
    """PNG bytes as the address of an image."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


@dataclass(frozen=True)
class Picture:
    """A figure of a page: both variants, what it shows, and one sentence that says how to read it.

    Attributes:
        width: largest width on the page in CSS pixels.
    """

    light: str
    dark: str
    alt: str
    caption: str
    width: int = 520


def picture(images: tuple[bytes, bytes], alt: str, caption: str, width: int = 520) -> Picture:
    """A :class:`Picture` from its PNG bytes, light and dark."""
    return Picture(data_uri(images[0]), data_uri(images[1]), alt, caption, width)


DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def percent(value: float | None) -> str:
    """A share of 0.8125 as ``81.2 %``; a dash for ``None``."""
    return DASH if value is None else f"{100 * value:.1f} %"


def interval(row: Mapping[str, float]) -> str:
    """``77.9 to 84.2`` (per cent) from ``lower`` and ``upper``."""
    return f"{100 * row['lower']:.1f} to {100 * row['upper']:.1f}"


def number(value: float | None, digits: int = 2) -> str:
    """A number with fixed digits, so that a column is aligned; a dash for ``None``."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def duration(minutes: float | None) -> str:
    """``45 s``, ``3.2 min`` or ``2.5 h``."""
    if minutes is None:
        return DASH
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def threat_words(threat: Mapping[str, Any] | None) -> str:
    """``L∞, radius 8/255``; empty for ``None``."""
    if threat is None:
        return ""
    return f"{({'linf': 'L∞', 'l2': 'L2'}).get(threat['norm'], threat['norm'])}, radius {threat['radius']}"


@dataclass(frozen=True)
class Script:
    """A script of this room, and the digest by which a page's policy allows it."""

    text: Markup
    digest: str


def read_script(name: str) -> Script:
    """The script ``name`` of the templates' folder."""
    text = files("trilemma.report").joinpath("templates", name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return Script(Markup(text), f"sha256-{digest}")


def breakable(text: str) -> Markup:
    """A long name that may continue on the next line after a colon or an underscore."""
    escaped = str(escape(text))
    return Markup(escaped.replace(":", ":<wbr>").replace("_", "_<wbr>"))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("trilemma", "report/templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "percent": percent, "interval": interval, "number": number, "duration": duration, "threat": threat_words,
        "breakable": breakable, "checkpoint": checkpoint_name,
    }  # fmt: skip
    environment.globals |= {"light": LIGHT, "dark": DARK}
    return environment


def write_page(template: str, path: Path, **facts: Any) -> Path:
    """Renders a template of this room to ``path``, atomically.

    Raises:
        RunError: the folder cannot be written.
    """
    html = _environment().get_template(template).render(**facts)
    try:
        write_atomically(path, html)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror or error}); choose another place for it"
        ) from None
    return path
