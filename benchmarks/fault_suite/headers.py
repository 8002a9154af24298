"""Part ``headers``: classifier files that are whole, with digests that are right, and hold what they must not."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from benchmarks.fault_suite import results
from benchmarks.fault_suite.case import Case, Ended, Judge
from benchmarks.fault_suite.damage import copy_of
from benchmarks.fault_suite.files import FINISHED, Sound, digit, remove, succeed

_BEST = "checkpoints/best/classifier.safetensors"
_FILE = "clf.safetensors"


@dataclass
class Content:
    """The content of a classifier file, to be changed."""

    metadata: dict[str, str]
    header: Any
    tensors: dict[str, torch.Tensor]
    raw_header: str | None = field(default=None)

    @classmethod
    def read(cls, file: Path) -> Content:
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            metadata = dict(opened.metadata())
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
        return cls(metadata, json.loads(metadata["header"]), tensors)

    def write(self, file: Path) -> None:
        """Writes the file with digests that fit the content, as somebody who wants to be believed does."""
        from safetensors.torch import save_file

        from trilemma.files import with_digests

        metadata = {**self.metadata, "header": self.raw_header or json.dumps(self.header)}
        file.unlink(missing_ok=True)
        save_file(self.tensors, file, with_digests(metadata, self.tensors))


Change = Callable[[Content], Any]


def _set(key: str, value: Any) -> Change:
    return lambda content: content.header.__setitem__(key, value)


def _drop(key: str) -> Change:
    return lambda content: content.header.pop(key)


def _whole(value: Any) -> Change:
    return lambda content: setattr(content, "header", value)


def _text(text: str) -> Change:
    return lambda content: setattr(content, "raw_header", text)


def _label(key: str, value: str | None) -> Change:
    def change(content: Content) -> None:
        content.metadata.pop(key)
        content.metadata |= {} if value is None else {key: value}

    return change


def _tensors(matching: str, changed: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def change(content: Content) -> None:
        for name, value in content.tensors.items():
            if matching in name and value.is_floating_point():
                content.tensors[name] = changed(value).contiguous()

    return change


def _first(changed: Callable[[torch.Tensor], torch.Tensor | None]) -> Change:
    """Changes the first weight only, or removes it."""

    def change(content: Content) -> None:
        name = next(name for name in sorted(content.tensors) if name.endswith(".weight"))
        value = changed(content.tensors.pop(name))
        content.tensors |= {} if value is None else {name: value.contiguous()}

    return change


def _filled(value: float) -> Change:
    def filled(weight: torch.Tensor) -> torch.Tensor:
        weight.view(-1)[0] = value
        return weight

    return _first(filled)


_NETWORK = {"name": "small-resnet", "width": 4, "depth": 8, "norm": "batch", "activation": "relu"}
_NAN, _INF = float("nan"), float("inf")
# In its header, values that no classifier has, by key.
_VALUES: dict[str, tuple[Any, ...]] = {
    "num_classes": ("ten", 10**9, 10**30, 0, -1, 10.5, None, 9, 11, True, [10], {"a": 1}),
    "class_names": ("abc", 10, ["a"], list("aabcdefghi"), [["a"]] * 10, [None] * 10, {"a": 1}, [""] * 10),
    "image_shape": (
        [1, 8], [1, 8, "8"], [0, 8, 8], [-1, 8, 8], [1, 10**9, 10**9], "1x8x8", [3, 8, 8], [1, 8.5, 8], 8, {},
        [1, 2, 2], [True, 8, 8],
    ),
    "mean": ("x", [], [_NAN], [_INF], [0.1, 0.2, 0.3], [[0.1]], [None], 0.5, {}, [1e308], ["0.1"], [True]),
    "std": ("x", [], [0.0], [-1.0], [_NAN], [_INF], [0.1, 0.2, 0.3], [None], {}, [1e-320], [1e308]),
    "threat": (
        {"evil": 1}, "linf", 0.2, [], {}, {"norm": "l7", "radius": "0.2"}, {"norm": "linf", "radius": "-1"},
        {"norm": "linf", "radius": "1e400"}, {"norm": "linf", "radius": "nan"}, {"norm": 2, "radius": "0.2"},
        {"norm": "linf", "radius": None}, {"norm": "linf", "radius": "0.2", "evil": 1}, {"norm": "linf"},
        {"norm": "linf", "radius": "1e-400"}, {"norm": "linf", "radius": ["0.2"]},
    ),
    "network": (
        "small-resnet", [], {}, 7, {"name": "nope"}, {"name": ["x"]}, {"name": None}, {"width": 4},
        {**_NETWORK, "width": 10**6}, {**_NETWORK, "width": -1}, {**_NETWORK, "width": "x"},
        {**_NETWORK, "width": 8}, {**_NETWORK, "depth": 10**7 + 8}, {**_NETWORK, "depth": 14},
        {**_NETWORK, "evil": 1}, {**_NETWORK, "norm": "evil"}, {"name": "os:getcwd"}, {"name": "preact-resnet"},
        {"name": "timm", "model": "resnet18"},
    ),
    "about": ("text", 7, ["x"], {"checkpoint": 7}, {"epoch": "x"}, {"data": {}}, {"method": ["x"]}, {"step": _NAN}),
    "output": (5, -1, "logits", [1], {}, True, 1.5),
    "weights": ("sha256:00", 7, ["x"], "evil"),
}  # fmt: skip

CHANGES: dict[str, Change] = {
    **{f"without {key}": _drop(key) for key in _VALUES},
    **{f"{key} = {json.dumps(value)}": _set(key, value) for key, values in _VALUES.items() for value in values},
    "the header is a list": _whole([1]), "the header is null": _whole(None), "the header is a text": _whole("evil"),
    "the header is empty": _whole({}), "the header is no JSON": _text("evil"),
    "num_classes twice": _text('{"num_classes": 10, "num_classes": 9}'),
    "the header is 3,000 lists deep": _text("[" * 3000 + "]" * 3000),
    "about is 100,000 lists deep": _text('{"about": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "num_classes of 100,000 digits": _text('{"num_classes": ' + "9" * 100_000 + "}"),
    "the format is another": _label("format", "evil"), "without a format": _label("format", None),
    "version 2": _label("version", "2"), "version 0": _label("version", "0"), "version x": _label("version", "x"),
    "version -1": _label("version", "-1"), "version 1.0": _label("version", "1.0"),
    "without a version": _label("version", None), "version of 100,000 digits": _label("version", "1" * 100_000),
    "weights in int8": _tensors("network.", lambda value: value.to(torch.int8)),
    "weights in int64": _tensors("network.", lambda value: value.to(torch.int64)),
    "weights of truth values": _tensors("network.", lambda value: value > 0),
    "complex weights": _tensors("network.", lambda value: value.to(torch.complex64)),
    "weights that are NaN": _tensors("network.", lambda value: value * _NAN),
    "one weight is NaN": _filled(_NAN), "one weight is infinite": _filled(_INF),
    "one weight is -infinite": _filled(-_INF), "a weight is missing": _first(lambda value: None),
    "a weight more": lambda content: content.tensors.__setitem__("network.evil", torch.zeros(3)),
    "a weight of another shape": _first(lambda value: value.flatten()),
    "a weight without elements": _first(lambda value: value.new_zeros(0)),
    "a weight is one number": _first(lambda value: value.new_zeros(())),
    "one weight in int8": _first(lambda value: value.to(torch.int8)),
    "no tensors": lambda content: content.tensors.clear(),
}  # fmt: skip

# Of the statistics of the training images, which generation and scores read.
STATISTICS: dict[str, Change] = {
    "statistics that are NaN": _tensors("statistics.", lambda value: value * _NAN),
    "statistics in int8": _tensors("statistics.", lambda value: value.to(torch.int8)),
    "statistics in one row": _tensors("statistics.", lambda value: value.flatten()),
    "statistics without elements": _tensors("statistics.", lambda value: value.flatten()[:0]),
    "statistics of fewer classes": _tensors("statistics.", lambda value: value[:3] if value.ndim else value),
    "statistics with an axis more": _tensors("statistics.", lambda value: value[None]),
}


def _container(text: str | bytes, length: int | None = None) -> Callable[[Path], None]:
    """Writes a file with an arbitrary JSON header of the safetensors format."""

    def write(file: Path) -> None:
        content = text.encode() if isinstance(text, str) else text
        file.write_bytes(struct.pack("<Q", len(content) if length is None else length) + content + bytes(64))

    return write


def _entry(**settings: Any) -> str:
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **settings}
    metadata = {"format": "trilemma-classifier", "version": "1", "header": "{}"}
    return json.dumps({"__metadata__": metadata, "network.x": entry})


CONTAINERS = {
    "a length of 2^63": _container("{}", 1 << 63),
    "a length of 10^9": _container("{}", 10**9),
    "a length of 0": _container("", 0),
    "a header that is a list": _container("[]"),
    "a header of Latin-1": _container(b'{"\xe9": 1}'),
    "metadata that are a list": _container('{"__metadata__": ["format"]}'),
    "metadata of numbers": _container('{"__metadata__": {"format": 1, "version": 1}}'),
    "a header 100,000 lists deep": _container("[" * 100_000 + "]" * 100_000),
    "negative offsets": _container(_entry(data_offsets=[-16, 0])),
    "offsets beyond the end": _container(_entry(data_offsets=[0, 10**12])),
    "offsets that go back": _container(_entry(data_offsets=[16, 0])),
    "an unknown type": _container(_entry(dtype="EVIL")),
    "a shape of 10^18": _container(_entry(shape=[10**9, 10**9])),
    "a negative shape": _container(_entry(shape=[-4])),
    "a shape of text": _container(_entry(shape="4")),
    "an entry that is a list": _container('{"__metadata__": {"format": "trilemma-classifier"}, "x": [1]}'),
}

_PREDICT = ("predict", _FILE, "digit.png", "--json")
_EVALUATE = ("evaluate", _FILE, "--data", "digits", "--images", "20", "--protocol", "clean", "--json", "-q")
_GENERATE = ("generate", _FILE, "--data", "digits", "--per-class", "1", "--steps", "2", "--json", "-q")
_SCORE = ("score", _FILE, "digit.png", "--json")
_TRAIN = (
    "train", "digits/standard", f"training.start={_FILE}", "network.width=4", "training.epochs=1",
    "training.held_out_images=20", "--out", "new", "--json", "-q",
)  # fmt: skip
_LINT = ("lint", _FILE, "--data", "digits", "--json", "-q")
_EXPORT = ("export", _FILE, "--data", "digits", "--state-dict", "--out", "weights.pt", "-q")


def _predicted(ended: Ended) -> Any:
    return [
        (row["class"], round(row["confidence"], 4), round(row["marginal energy"], 3))
        for row in json.loads(ended.stdout)
    ]


def _values(ended: Ended) -> Any:
    return {name: (row["value"], row["count"]) for name, row in json.loads(ended.stdout).items()}


def _nearest(ended: Ended) -> Any:
    return round(json.loads(ended.stdout)["figures"]["sample"]["distance"], 4)


def _scores(ended: Ended) -> Any:
    return [(row["class"], row.get("percentile")) for row in json.loads(ended.stdout)]


def _trained(ended: Ended) -> Any:
    return results.tensors_digest(ended.folder / "new" / "checkpoints" / "last" / "classifier.safetensors")


class _Files:
    """The sound classifier file, and the results for it."""

    def __init__(self, folder: Path) -> None:
        self.sound = Sound(folder)
        self.best = self.sound.folder / FINISHED / _BEST
        self._results: dict[str, Any] = {}

    def prepare(self, folder: Path, write: Callable[[Path], Any]) -> None:
        copy_of(self.sound.folder / FINISHED, folder / "run")
        digit(folder / "digit.png")
        write(folder / _FILE)
        (folder / "run" / _BEST).write_bytes((folder / _FILE).read_bytes())

    def same(self, name: str, action: tuple[str, ...], read: Callable[[Ended], Any]) -> Judge:
        """The judge that compares with the result for the sound file."""

        def judge(ended: Ended) -> str:
            if name not in self._results:
                place = self.sound.folder / "sound-file"
                place.mkdir()
                self.prepare(place, lambda file: file.write_bytes(self.best.read_bytes()))
                self._results[name] = read(succeed(action, place))
                remove(place)
            return results.same_as(self._results[name], read)(ended)

        return judge


_COMMANDS: dict[str, tuple[tuple[str, ...], Callable[[Ended], Any]]] = {
    "predict": (_PREDICT, _predicted),
    "evaluate": (_EVALUATE, _values),
    "generate": (_GENERATE, _nearest),
    "score": (_SCORE, _scores),
    "train from it": (_TRAIN, _trained),
    "lint": (_LINT, lambda ended: json.loads(ended.stdout)["findings"]),
    "export": (_EXPORT, results.of_weights("weights.pt")),
    "report": (("report", "run"), lambda ended: None),
    "compare": (("compare", "run", "--format", "json"), lambda ended: None),
}
# Beside predict and evaluate: the commands that read a part of the header.
_READ_BY = {
    "num_classes": ("lint", "train from it"), "class_names": ("report",), "image_shape": ("export",),
    "mean": ("train from it",), "std": ("export",), "threat": ("lint", "report"), "network": ("train from it",),
    "about": ("report", "compare"), "output": ("export",), "weights": ("report", "compare"),
    "version": ("report", "compare"), "header": ("report", "compare"), "weight": ("train from it", "lint", "score"),
}  # fmt: skip


def cases(folder: Path, short: bool) -> Iterator[Case]:
    """The cases; of the short form every 40th."""
    every = list(_all_cases(_Files(folder)))
    yield from every[::40] if short else every


def _all_cases(files: _Files) -> Iterator[Case]:
    for title, change in CHANGES.items():
        readers = next((found for part, found in _READ_BY.items() if part in title), ())
        for name in ("predict", "evaluate", *readers):
            yield _case(files, title, change, name)
    for title, change in STATISTICS.items():
        for name in ("generate", "score"):
            yield _case(files, title, change, name)
    for title, write in CONTAINERS.items():
        for name in ("predict", "report"):
            yield _written(files, title, write, name)


def _case(files: _Files, title: str, change: Change, name: str) -> Case:
    def write(file: Path) -> None:
        content = Content.read(files.best)
        change(content)
        content.write(file)

    return _written(files, title, write, name)


def _written(files: _Files, title: str, write: Callable[[Path], None], name: str) -> Case:
    action, read = _COMMANDS[name]
    # Training with weights that are no numbers fails, and says so.
    codes = (2, 3) if action == _TRAIN else (2,)
    may_leave = r"(^|/)\.lock$|^weights" + ("|^new/" if action == _TRAIN else "")
    return Case(
        f"{title[:80]}: {name}", lambda folder: files.prepare(folder, write), action,
        files.same(name, action, read), codes, may_leave=may_leave,
    )  # fmt: skip
