"""Exports a classifier as PyTorch weights or ONNX, after a check of the file on real images."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from trilemma import __version__
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.file import weights_of
from trilemma.classifier.output import logits_in
from trilemma.data.image_set import ImageSet
from trilemma.errors import (
    CheckpointError,
    ConfigError,
    MissingExtraError,
    NotStoredError,
    RunError,
    TrilemmaError,
    describe,
)
from trilemma.evaluation.evaluate import check_fit, check_output, chosen_checkpoints
from trilemma.evaluation.source import Data, Source, find_run, open_images, open_source
from trilemma.files import replacing, with_digests
from trilemma.networks.wrappers import unwrapped

BATCH_SIZE = 250
# Largest difference of logits, relative to the largest logit: other runtimes sum in another order.
ONNX_TOLERANCE = 1e-4


class PlainClassifier(nn.Module):
    """A module from images in [0, 1] to logits without trilemma's classes: ``network((images - mean) / std)``.

    Args:
        network: module from normalised images to logits.
        mean, std: ``[1, C, 1, 1]``, or ``[1, 1, 1, 1]`` for no normalisation.
        output: where the logits are in what the network returns, as of :class:`trilemma.Classifier`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, mean: Tensor, std: Tensor, output: str | int | None = None
    ) -> None:
        super().__init__()
        self.network, self.output = network, output
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        return logits_in(self.network((images - self.mean) / self.std), self.output)


def plain(clf: Classifier) -> PlainClassifier:
    """A copy of ``clf`` as a :class:`PlainClassifier`, in eval mode, float32, on the CPU."""
    mean = torch.zeros(1, 1, 1, 1) if clf.mean is None else clf.mean.detach().clone()
    std = torch.ones(1, 1, 1, 1) if clf.std is None else clf.std.detach().clone()
    try:
        # Without gradients, since the copied weights of TorchScript would be results of a computation.
        with torch.no_grad():
            network = copy.deepcopy(unwrapped(clf.network))
    # A network may hold what cannot be copied, such as the results of its last forward pass.
    except Exception as error:
        raise ConfigError(f"export: the network cannot be copied: {describe(error)}") from error
    module = PlainClassifier(network, mean, std, clf.output)
    return module.requires_grad_(False).float().cpu().eval()


@dataclass(frozen=True)
class Exported:
    """A written file.

    Attributes:
        path: the file; an :class:`Exported` can be passed where a path is expected.
        metadata: what the file stores: format, versions, classes, image shape, input range, threat, network, and the
            images of the check.
    """

    path: Path
    metadata: dict[str, Any]

    def __fspath__(self) -> str:
        return str(self.path)


Format = Literal["onnx", "state-dict"]
SUFFIXES: dict[str, Format] = {
    ".onnx": "onnx", ".pt": "state-dict", ".pth": "state-dict", ".safetensors": "state-dict",
}  # fmt: skip


def export(
    source: Source,
    out: str | Path | None = None,
    form: Format | None = None,
    *,
    checkpoint: Literal["best", "last"] = "best",
    data: Data | None = None,
) -> Exported:
    """Exports a classifier to ONNX or to PyTorch weights, for use without trilemma.

    The exported network maps images in [0, 1] to logits and includes the normalisation. The file is read back and
    compared with the classifier on real images before it is moved to its final name.

    Args:
        source: a run folder, a classifier file, a :class:`Run` or a :class:`Classifier`; its state is restored.
        out: the file; by default ``export/classifier.onnx`` or ``.pt`` in a run, else in the working directory. An
            existing file is never overwritten.
        form: ``onnx`` (requires the extra ``onnx``) or ``state-dict``; by default that of the suffix of ``out``.
        checkpoint: checkpoint of a run: best on held-out images (the last one if there is no best), or last.
        data: images for the check, as in :func:`trilemma.evaluate`; by default those that the classifier knows.

    Raises:
        ConfigError: neither ``form`` nor a known suffix.
        RunError: the file exists already or cannot be written.
        CheckpointError: no such checkpoint, or the file does not give the same logits.
        MissingExtraError: the extra ``onnx`` is not installed.
    """
    chosen = form or (None if out is None else SUFFIXES.get(Path(out).suffix.lower()))
    if chosen not in ("onnx", "state-dict"):
        raise ConfigError(
            f"export: format {form!r} for {out}; pass form='onnx' or form='state-dict', or a file that ends in "
            f"{', '.join(SUFFIXES)}"
        )
    run = find_run(source)
    if out is None:
        name = "classifier.onnx" if chosen == "onnx" else "classifier.pt"
        out = (Path() if run is None else run.path / "export") / name
    if Path(out).exists():
        raise RunError(f"{out}: already exists; refusing to overwrite, choose another --out or remove it")
    weights = source if run is None else run.classifiers()[chosen_checkpoints(run, checkpoint)[0]]
    clf = open_source(weights, data)
    images = open_images(clf, run, data)
    write = export_onnx if chosen == "onnx" else export_state_dict
    return Exported(Path(out), write(clf, out, images))


