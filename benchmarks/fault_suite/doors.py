"""The doors of the library: the functions that read what others wrote, and sound inputs for them."""

from __future__ import annotations

import functools
import io
import json
import math
import re
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.fault_suite import seals
from benchmarks.fault_suite.files import SAMPLES

from trilemma.pages.compare import Format

BEST = "checkpoints/best/classifier.safetensors"
# The folder of the sound run in the folder of a case, and the file of its classifier.
RUN, CLASSIFIER = Path("run"), Path("clf.safetensors")
# Tokens of a sound input, of which changed ones are made.
_WORD = re.compile(rb"[A-Za-z_][A-Za-z0-9_-]{2,30}")
_MOST_WORDS = 300
# Of an image that a classifier is given.
_MOST_PIXELS = 1 << 16
_SHORT = b"""data: {name: digits}
network: {name: small-resnet}
method: {name: pgd-at}
threat: {norm: linf, radius: 1/5}
"""
_FORMS: tuple[Format, ...] = ("markdown", "csv", "latex", "json")


@dataclass(frozen=True)
class Door:
    """A reader.

    Attributes:
        read: reads an input; a mistake in it raises a ``UserError``.
        sound: sound inputs, made in the folder of a case.
        seal: makes the checksums of a changed input right.
    """

    read: Callable[[bytes], object]
    sound: Callable[[], list[bytes]]
    seal: Callable[[bytes], bytes] | None = None

    def sealed(self) -> Door:
        """The door that is given changed inputs with right checksums."""
        seal = self.seal or (lambda content: content)
        return Door(lambda content: self.read(seal(content)), self.sound)


def words(samples: list[bytes]) -> list[bytes]:
    """The words of sound inputs, each once."""
    found = dict.fromkeys(word for sample in samples for word in _WORD.findall(sample))
    return list(found)[:_MOST_WORDS]


def _recipe(content: bytes) -> None:
    from trilemma.config.recipe import load_config

    Path("x.yaml").write_bytes(content)
    load_config("x.yaml")


def _recipes() -> list[bytes]:
    from trilemma.config.yaml_text import parse_yaml

    text = (RUN / "config.yaml").read_bytes()
    # JSON is YAML too.
    return [text, _SHORT, json.dumps(parse_yaml(text.decode(), "config.yaml")).encode()]


def _override(content: bytes) -> None:
    from trilemma.config.recipe import load_config

    load_config("digits/pgd-at", content.decode("utf-8", "surrogateescape").split("\n"))


def _overrides() -> list[bytes]:
    return [b"training.lr=0.1\nthreat.radius=8/255\nattack.steps=3", b"method={name: trades, beta: 6}",
            b"monitors.remedies.divergence=[rollback, scale-rate]\ndata.name=digits"]  # fmt: skip


def _images(name: str) -> Callable[[bytes], None]:
    def read(content: bytes) -> None:
        from trilemma.data.sources import load_images

        Path(name).write_bytes(content)
        load_images(name)

    return read


def _picture(mode: str, form: str, **options: Any) -> bytes:
    from PIL import Image

    target = io.BytesIO()
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(values).convert(mode).save(target, form, **options)
    return target.getvalue()


def _pictures() -> list[bytes]:
    palette = _picture("P", "png", transparency=3)
    return [_picture("L", "png"), _picture("RGBA", "png"), palette, _picture("I;16", "png"), _picture("1", "png"),
            _picture("RGB", "jpeg"), _picture("P", "gif"), _picture("RGB", "bmp"), _picture("RGB", "webp"),
            _picture("RGB", "tiff"), _picture("L", "ppm")]  # fmt: skip


def _members() -> dict[str, bytes]:
    return {f"{'ab'[number % 2]}/{number}.png": _picture("L", "png") for number in range(4)}


def _zips() -> list[bytes]:
    archives = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", method) as archive:
            for name, content in _members().items():
                archive.writestr(name, content)
        archives.append(target.getvalue())
    return archives


def _tars() -> list[bytes]:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in _members().items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return [target.getvalue()]


def _npz() -> list[bytes]:
    files = []
    for save in (np.savez, np.savez_compressed):
        target = io.BytesIO()
        save(target, images=np.zeros((6, 8, 8), np.uint8), labels=np.arange(6) % 2)
        files.append(target.getvalue())
    return files


