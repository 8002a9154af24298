"""Part ``terminal``: escape sequences, newlines, formulas and scripts in names; on terminals, in tables and pages."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.fault_suite.case import Case, Ended
from benchmarks.fault_suite.damage import copy_of
from benchmarks.fault_suite.files import FINISHED, Sound, digit
from benchmarks.fault_suite.headers import Content

_MARK = "INJECTED"
# Sets the title of a window; begins a line of its own; clears the screen in 8 bits, and goes back over the line.
SEQUENCES = {"a title": f"a\x1b]0;{_MARK}\x07b", "a newline": f"a\n{_MARK} b", "a C1 sequence": "a\x9b2J\rb"}
# A formula, a script, a link and a cell, for tables and pages.
TEXTS = {
    "a formula": "=HYPERLINK(1)", "a plus": "+1+cmd|x", "an at": "@SUM(1)", "a minus": "-1+cmd|x",
    "a script": "<script>evil()</script>", "an image": "<img src=x onerror=evil()>",
    "quotes": "\"'><svg onload=evil()>", "a link": "[x](javascript:evil())", "a table cell": "a|b`c`",
    "a command": "\\input{evil}$x$%",
}  # fmt: skip


def on_one_line(ended: Ended) -> str:
    """The judge of output with a sequence in it: nothing of it begins a line."""
    lines = (ended.stdout + ended.stderr).splitlines()
    return "a line of its own" if any(line.startswith(_MARK) for line in lines) else ""


class _Page(html.parser.HTMLParser):
    """Collects what could run or load."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[str] = []
        self.policy = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.policy |= tag == "meta" and ("http-equiv", "Content-Security-Policy") in attributes
        for name, value in attributes:
            value = (value or "").strip().lower()
            if (
                name.startswith("on")
                or value.startswith("javascript:")
                or (name == "src" and value.startswith(("http", "x")))
            ):
                self.wrong.append(f"<{tag} {name}={value[:40]}>")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script" and "evil()" in data and "</script" not in data and len(data) < 40:
            self.wrong.append(f"<script>{data}")


def safe_page(name: str) -> Callable[[Ended], str]:
    """The judge of an HTML page: no text runs or loads, and there is a content security policy."""

    def judge(ended: Ended) -> str:
        page = _Page()
        page.feed((ended.folder / name).read_text(encoding="utf-8"))
        return page.wrong[0] if page.wrong else "" if page.policy else "no content security policy"

    return judge


def safe_csv(ended: Ended) -> str:
    """The judge of a CSV table: no cell is a formula."""
    for row in csv.reader(io.StringIO(ended.stdout)):
        for cell in row:
            if re.match(r"[=+\-@\t\r]", cell) and not re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", cell):
                return f"the cell {cell[:40]!r}"
    return ""


def safe_markdown(ended: Ended) -> str:
    """The judge of a Markdown table: no HTML, no link that runs, and as many cells in every line."""
    text = re.sub(r"\\.", "", re.sub(r"`[^`\n]*`", "", ended.stdout))
    raw = re.search(r"<(script|img|svg)\b|\]\(javascript:", text)
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    return (
        f"{raw[0]!r} is not escaped" if raw else f"lines of {sorted(widths)} bars" if len(widths) > 1 else ""
    )


def safe_latex(ended: Ended) -> str:
    """The judge of a LaTeX table: no command of a name."""
    # Comments at the head of the table are not run.
    lines = [line for line in ended.stdout.splitlines() if not line.startswith("%")]
    return "\\input is not escaped" if any("\\input{" in line for line in lines) else ""


def cases(folder: Path, short: bool) -> Iterator[Case]:
    """The cases; of the short form every 25th."""
    every = [*_on_terminals(Sound(folder)), *_in_tables(Sound(folder))]
    yield from every[::25] if short else every


def _in_header(key: str, change: Callable[[Any, str], Any]) -> Callable[[Path, str], None]:
    """Writes a text into the header of the best classifier."""

    def write(folder: Path, text: str) -> None:
        for name in ("best", "last"):
            file = folder / "run" / "checkpoints" / name / "classifier.safetensors"
            content = Content.read(file)
            content.header[key] = change(content.header[key], text)
            content.write(file)

    return write


def _in_json(name: str, change: Callable[[Any, str], Any]) -> Callable[[Path, str], None]:
    """Writes a text into a JSON file of the run; its digest is removed, as in files of earlier versions."""

    def write(folder: Path, text: str) -> None:
        file = folder / "run" / name
        content = json.loads(file.read_text())
        change(content, text)
        content.pop("digest", None)
        file.write_text(json.dumps(content))

    return write


