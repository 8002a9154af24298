"""``trilemma export``: a finished classifier as PyTorch weights or as ONNX, for use without trilemma."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from trilemma.classifier.source import ClassifierSource
from trilemma.cli.common import (
    Data,
    Json,
    Quiet,
    option,
    print_json,
    print_progress,
)
from trilemma.cli.exits import only_copies
from trilemma.cli.model import with_classifier
from trilemma.errors import ConfigError, RunError
from trilemma.printing import print_lines
from trilemma.runs.run_directory import RunDirectory
from trilemma.storing import writable_file

Onnx = Annotated[bool, option("--onnx", "write an .onnx file; requires the extra 'onnx'")]
StateDict = Annotated[
    bool, option("--state-dict", "write the weights: .pt, or .safetensors by the name in --out")
]
OutFile = Annotated[
    Path | None, option("--out FILE", "output file  [default: RUN/export/classifier.onnx or .pt]")
]


@with_classifier
@only_copies()
def export(
    classifier: ClassifierSource,
    onnx: Onnx = False,
    state_dict: StateDict = False,
    out: OutFile = None,
    data: Data = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Exports a classifier to PyTorch weights or ONNX.

    The exported network maps images in [0, 1] to logits and includes the normalisation. The file is read back and
    compared with the classifier on the run's test images before it is moved to its final name: bit for bit for
    weights, up to rounding for ONNX. An existing file is never overwritten.

    \b
    Examples:
      trilemma export runs/digits-pgd-at --onnx
      trilemma export runs/digits-pgd-at --state-dict --out robust.pt
    """
    if onnx == state_dict:
        raise ConfigError("export: add either --onnx or --state-dict")
    classifier.check()
    run = classifier.run
    path = out or _default_path(run, ".onnx" if onnx else ".pt")
    if path.exists():
        raise RunError(f"{path}: already exists; refusing to overwrite, choose another --out or remove it")
    writable_file(path)
    from trilemma.evaluation.export import export as export_classifier
    from trilemma.evaluation.source import open_images

    clf = classifier.open(data=data)
    images = open_images(clf, run, data)
    print_progress(f"exporting, then checking on {len(images)} images of {images.name}", quiet)
    exported = export_classifier(clf, path, "onnx" if onnx else "state-dict", data=images)
    if as_json:
        print_json({"file": str(exported.path), **exported.metadata})
    else:
        print_lines(exported.path)


def _default_path(run: RunDirectory | None, suffix: str) -> Path:
    return (Path() if run is None else run.path / "export") / f"classifier{suffix}"