def export_state_dict(clf: Classifier, path: str | Path, images: ImageSet) -> dict[str, Any]:
    """Writes ``{"state_dict": ..., "metadata": ...}`` for ``torch.load(path, weights_only=True)``.

    A path that ends in ``.safetensors`` gets a safetensors file of the same tensors, with the metadata as JSON under
    ``trilemma``.

    The keys of the state dict are those of :class:`PlainClassifier`: ``mean``, ``std`` and ``network.*``. The file is
    written under a temporary name and loaded into a zeroed module first, whose logits must equal those of ``clf`` bit
    for bit.

    Args:
        clf: the classifier.
        path: a file that does not exist yet.
        images: real images for the check.

    Returns:
        The metadata: format, versions, classes, image shape, input range, threat, network, data of the check.

    Raises:
        RunError: the file exists already.
        NotStoredError: it cannot be written.
        CheckpointError: the file does not give the same logits.
    """
    weights_of(clf.network, path)
    module = plain(clf)
    metadata = _metadata(clf, images)
    safetensors = Path(path).suffix.lower() == ".safetensors"

    def write(file: Path) -> None:
        if safetensors:
            tensors = module.state_dict()
            file.write_bytes(save(tensors, with_digests({"trilemma": json.dumps(metadata)}, tensors)))
            return
        # Through memory: torch's own writer reports a full disk as an error of its archive.
        content = BytesIO()
        torch.save({"state_dict": module.state_dict(), "metadata": metadata}, content)
        file.write_bytes(content.getbuffer())

    def read_back(file: Path) -> Callable[[Tensor], Tensor]:
        loaded = copy.deepcopy(module)
        # Zeroed, so that a tensor missing from the file is noticed.
        for value in loaded.state_dict().values():
            value.zero_()
        content = (
            load(file.read_bytes()) if safetensors else torch.load(file, weights_only=True)["state_dict"]
        )
        loaded.load_state_dict(content)
        return loaded

    _write_checked(clf, Path(path), images, write, read_back, tolerance=0.0)
    return metadata