def _in_lines(name: str, record: Callable[[str], dict[str, Any]]) -> Callable[[Path, str], None]:
    def write(folder: Path, text: str) -> None:
        with (folder / "run" / name).open("a") as file:
            file.write(json.dumps({"step": 5, "epoch": 1.0, "minutes": 0.1, **record(text)}) + "\n")

    return write


def _in_config(folder: Path, text: str) -> None:
    file = folder / "run" / "config.yaml"
    file.write_text(file.read_text() + json.dumps(text) + ": 1\n")


def _image_folder(folder: Path, text: str) -> None:
    """A class folder and an image of that name."""
    for name in ("plain", text):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(3):
            shutil.copyfile(folder / "digit.png", folder / "photos" / name / f"{number}{name}.png")


def _not_an_image(folder: Path, text: str) -> None:
    _image_folder(folder, "b")
    (folder / "photos" / f"{text}.png").write_bytes(b"no image")


def _zip(folder: Path, text: str) -> None:
    import zipfile

    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        archive.write(folder / "digit.png", f"plain/{text}.png")
        archive.writestr(f"{text}/bad.png", b"no image")


def _log(folder: Path, text: str) -> None:
    (folder / "log.csv").write_text(f'epoch,pgd,"{text}"\n1,0.5,"{text}"\nx{text},0.5,1\n')


def _recipe_key(folder: Path, text: str) -> None:
    (folder / "new.yaml").write_text(json.dumps({"training": {text: 1}}))


def _recipe_value(folder: Path, text: str) -> None:
    (folder / "new.yaml").write_text(json.dumps({"training": {"epochs": text}, "data": {"name": text}}))


def _recipe_broken(folder: Path, text: str) -> None:
    (folder / "new.yaml").write_text(f"training: {{epochs: {text}\n")


def _nothing(folder: Path, text: str) -> None:
    pass


def _renamed(folder: Path, text: str) -> None:
    (folder / "run").rename(folder / text.replace("/", ""))


def _npz_key(folder: Path, text: str) -> None:
    import numpy as np

    arrays: dict[str, Any] = {text.replace("/", ""): np.zeros(3)}
    np.savez(folder / "data.npz", **arrays)


Places = dict[str, tuple[Callable[[Path, str], None], tuple[tuple[str, ...], ...]]]
_READ = (("report", "run"), ("compare", "run", "--format", "markdown"))
# TEXT in a command is the text, RUN the run folder of that name.
PLACES: Places = {
    "the names of classes": (
        _in_header("class_names", lambda names, text: [text, *names[1:]]),
        (("predict", "run", "digit.png"), ("evaluate", "run", "--images", "10", "-q"), ("report", "run"),
         ("generate", "run", "--per-class", "1", "--steps", "1"), ("lint", "run"),
         ("counterfactual", "run", "digit.png", "--target", "nope", "--budget", "1")),
    ),
    "the origin of a classifier": (
        _in_header("about", lambda about, text: {**about, "recipe": text, "data": text, "checkpoint": text}),
        (*_READ, ("evaluate", "run", "--images", "10", "-q"), ("predict", "run", "digit.png")),
    ),
    "the network of a classifier": (
        _in_header("network", lambda network, text: {"name": text}), (("predict", "run", "digit.png"),),
    ),
    "a key of the network": (
        _in_header("network", lambda network, text: {**network, text: 1}), (("predict", "run", "digit.png"),),
    ),
    "the threat of a classifier": (
        _in_header("threat", lambda threat, text: {"norm": text, "radius": text}), (("lint", "run"),),
    ),
    "a row": (
        _in_json("evaluation/clean.json", lambda row, text: row.update(protocol=text)), _READ,
    ),
    "the data of a row": (
        _in_json("evaluation/clean.json", lambda row, text: row["data"].update(name=text, images=text)), _READ,
    ),
    "a status": (_in_json("status.json", lambda status, text: status.update(status=text)), _READ),
    "the environment": (
        _in_json("environment.json", lambda content, text: content.update(command=text, recipe=text)),
        (*_READ, ("train", "run", "--resume")),
    ),
    "an event": (_in_lines("events.jsonl", lambda text: {"kind": "alarm", "name": text, "message": text}), _READ),
    "a metric": (_in_lines("metrics.jsonl", lambda text: {"kind": text, text: 1.0}), (*_READ, ("monitor", "run"))),
    "a key of the configuration": (_in_config, (*_READ, ("predict", "run", "digit.png"))),
    "a folder of images": (
        _image_folder,
        (("evaluate", "run", "--data", "photos", "--protocol", "clean"), ("predict", "run", "photos"),
         ("score", "run", "photos"), ("score", "run", "photos", "--format", "csv"), ("init", "photos"),
         ("lint", "run", "--data", "photos")),
    ),
    "a file that is no image": (
        _not_an_image,
        (("predict", "run", "photos"), ("evaluate", "run", "--data", "photos", "--protocol", "clean"),
         ("init", "photos")),
    ),
    "a member of a zip": (_zip, (("predict", "run", "photos.zip"), ("evaluate", "run", "--data", "photos.zip"))),
    "an array": (_npz_key, (("evaluate", "run", "--data", "data.npz"),)),
    "a log": (_log, (("monitor", "log.csv"),)),
    "a key of a recipe": (_recipe_key, (("validate", "new.yaml"), ("train", "new.yaml"))),
    "a value of a recipe": (_recipe_value, (("validate", "new.yaml"),)),
    "a recipe that is no YAML": (_recipe_broken, (("validate", "new.yaml"),)),
    "the name of a run": (_renamed, (("report", "RUN"), ("compare", "RUN"), ("predict", "RUN", "digit.png"),
                                     ("evaluate", "RUN", "--images", "10"), ("train", "RUN", "--resume"))),
    "an argument": (
        _nothing,
        (("train", "TEXT"), ("train", "digits/pgd-at", "TEXT=1"), ("train", "digits/pgd-at", "training.epochs=TEXT"),
         ("train", "digits/pgd-at", "data.name=TEXT"), ("evaluate", "TEXT"), ("evaluate", "run", "--protocol", "TEXT"),
         ("evaluate", "run", "--data", "TEXT"), ("evaluate", "run", "--radius", "TEXT"), ("TEXT",),
         ("evaluate", "run", "--TEXT"), ("predict", "run", "TEXT"), ("predict", "TEXT:f", "digit.png"),
         ("generate", "run", "--start", "TEXT"), ("list", "TEXT"), ("monitor", "TEXT"), ("compare", "TEXT"),
         ("predict", "run", "digit.png", "--device", "TEXT"), ("predict", "run", "digit.png", "--network", "TEXT")),
    ),
}  # fmt: skip


