"""The result of ``trilemma.counterfactual``: rows, figures, animations and files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from trilemma.errors import ConfigError
from trilemma.evaluation.samples import as_uint8, write_image
from trilemma.figures.counterfactual import (
    animate_counterfactual,
    difference_scale,
    draw_counterfactual,
    draw_counterfactuals,
)
from trilemma.figures.style import LIGHT, Theme, render, save_figure
from trilemma.files import write_bytes, write_npz
from trilemma.progress import bar
from trilemma.runs.lock import writing_inside
from trilemma.runs.records import write_json
from trilemma.tables import Records, text_table

# Longest name of a file that an image is written to, without number and ending.
LONGEST_STEM = 60


@dataclass(frozen=True)
class Trajectory:
    """What an image passes on its way.

    Attributes:
        values: M numbers each of ``distance`` from the original, ``marginal energy`` E(x), ``target energy``
            E(x, target), ``original energy`` E(x, class of the original), ``target confidence`` and
            ``original confidence``, the probabilities of these classes.
        steps: the M points of the way: 0 is the original, and the last one the result.
        frames: uint8 ``[F, C, H, W]``, images of the way; empty unless they were asked for.
        frame_steps: the F points of the frames.
    """

    values: dict[str, list[float]]
    steps: list[int]
    frames: Tensor
    frame_steps: list[int]


@dataclass(frozen=True, repr=False)
class Counterfactuals:
    """Images, the images to which they were moved, and the way; a notebook shows them side by side.

    All tensors are on the CPU.

    Attributes:
        names: path of each file, or index of each image in memory.
        originals, images: float32 ``[N, C, H, W]`` in [0, 1], before and after.
        original_labels, target_labels, labels: the predicted class of the original, the target, and the predicted class
            of the result, int64 ``[N]``.
        distances: float64 ``[N]``, pixel units, in ``settings["norm"]``; 0 for an image that was of the target class.
        success: bool ``[N]``, whether the result is of the target class.
        png_labels: the predicted class of the result rounded to 8 bits, as an image file holds it, int64 ``[N]``.
        trajectories: one per image.
        class_names: K names.
        settings: ``norm``, ``budget`` or ``tolerance``, ``energy``, ``steps``, and the classifier's record.
    """

    names: list[str] | list[int]
    originals: Tensor
    images: Tensor
    original_labels: Tensor
    target_labels: Tensor
    labels: Tensor
    distances: Tensor
    success: Tensor
    png_labels: Tensor
    trajectories: list[Trajectory]
    class_names: tuple[str, ...]
    settings: dict[str, Any]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def rows(self) -> Records:
        """One row per image; energies in logit units, and confidences in [0, 1] of the target class."""
        rows = Records()
        for index, name in enumerate(self.names):
            values = self.trajectories[index].values
            rows += [
                {
                    "image": name,
                    "original class": self._name(self.original_labels, index),
                    "target": self._name(self.target_labels, index),
                    "success": bool(self.success[index]),
                    "distance": float(self.distances[index]),
                    "class": self._name(self.labels, index),
                    "target confidence": values["target confidence"][-1],
                    "marginal energy before": values["marginal energy"][0],
                    "marginal energy": values["marginal energy"][-1],
                    "target energy before": values["target energy"][0],
                    "target energy": values["target energy"][-1],
                    "original energy before": values["original energy"][0],
                    "original energy": values["original energy"][-1],
                    "class in 8 bits": self._name(self.png_labels, index),
                }
            ]
        return rows

    @property
    def record(self) -> dict[str, Any]:
        """Settings and every number, as it is written to the JSON file."""
        scales = difference_scale(self.originals, self.images).tolist()
        images = [
            {
                **row,
                "already of the target class": bool(self.original_labels[index] == self.target_labels[index]),
                "difference scale": scales[index],
                "trajectory": {"step": trajectory.steps, **trajectory.values},
            }
            for index, (row, trajectory) in enumerate(zip(self.rows, self.trajectories, strict=True))
        ]
        return {**self.settings, "images": images}

    def _name(self, labels: Tensor, index: int) -> str:
        return self.class_names[int(labels[index])]

    def figure(self, index: int | None = None, theme: Theme = LIGHT) -> Figure:
        """A matplotlib figure: of the first 20 images, or of one with energies and confidence along its way.

        Args:
            index: position of the one image; ``None`` for the first 20.
            theme: ``LIGHT`` or ``DARK``.
        """
        if index is None:
            captions = [self._caption(k) for k in range(len(self))]
            return draw_counterfactuals(self.originals, self.images, captions, theme)
        trajectory = self.trajectories[index]
        labels = (self.original_labels, self.target_labels, self.labels)
        first, target, final = (self._name(one, index) for one in labels)
        return draw_counterfactual(
            self.originals[index],
            self.images[index],
            {"step": trajectory.steps, **trajectory.values},
            (first, target, final),
            "step" if "budget" in self.settings else "distance",
            theme,
        )

    def _caption(self, index: int) -> str:
        first, target = self._name(self.original_labels, index), self._name(self.target_labels, index)
        if self.original_labels[index] == self.target_labels[index]:
            return f"is {target} already"
        reached = "" if self.success[index] else ", not reached"
        return f"{first} to {target}, {float(self.distances[index]):.3g}{reached}"

    def animation(self, index: int) -> bytes:
        """An animated WebP of the way of an image, with its difference from the original.

        Raises:
            ConfigError: the frames were not asked for.
        """
        trajectory = self.trajectories[index]
        if not len(trajectory.frames):
            raise ConfigError("animation: no frames were kept; call counterfactual with frames=24")
        values, target = trajectory.values, self._name(self.target_labels, index)
        position = {step: k for k, step in enumerate(trajectory.steps)}
        captions = [
            f"{self.settings['norm']} {values['distance'][k]:.3f}, "
            f"p({target}) {values['target confidence'][k]:.2f}, E(x) {values['marginal energy'][k]:.1f}"
            for k in (position[step] for step in trajectory.frame_steps)
        ]
        return animate_counterfactual(trajectory.frames.float() / 255, captions)

    def save(self, out: str | Path, progress: bool = False) -> Path:
        """Writes ``NAME.json``, ``NAME.png`` (also ``-dark``), ``NAME.npz`` and a folder ``NAME`` to ``out``.

        The npz file holds ``originals`` and ``images`` in float32, and ``labels``. The folder holds of each image
        ``NUMBER-FILE.png``, the strip of :meth:`figure`, ``NUMBER-FILE-result.png``, the result itself rounded to
        8 bits, and ``NUMBER-FILE.webp`` if frames were kept.

        Returns:
            The path of the JSON file.

        Raises:
            NotStoredError: a file cannot be written.
        """
        out, name = Path(out), self._file_name()
        folder = out / name
        with writing_inside(out):
            arrays = {"originals": self.originals, "images": self.images, "labels": self.target_labels}
            write_npz(out / f"{name}.npz", {key: value.numpy() for key, value in arrays.items()})
            save_figure(out / f"{name}.png", lambda theme: self.figure(theme=theme))
            pixels = as_uint8(self.images)
            with bar("writing", len(self), progress) as advance:
                for index, image in enumerate(self.names):
                    stem = re.sub(r"[^\w.-]", "_", PurePath(str(image)).stem)[:LONGEST_STEM]
                    path = folder / f"{index:04d}-{stem}.png"
                    strip = BytesIO()
                    self.figure(index).savefig(strip, format="png", metadata={"Software": None})
                    write_bytes(path, strip.getvalue())
                    write_image(path.with_stem(f"{path.stem}-result"), pixels[index])
                    if len(self.trajectories[index].frames):
                        write_bytes(path.with_suffix(".webp"), self.animation(index))
                    advance(1)
            write_json(out / f"{name}.json", self.record)
        return out / f"{name}.json"

    def _file_name(self) -> str:
        targets = set(self.target_labels.tolist())
        target = str(targets.pop()) if len(targets) == 1 else "several"
        budget = str(self.settings.get("budget", "least")).replace("/", "-")
        return f"to-{target}_{self.settings['norm']}_{budget}"

    def __repr__(self) -> str:
        keys = ("image", "original class", "target", "success", "distance", "target confidence")
        head = f"{int(self.success.sum())} of {len(self)} images are of the target class"
        return f"{head}\n{text_table([{key: row[key] for key in keys} for row in self.rows])}"

    def _repr_png_(self) -> bytes:
        return render(lambda theme: self.figure(theme=theme))[0]
