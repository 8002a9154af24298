"""A finished classifier for use elsewhere: PyTorch weights or ONNX, checked on real images before it is written."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trilemma import __version__
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.data.image_set import ImageSet
from trilemma.errors import CheckpointError, ConfigError, MissingExtraError, RunError
from trilemma.evaluation.evaluate import check_fit, check_output
from trilemma.files import replacing

BATCH_SIZE = 250
# Another runtime adds in another order: the largest difference of two logits, in units of the largest logit.
ONNX_TOLERANCE = 1e-4


class PlainClassifier(nn.Module):
    """Images in [0, 1] to logits, with nothing of trilemma's in it: ``network((images - mean) / std)``.

    Args:
        network: from normalised images to logits.
        mean, std: ``[1, C, 1, 1]``, or ``[1, 1, 1, 1]`` for no normalisation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def plain(clf: Classifier) -> PlainClassifier:
    """A copy of ``clf`` without what only trilemma needs, in eval mode on the CPU, in float32."""
    mean = torch.zeros(1, 1, 1, 1) if clf.mean is None else clf.mean.detach().clone()
    std = torch.ones(1, 1, 1, 1) if clf.std is None else clf.std.detach().clone()
    return PlainClassifier(copy.deepcopy(clf.network), mean, std).float().cpu().eval().requires_grad_(False)


def export_state_dict(clf: Classifier, path: str | Path, images: ImageSet) -> dict[str, Any]:
    """Writes ``{"state_dict": ..., "metadata": ...}``, to be read by ``torch.load(path, weights_only=True)``.

    The names are ``mean``, ``std`` and ``network.`` with those of the network: what :class:`PlainClassifier` has.
    Before the file gets its name it is read back into a module without weights, whose logits must be those of
    ``clf``, bit for bit.

    Args:
        clf: the classifier.
        path: a file that is not there yet.
        images: real images to check on.

    Returns:
        The metadata: format, versions, classes, image shape, input range, threat, network, check.

    Raises:
        RunError: there is a file already, or it cannot be written.
        CheckpointError: what was read back does not give the same logits.
    """
    module = plain(clf)
    metadata = _metadata(clf, images)

    def write(file: Path) -> None:
        torch.save({"state_dict": module.state_dict(), "metadata": metadata}, file)

    def read_back(file: Path) -> Callable[[Tensor], Tensor]:
        again = copy.deepcopy(module)
        for value in again.state_dict().values():
            value.zero_()  # so that nothing is right that was not in the file
        again.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
        return again

    _write_checked(clf, Path(path), images, write, read_back, tolerance=0.0)
    return metadata


def export_onnx(clf: Classifier, path: str | Path, images: ImageSet) -> dict[str, Any]:
    """Writes one ONNX file: ``images`` float32 ``[batch, C, H, W]`` in [0, 1] to ``logits`` ``[batch, K]``, any batch.

    Before the file gets its name it is run by onnxruntime, whose logits must be those of ``clf`` up to rounding (a
    ten-thousandth of the largest).

    Args and returns: as of :func:`export_state_dict`; the metadata are in the file too, one text each, and all of them
    as JSON under ``trilemma``.

    Raises:
        MissingExtraError: the extra ``onnx`` is not installed.
        RunError, CheckpointError: as of :func:`export_state_dict`, or a network that ONNX cannot express.
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own future
            program = torch.onnx.export(
                module, (example,), input_names=["images"], output_names=["logits"],
                dynamic_shapes=({0: batch},), dynamo=True, verbose=False, external_data=False,
            )  # fmt: skip
    except Exception as error:  # whatever the exporter's many parts raise about a network it cannot trace
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise CheckpointError(
            f"{path}: this network cannot be exported to ONNX ({type(error).__name__}: {first}); use --state-dict"
        ) from error
    assert program is not None
    model = program.model_proto
    graph = model.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]  # the exporter's notes, with paths of this machine among them
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
        "about": dict(clf.about),
        "checked_on": {"data": images.name, "split": images.split, "images": len(images)},
    }
    plain_types: dict[str, Any] = json.loads(json.dumps(metadata))
    return plain_types


def _flat(metadata: dict[str, Any]) -> dict[str, str]:
    """Texts, as ONNX keeps them: every fact by its name, and all of them as ``trilemma``."""
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
    """A file that is not right never gets its name, and one that is there is never replaced."""
    if len(images) == 0:
        raise ConfigError("export: no images to check on")
    if path.exists():
        raise RunError(
            f"{path}: is there already and is not written over; choose another --out, or remove it"
        )
    try:
        with replacing(path) as temporary:
            write(temporary)
            _compare(clf, read_back(temporary), images, tolerance, path)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror or error}); choose another --out"
        ) from None


@torch.no_grad()
def _compare(
    clf: Classifier, other: Callable[[Tensor], Tensor], images: ImageSet, tolerance: float, path: Path
) -> None:
    reference = copy.deepcopy(clf).cpu().float()
    places = torch.arange(len(images))
    # the last batch is of one image: a batch size that was frozen into the file shows
    for part in [*places[:-1].split(BATCH_SIZE), places[-1:]]:
        batch = images.float_images(part)
        with inner_loop(reference, "eval"):
            ours = reference(batch)
        theirs = other(batch)
        gap = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
        if not gap <= tolerance * float(ours.abs().max().clamp_min(1.0)):
            raise CheckpointError(
                f"{path}: not written: what was read back gives other logits than the classifier (largest difference "
                f"{gap:.3g} on {images.name}); a network that depends on chance or on the batch cannot be exported"
            )
