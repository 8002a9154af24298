"""``trilemma counterfactual``: moves images to a class, inside a budget or by the least distance that suffices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from trilemma.classifier.source import ClassifierSource
from trilemma.cli.common import (
    Device,
    Json,
    Out,
    Quiet,
    choose_device,
    option,
    output_folder,
    print_json,
    print_progress,
    print_table,
    show_progress_bar,
)
from trilemma.cli.model import ImagePaths, split_images, with_classifier
from trilemma.errors import ConfigError, NotStoredError
from trilemma.printing import print_lines
from trilemma.runs.lock import writing_inside
from trilemma.storing import go_on_without
from trilemma.units import check_radius, length

if TYPE_CHECKING:
    from trilemma.evaluation.counterfactual_result import Counterfactuals

SHOWN = (
    "image",
    "original class",
    "target",
    "success",
    "distance",
    "class",
    "target confidence",
    "marginal energy",
)
STEPS_HELP = "gradient steps  [default: 100; for the least distance, 50 per radius]"
TOLERANCE_HELP = "of the least distance, pixel units  [default: 0.01 for l2, 0.001 for linf]"


@with_classifier
def counterfactual(
    classifier: ClassifierSource,
    images: ImagePaths = None,
    *,
    target: Annotated[str, option("--target CLASS", "name or number of the class to move to")],
    norm: Annotated[Literal["l2", "linf"], option("--norm", "norm of the distance")] = "l2",
    budget: Annotated[str | None, option("--budget R", "largest distance, such as 1.5 or 8/255")] = None,
    least: Annotated[bool, option("--least", "find the least distance  [default without --budget]")] = False,
    tolerance: Annotated[str | None, option("--tolerance T", TOLERANCE_HELP)] = None,
    energy: Annotated[
        Literal["ce", "joint"], option("--energy", "lower the cross-entropy or the energy E(x, target)")
    ] = "ce",
    steps: Annotated[int | None, option("--steps N", STEPS_HELP, min=1)] = None,
    resize: Annotated[bool, option("--resize", "crop and resize images of another size")] = False,
    animate: Annotated[bool, option("--animate", "write an animated WebP of every image too")] = False,
    out: Out = None,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Moves images to a class, and shows what changed.

    Every image is moved by projected gradient steps that lower an energy of the class: inside a budget, or to the least
    distance at which the classifier predicts the class, by bisection. Distances are in pixel values from 0 to 1.
    IMAGES are image files, and folders and archives of them; the classifier comes first, or is given by --model. A file
    that cannot be read or has another size is skipped with a message; if none can be read, the exit code is 2. An image
    that is of the class already stays as it is, at distance 0.

    Written are a figure of the first 20 images, a strip and the result of every image as PNG, all numbers as JSON, and
    images in full precision as npz.

    \b
    Examples:
      trilemma counterfactual four.png --model runs/digits-eb-jdat --target 9
      trilemma counterfactual runs/digits-eb-jdat scans/ --target 9 --budget 1.5 --animate
      trilemma counterfactual runs/digits-eb-jdat scans.zip --target 9 --norm linf --least
    """
    _check(norm, budget, least, tolerance)
    classifier, paths = split_images(classifier, images)
    classifier.check()
    folder = output_folder(out, classifier.run, "counterfactuals")
    from trilemma.evaluation.counterfactual import FRAMES
    from trilemma.evaluation.counterfactual import counterfactual as move

    print_progress(f"moving images to class {target}", quiet)
    shown = show_progress_bar(quiet)
    with writing_inside(folder):
        result = move(
            classifier, [*paths], target, budget, norm=norm, energy=energy, steps=steps, tolerance=tolerance,
            frames=FRAMES if animate else 0, resize=resize, device=choose_device(device), skip_unreadable=True,
            progress=shown,
        )  # fmt: skip
        written = _save(result, folder, shown)
    if as_json:
        print_json({**result.record, "folder": None if written is None else str(written.with_suffix(""))})
        return
    print_table([{key: row[key] for key in SHOWN} for row in result.rows])
    already = int((result.original_labels == result.target_labels).sum())
    reached = int(result.success.sum())
    print_lines(f"{reached} of {len(result)} images are of class {target}, {already} of them before any step")
    if written is not None:
        print_lines(f"figure: {written.with_suffix('.png')}", f"images: {written.with_suffix('')}")


def _save(result: Counterfactuals, folder: Path, progress: bool) -> Path | None:
    """Writes the result; returns the path of the JSON file, or ``None`` if it cannot be written."""
    try:
        return result.save(folder, progress)
    except NotStoredError as error:
        go_on_without(error)
        return None


def _check(norm: str, budget: str | None, least: bool, tolerance: str | None) -> None:
    """Checks the options that need no classifier."""
    if budget is not None and least:
        raise ConfigError("--budget and --least: a budget, or the least distance; leave one of them out")
    if budget is not None and tolerance is not None:
        raise ConfigError("--tolerance: is for the least distance; leave it or --budget out")
    if budget is not None:
        try:
            check_radius(norm, budget)
        except ValueError as error:
            raise ConfigError(f"--budget: {error}") from None
    if tolerance is not None:
        length("counterfactual", "--tolerance", tolerance)
