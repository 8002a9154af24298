"""From facts to one self-contained HTML file: figures as data URIs, no request to any network.

Pages hold no script, but for the one that sorts a table; the page's policy names it by its digest, so no other can run.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from trilemma.errors import RunError
from trilemma.figures.style import DARK, LIGHT
from trilemma.files import write_text
from trilemma.report.words import duration, interval, number, percent, threat_words
from trilemma.runs.records import checkpoint_name


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
        write_text(path, html)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror or error}); choose another place for it"
        ) from None
    return path