def _image(content: bytes) -> None:
    from trilemma.evaluation.predict import predict

    Path("x.png").write_bytes(content)
    predict(_loaded(), [Path("x.png")])


@functools.cache
def _loaded() -> Any:
    from trilemma.classifier.load import load

    return load(str(CLASSIFIER))


def _classifier(content: bytes) -> None:
    import torch

    from trilemma.classifier.classifier import Classifier
    from trilemma.evaluation.predict import predict

    Path("x.safetensors").write_bytes(content)
    clf = Classifier.load("x.safetensors")
    if clf.image_shape is not None and math.prod(clf.image_shape) < _MOST_PIXELS:
        predict(clf, torch.zeros(1, *clf.image_shape))


def _weights(content: bytes) -> None:
    from trilemma.classifier.foreign_weights import read_weights

    Path("x.pt").write_bytes(content)
    read_weights("x.pt")


def _state_dicts() -> list[bytes]:
    import torch

    target = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, "epoch": 3}, target)
    return [target.getvalue()]


def _compared(name: str) -> Callable[[bytes], None]:
    """Reads a run one of whose records is replaced, as ``compare`` does."""

    def read(content: bytes) -> None:
        from trilemma.pages.compare import as_text, compare

        (RUN / name).write_bytes(content)
        table = compare([RUN])
        for form in _FORMS:
            as_text(table, form)

    return read


def _reported(name: str) -> Callable[[bytes], None]:
    """Reads a run one of whose records is replaced, as ``report`` does; its figures are made, and not drawn."""

    def read(content: bytes) -> None:
        from matplotlib.figure import Figure

        from trilemma.pages.html import write_report

        (RUN / name).write_bytes(content)
        picture = _picture("L", "png")
        setattr(Figure, "savefig", lambda figure, target, **_: target.write(picture))  # noqa: B010
        write_report(RUN)

    return read


def _of_run(name: str) -> Callable[[], list[bytes]]:
    """A record of the run, whose configuration becomes a short one: most of the time would go there."""

    def sound() -> list[bytes]:
        (RUN / "config.yaml").write_bytes(_SHORT)
        return [(RUN / name).read_bytes()]

    return sound


def _log(content: bytes) -> None:
    from trilemma.monitors.log import read_log

    Path("x.csv").write_bytes(content)
    read_log(Path("x.csv"))


_ROW, _DIAGNOSIS = "evaluation/pgd-20.json", "figures/energies.json"
_SAMPLES = f"samples/{SAMPLES}.json"
_READERS = {
    "recipe": Door(_recipe, _recipes),
    "overrides": Door(_override, _overrides),
    "archive": Door(_images("x.zip"), _zips, seals.sealed_zip),
    "tar": Door(_images("x.tar"), _tars),
    "image": Door(_image, _pictures, seals.sealed_image),
    "classifier file": Door(_classifier, lambda: [CLASSIFIER.read_bytes()]),
    "weights": Door(_weights, _state_dicts, seals.sealed_zip),
    "npz": Door(_images("x.npz"), _npz, seals.sealed_zip),
    "row": Door(_compared(_ROW), _of_run(_ROW), seals.sealed_object),
    "status": Door(_compared("status.json"), _of_run("status.json"), seals.sealed_object),
    "metrics": Door(_reported("metrics.jsonl"), _of_run("metrics.jsonl"), seals.sealed_objects),
    "diagnosis": Door(_reported(_DIAGNOSIS), _of_run(_DIAGNOSIS), seals.sealed_object),
    "samples": Door(_reported(_SAMPLES), _of_run(_SAMPLES), seals.sealed_object),
    "log": Door(_log, lambda: [b"epoch,clean,pgd\n1,0.9,0.5\n2,0.91,0.45\n"]),
}
DOORS: dict[str, Door] = {
    **_READERS,
    **{f"{name}, sealed": door.sealed() for name, door in _READERS.items() if door.seal is not None},
    "classifier file, sealed": Door(
        lambda content: _classifier(seals.with_header(content, CLASSIFIER)),
        lambda: seals.unpacked_headers(CLASSIFIER),
    ),
}
