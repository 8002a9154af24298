"""Renders self-contained HTML files: pictures are data URIs, and a page makes no network request.

The only script of a page sorts its table; the page's content security policy allows it by digest, and no other script.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from trilemma.figures.labels import label_key
from trilemma.figures.style import DARK, LIGHT
from trilemma.files import write_text
from trilemma.pages.table import with_range
from trilemma.pages.words import (
    chance_words,
    duration,
    interval,
    not_above_chance,
    number,
    percent,
    threat_words,
)
from trilemma.runs.records import checkpoint_name


def data_uri(png: bytes) -> str:
    """Returns PNG bytes as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


@dataclass(frozen=True)
class Picture:
    """A figure of a page.

    Attributes:
        light, dark: data URIs of both variants.
        alt: alternative text.
        caption: one sentence on how to read the figure.
        width: largest width on the page in CSS pixels.
        key: pairs (text in the figure, full name) of names that the figure shortens or numbers.
    """

    light: str
    dark: str
    alt: str
    caption: str
    width: int = 520
    key: tuple[tuple[str, str], ...] = ()


def picture(
    images: tuple[bytes, bytes], alt: str, caption: str, width: int = 520, names: Sequence[str] = ()
) -> Picture:
    """Returns a :class:`Picture` of PNG bytes, light and dark; ``names`` are those of classes or runs in the figure."""
    return Picture(data_uri(images[0]), data_uri(images[1]), alt, caption, width, tuple(label_key(names)))


@dataclass(frozen=True)
class Script:
    """A script of a page, and the digest by which the page's content security policy allows it."""

    text: Markup
    digest: str


def read_script(name: str) -> Script:
    """Returns the script ``name`` of the template folder."""
    text = files("trilemma.pages").joinpath("templates", name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()).decode(
        "ascii"
    )
    return Script(Markup(text), f"sha256-{digest}")


def breakable(text: str) -> Markup:
    """Returns the escaped text with optional line breaks after colons, slashes and underscores."""
    escaped = str(escape(text))
    return Markup(re.sub("[:/_]", r"\g<0><wbr>", escaped))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("trilemma", "pages/templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "percent": percent, "interval": interval, "number": number, "duration": duration, "threat": threat_words,
        "breakable": breakable, "checkpoint": checkpoint_name, "chance": chance_words,
        "with_range": with_range,
    }  # fmt: skip
    environment.globals |= {"light": LIGHT, "dark": DARK}
    environment.tests |= {"not_above_chance": not_above_chance}
    return environment


def write_page(template: str, path: Path, **variables: Any) -> Path:
    """Renders a template to ``path``, atomically, and returns ``path``.

    Raises:
        NotStoredError: the file cannot be written.
    """
    write_text(path, _environment().get_template(template).render(**variables))
    return path
