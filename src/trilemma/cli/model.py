"""The options that name a classifier, defined once for every command that reads one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from trilemma.classifier.source import ClassifierSource
from trilemma.cli.common import argument, option
from trilemma.errors import ConfigError, DataError
from trilemma.units import MOST_PIXELS, parse_fraction

SOURCE_HELP = (
    "run folder, classifier file, weights file, timm:NAME, robustbench:NAME, hub:NAME or MODULE:FUNCTION"
)
OPTIONS: dict[str, Any] = {
    "source": Annotated[str | None, argument("RUN_OR_FILE", SOURCE_HELP)],
    "model": Annotated[
        str | None,
        option("--model MODULE:FUNCTION", "FUNCTION() returns the network of the weights, or one with weights"),
    ],
    "network": Annotated[
        str | None,
        option("--network NAME", "architecture of a weights file, with options: NAME,key=value,..."),
    ],
    "mean": Annotated[
        str | None, option("--mean M,...", "mean per channel, if the network expects normalised images")
    ],
    "std": Annotated[str | None, option("--std S,...", "standard deviation per channel; requires --mean")],
    "size": Annotated[
        int | None, option("--size N", "resize images to N x N pixels for the network", min=1, max=MOST_PIXELS)
    ],
    "classes": Annotated[
        str | None,
        option("--classes K", "outputs in order: their number, NAME,NAME,..., or a file with one name per line"),
    ],
    "output": Annotated[
        str | None, option("--output KEY", "key or index of the logits in a dictionary or tuple")
    ],
    "checkpoint": Annotated[
        Literal["best", "last"],
        option("--checkpoint", "checkpoint of a run: best on held-out images, or last"),
    ],
}  # fmt: skip
# A new source option gets its option here, or the command line lacks it.
assert OPTIONS.keys() == {field.name for field in fields(ClassifierSource)}


ImagePaths = Annotated[
    list[Path] | None, argument("IMAGES...", "image files, and folders and archives of image files")
]


def split_images(
    classifier: ClassifierSource, images: list[Path] | None
) -> tuple[ClassifierSource, list[Path]]:
    """Returns the classifier and the images of a command line ``[RUN_OR_FILE] IMAGES...``; an image exists.

    ``--model`` may also be the ``RUN_OR_FILE``. With it, or with a function and no weights, the first path is an image.

    Raises:
        ConfigError: no images, or two classifiers.
        DataError: none of the images exists.
    """
    paths = list(images or [])
    if classifier.model is not None and ClassifierSource(str(classifier.model)).function is None:
        first = None if classifier.source is None else Path(classifier.source)
        if first is not None and _holds_classifier(first):
            raise ConfigError(
                f"{first} and --model {classifier.model}: both are a classifier; leave one of them out"
            )
        paths = paths if first is None else [first, *paths]
        classifier = replace(classifier, source=str(classifier.model), model=None)
    elif (
        classifier.model is not None
        and classifier.source is not None
        and _holds_images(Path(classifier.source))
    ):
        paths, classifier = [Path(classifier.source), *paths], replace(classifier, source=None)
    if not paths:
        raise ConfigError("no images given; add image files, folders or archives after the classifier")
    if not any(path.exists() for path in paths):
        raise DataError(f"{paths[0]}: no such image file")
    return classifier, paths


def _holds_classifier(path: Path) -> bool:
    """Whether it is a run, or has the name of a file of weights."""
    if path.is_dir():
        return (path / "config.yaml").is_file() or (path / "checkpoints").is_dir()
    return path.suffix.lower() in (".safetensors", ".pt", ".pth")


def _holds_images(path: Path) -> bool:
    """Whether it is an image file, or a folder or archive that is neither a run nor a checkpoint."""
    from trilemma.data.pictures import endings

    if path.is_dir():
        return not _holds_classifier(path)
    archive = path.name.lower().endswith((".zip", ".tgz", ".tar.gz"))
    return path.is_file() and (archive or path.suffix.lower() in endings())


def with_classifier(command: Callable[..., None]) -> Callable[..., None]:
    """Decorator: a command whose first parameter is a :class:`ClassifierSource` gets the options that describe it.

    An option that the command declares itself is the command's own, and not part of the description.
    """
    own = inspect.signature(command, eval_str=True).parameters
    _, *rest = own.values()
    defaults = {field.name: field.default for field in fields(ClassifierSource)}

    def run(**arguments: Any) -> None:
        described = {name: arguments.pop(name) for name in OPTIONS if name not in own}
        command(_described(described), **arguments)

    parameters = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=OPTIONS[name]
        )
        for name in OPTIONS
        if name not in own
    ]
    source, *options = parameters
    later = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in rest]
    run.__signature__ = inspect.Signature([source, *later, *options])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (source, *later, *options)}
    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    return run


def _described(texts: dict[str, Any]) -> ClassifierSource:
    """The description that the values of the options state."""
    output = texts["output"]
    numbers = {name: _parse_numbers(name, texts[name]) for name in ("mean", "std")}
    if output is not None and re.fullmatch("[0-9]{1,9}", output):
        output = int(output)
    return ClassifierSource(**{**texts, **numbers, "output": output})


def _parse_numbers(name: str, text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(parse_fraction(part)) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--{name} {text}: expects numbers separated by commas, such as 0.49,0.48,0.45"
        ) from None