def _on_terminals(sound: Sound) -> Iterator[Case]:
    for place, (write, commands) in PLACES.items():
        for title, text in SEQUENCES.items():
            for words in commands:
                yield Case(
                    f"{title} in {place}: {' '.join(words)}",
                    _prepare(sound, write, text),
                    tuple(word.replace("TEXT", text).replace("RUN", text) for word in words),
                    on_one_line,
                    may_leave=r".",
                )


def _prepare(sound: Sound, write: Callable[[Path, str], None], text: str) -> Callable[[Path], None]:
    def prepare(target: Path) -> None:
        copy_of(sound.folder / FINISHED, target / "run")
        digit(target / "digit.png")
        write(target, text)

    return prepare


_FORMATS: dict[str, tuple[tuple[str, ...], Callable[[Ended], str]]] = {
    "CSV": (("compare", "RUN", "--format", "csv"), safe_csv),
    "Markdown": (("compare", "RUN", "--format", "markdown"), safe_markdown),
    "LaTeX": (("compare", "RUN", "--format", "latex"), safe_latex),
    "the page of a comparison": (("compare", "RUN", "--out", "x.html"), safe_page("x.html")),
}
_IN_TABLES = (
    "the names of classes", "the origin of a classifier", "the data of a row", "a status", "the environment",
    "an event", "a metric",
)  # fmt: skip


def _everywhere(folder: Path, text: str) -> None:
    """Writes a text into every file that a page is made of."""
    for place in _IN_TABLES:
        PLACES[place][0](folder, text)


def _in_tables(sound: Sound) -> Iterator[Case]:
    for title, text in TEXTS.items():
        for place, write in (("the name of a run", _renamed), ("a run", _everywhere)):
            run = text.replace("/", "") if write is _renamed else "run"
            # A name that begins with a hyphen would be an option.
            run = f"./{run}" if run.startswith("-") else run
            formats = {**_FORMATS, "the report": (("report", "RUN"), safe_page(f"{run}/report.html"))}
            for name, (words, judge) in formats.items():
                yield Case(
                    f"{title} in {place}: {name}",
                    _prepare(sound, write, text),
                    tuple(word.replace("RUN", run) for word in words),
                    judge,
                    may_leave=r".",
                )
    for words in (("score", "run", "photos", "--format", "csv"),):
        for title, text in TEXTS.items():
            text = text.replace("/", "")
            yield Case(
                f"{title} in the name of an image: CSV", _prepare(sound, _image_folder, text), words, safe_csv
            )
