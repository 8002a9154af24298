"""Tables of results that show themselves: as text on one screen, as HTML in a notebook, as Markdown, CSV or data.

Cells may hold names from anywhere: in Markdown no cell is markup or HTML, in CSV no text is a formula.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from trilemma.errors import MissingExtraError
from trilemma.printing import visible_line

# Rows of a table that its text and its HTML show; the rest is counted.
SHOWN_ROWS = 20
# Characters of a cell that a text shows.
CELL_WIDTH = 40

Row = dict[str, Any]


def cell(value: object) -> str:
    """The text of a cell: four significant digits of a float, a dash for ``None``."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def text_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as aligned columns, with the keys of the first row as heading; at most :data:`SHOWN_ROWS` rows."""
    lines = [[_line(text)[:CELL_WIDTH] for text in line] for line in _cells(rows[:SHOWN_ROWS])]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        "  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return text + _rest(len(rows), "\n")


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """All rows as a Markdown table; empty without rows."""
    if not rows:
        return ""
    head, *body = ([markdown_cell(text) for text in line] for line in _cells(rows))
    lines = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _line(text: str) -> str:
    """The text in one line, without control characters and runs of spaces."""
    return " ".join(visible_line(text).split())


def markdown_cell(text: str) -> str:
    """The text in one line, with escapes for characters that Markdown or HTML would read as markup."""
    line = re.sub(r"[\\`*|~\[\]$]", r"\\\g<0>", escape(_line(text), quote=False))
    # Inside a word an underscore is no markup.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\_", line)


# First characters by which a spreadsheet takes a cell for a formula, also in full width.
_FORMULA = tuple(
    "=+-@\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}"
)
_NUMBER = re.compile(r"[-+](?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


def csv_cell(value: object) -> object:
    """A value for a CSV file: numbers and ``None`` are unchanged, texts are one line and never a formula.

    A text that begins with ``=``, ``+``, ``-`` or ``@`` gets an apostrophe before it, which spreadsheets read as "text"
    and other programs as a part of the name; a number such as ``-1.5`` gets none.
    """
    if not isinstance(value, str):
        return value
    line = _line(value)
    return f"'{line}" if line.startswith(_FORMULA) and not _NUMBER.fullmatch(line) else line


def csv_lines(lines: Iterable[Iterable[object]]) -> str:
    """Lines of values as CSV; every value passes :func:`csv_cell`."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([csv_cell(value) for value in line] for line in lines)
    return text.getvalue()


def csv_table(rows: Sequence[Mapping[str, object]]) -> str:
    """All rows as CSV, with the keys of the first row as heading."""
    return csv_lines([list(rows[0]), *(list(row.values()) for row in rows)])


def html_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as an HTML table with every text escaped; at most :data:`SHOWN_ROWS` rows."""
    if not rows:
        return ""
    head, *body = ([escape(part) for part in line] for line in _cells(rows[:SHOWN_ROWS]))
    lines = ["".join(f"<td>{part}</td>" for part in line) for line in body]
    heading = "".join(f"<th>{part}</th>" for part in head)
    content = "".join(f"<tr>{line}</tr>" for line in (heading, *lines))
    return f"<table>{content}</table>{_rest(len(rows), '')}"


def data_frame(rows: Iterable[Mapping[str, object]], index: Sequence[str] | None = None) -> Any:
    """A ``pandas.DataFrame`` with a row per mapping; nested values become columns such as ``data.name``.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise MissingExtraError(
            "to_pandas: pandas is not installed; pip install pandas, or use to_markdown()"
        ) from None
    frame = pandas.json_normalize(list(rows), max_level=1)
    if index is not None:
        frame.index = pandas.Index(index)
    return frame


def _cells(rows: Sequence[Mapping[str, object]]) -> list[list[str]]:
    """The heading and the cells of each row."""
    if not rows:
        return []
    keys = list(rows[0])
    return [keys, *([cell(row.get(key)) for key in keys] for row in rows)]


def _rest(count: int, before: str) -> str:
    return f"{before}... {count - SHOWN_ROWS} more rows" if count > SHOWN_ROWS else ""


class Records(list[Row]):
    """A list of rows with the same keys, such as one per image, that prints itself as a table."""

    def __repr__(self) -> str:
        return text_table(self) if self else "no rows"

    def _repr_html_(self) -> str:
        return html_table(self)

    def to_markdown(self) -> str:
        """All rows as a Markdown table."""
        return markdown_table(self)

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with one row each.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return data_frame(self)


class Rows(dict[str, Row]):
    """Result rows by name, as :func:`trilemma.evaluate` returns them: a dictionary that prints itself as a table.

    ``rows["clean"]["value"]`` is a number; the text, the HTML and the Markdown show the values that identify a row and
    its result, ``to_pandas`` has all of them.
    """

    def __repr__(self) -> str:
        return text_table(self.summary()) if self else "no rows"

    def _repr_html_(self) -> str:
        return html_table(self.summary())

    def summary(self) -> list[dict[str, str]]:
        """One row of texts each: protocol, value, 95 % interval, images, data and threat."""
        return [_summary(name, row) for name, row in self.items()]

    def to_markdown(self) -> str:
        """The :meth:`summary` as a Markdown table."""
        return markdown_table(self.summary())

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with one row each, indexed by name; nested values are columns such as ``data.name``.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return data_frame(self.values(), list(self))


def _summary(name: str, row: Mapping[str, Any]) -> dict[str, str]:
    share = row.get("quantity", "accuracy") == "accuracy"
    threat, data = row.get("threat"), row.get("data") or {}

    def number(value: float) -> str:
        return f"{100 * value:.1f} %" if share else f"{value:.4g}"

    lower, upper = row.get("lower"), row.get("upper")
    return {
        "protocol": name,
        "quantity": str(row.get("quantity", "accuracy")),
        "value": number(row["value"]),
        "95 % interval": "-" if lower is None or upper is None else f"{number(lower)} to {number(upper)}",
        "images": str(row.get("count", "-")),
        "data": f"{data.get('name', '')} {data.get('split', '')}".strip() or "-",
        "threat": "-" if threat is None else f"{threat['norm']} {threat['radius']}",
    }