def export_onnx(clf: Classifier, path: str | Path, images: ImageSet) -> dict[str, Any]:
    """Writes an ONNX file and returns its metadata.

    The model maps ``images``, float32 ``[batch, C, H, W]`` in [0, 1], to ``logits`` ``[batch, K]``, for any batch size.
    The file is written under a temporary name and run by onnxruntime first, whose logits must equal those of ``clf`` up
    to rounding (1e-4 of the largest logit).

    Arguments and return value as in :func:`export_state_dict`. The file holds the metadata too: one property each, and
    all of them as JSON under ``trilemma``.

    Raises:
        MissingExtraError: the extra ``onnx`` is not installed.
        RunError, NotStoredError, CheckpointError: as in :func:`export_state_dict`; the last also if ONNX cannot express
            the network.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise MissingExtraError(
            f"ONNX export needs onnx, onnxruntime and onnxscript ({error}); pip install -e '.[onnx]' in the clone"
        ) from error
    metadata = _metadata(clf, images)

    def write(file: Path) -> None:
        model = _onnx_model(plain(clf), images.float_images([0, 0]), path)
        onnx.helper.set_model_props(model, _flat(metadata))
        onnx.save(model, file)

    def read_back(file: Path) -> Callable[[Tensor], Tensor]:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return lambda batch: torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0])

    _write_checked(clf, Path(path), images, write, read_back, ONNX_TOLERANCE)
    return metadata


def _onnx_model(module: nn.Module, example: Tensor, path: str | Path) -> Any:
    batch = torch.export.Dim("batch", min=1)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            # Deprecation warnings of the exporter, and the graphs that it prints before it raises.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module, (example,), input_names=["images"], output_names=["logits"],
                dynamic_shapes=({0: batch},), dynamo=True, verbose=False, external_data=False,
            )  # fmt: skip
    # The exporter raises many types of errors for networks that it cannot trace.
    except Exception as error:
        raise CheckpointError(
            f"{path}: this network cannot be exported to ONNX ({describe(error.__cause__ or error)}); use --state-dict"
        ) from error
    assert program is not None
    model = program.model_proto
    graph = model.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        # Notes of the exporter, which contain local paths.
        del part.metadata_props[:]
    return model


def _metadata(clf: Classifier, images: ImageSet) -> dict[str, Any]:
    check_fit(clf, images)
    check_output(clf, images)
    metadata = {
        "format": "trilemma-export",
        "version": 1,
        "trilemma": __version__,
        "torch": torch.__version__,
        "num_classes": clf.num_classes,
        "class_names": list(clf.class_names),
        "image_shape": list(clf.image_shape or images.image_shape),
        "input": "images, float32 [N, C, H, W], values in [0, 1]; normalisation is inside",
        "output": "logits, float32 [N, K]",
        "threat": None if clf.threat is None else {"norm": clf.threat.norm, "radius": clf.threat.radius},
        "network": clf.network_config,
        "about": clf.provenance(),
        "checked_on": {"data": images.name, "split": images.split, "images": len(images)},
    }
    plain_types: dict[str, Any] = json.loads(json.dumps(metadata))
    return plain_types


def _flat(metadata: dict[str, Any]) -> dict[str, str]:
    """The metadata as strings, as ONNX requires: one entry each, and all of them as JSON under ``trilemma``."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items() if v is not None}
    return {**texts, "trilemma": json.dumps(metadata)}


def _write_checked(
    clf: Classifier,
    path: Path,
    images: ImageSet,
    write: Callable[[Path], None],
    read_back: Callable[[Path], Callable[[Tensor], Tensor]],
    tolerance: float,
) -> None:
    """Writes to a temporary file, compares its logits with those of ``clf``, and renames it to ``path``.

    Raises:
        ConfigError: no images for the check.
        RunError: ``path`` exists already.
        NotStoredError: it cannot be written.
        CheckpointError: the logits differ, or the exporter or the runtime cannot handle the network.
    """
    if len(images) == 0:
        raise ConfigError("export: no images for the check; pass at least one")
    if path.exists():
        raise RunError(
            f"{path}: already exists; refusing to overwrite it; choose another --out, or remove it"
        )
    try:
        with replacing(path) as temporary:
            write(temporary)
            _compare(clf, read_back(temporary), images, tolerance, path)
    except NotStoredError as error:
        raise NotStoredError(str(path), error.reason, "choose another --out") from None
    except TrilemmaError:
        raise
    # Exporters and runtimes raise types of their own.
    except Exception as error:
        raise CheckpointError(f"{path}: not written: {describe(error)}") from error


@torch.no_grad()
def _compare(
    clf: Classifier, exported: Callable[[Tensor], Tensor], images: ImageSet, tolerance: float, path: Path
) -> None:
    """Checks that both give the same logits up to ``tolerance``, relative to the largest logit (but at least 1).

    Raises:
        CheckpointError: they do not.
    """
    reference = copy.deepcopy(clf).cpu().float()
    index = torch.arange(len(images))
    # The last image is a batch of its own, to detect a batch size that is frozen into the file.
    for part in [*index[:-1].split(BATCH_SIZE), index[-1:]]:
        batch = images.float_images(part)
        with inner_loop(reference, "eval"):
            expected = reference(batch)
        logits = exported(batch)
        gap = float((expected - logits).abs().max()) if expected.shape == logits.shape else float("inf")
        if not gap <= tolerance * float(expected.abs().max().clamp_min(1.0)):
            raise CheckpointError(
                f"{path}: not written: the exported file gives other logits than the classifier (largest difference "
                f"{gap:.3g} on {images.name}); a network that is random or depends on the batch cannot be exported"
            )
