"""``trilemma init``: looks at a folder of photos and writes a recipe for it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from trilemma.cli.common import Device, argument, completed_by, option, print_error, print_table
from trilemma.config.registry import METHODS
from trilemma.errors import RunError
from trilemma.files import write_text
from trilemma.printing import print_lines, visible_line
from trilemma.storing import writable_file
from trilemma.units import duration

if TYPE_CHECKING:
    from trilemma.data.survey import Survey
    from trilemma.training.advise import Advice

# No more classes, files or pairs than this are listed.
MANY_CLASSES, MANY_FILES = 20, 5
# The largest class is this many times the smallest one: then accuracy alone misleads.
UNEVEN = 1.5
# Endings that the name of a recipe does not take over from an archive.
ARCHIVE_ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip", ".npz")


def init(
    folder: Annotated[Path, argument("FOLDER", "folder, .tar, .tar.gz, .zip or .npz with images by class")],
    method: Annotated[
        str,
        option(
            "--method M",
            "training method (`trilemma list methods`)",
            autocompletion=completed_by(METHODS.names),
        ),
    ] = "pgd-at",
    out: Annotated[
        Path | None, option("--out FILE", "recipe to write  [default: FOLDER's name.yaml]")
    ] = None,
    device: Device = None,
) -> None:
    """Looks at images and writes a recipe for them.

    Counts the images of every class and split, decodes each, and measures this machine. The recipe has an image size, a
    network, a batch size and a number of epochs with which a first run takes minutes; its comments say what to change.

    \b
    Examples:
      trilemma init photos/
      trilemma init photos.zip --method standard --out photos.yaml
    """
    METHODS.row(method)
    name = folder.name or folder.resolve().name
    stem = next((name[: -len(end)] for end in ARCHIVE_ENDINGS if name.lower().endswith(end)), name)
    file = out or Path(f"{stem}.yaml")
    if file.exists():
        raise RunError(f"{file}: exists already and is not overwritten; remove it, or choose another --out")
    writable_file(file)
    from trilemma.data.survey import survey
    from trilemma.training.advise import advise
    from trilemma.training.devices import available_device

    chosen = available_device(device or "auto")
    found = survey(folder)
    advice = advise(found, str(folder), method, chosen)
    _print_findings(folder, found)
    for warning in advice.config.warnings:
        print_error(warning, prefix="warning: ")
    write_text(file, recipe_yaml(found, advice, file, chosen))
    _print_next(file, advice, chosen, found)


def _print_findings(folder: Path, found: Survey) -> None:
    """Prints the images by class and split, and what may be wrong with them."""
    from trilemma.training.advise import chance

    by_class = found.by_class
    splits = list(found.counts)
    rows = [
        {"class": name, **{_part(split): found.counts[split].get(name, 0) for split in splits}}
        for name in list(by_class)[:MANY_CLASSES]
    ]
    print_table(rows)
    if len(by_class) > MANY_CLASSES:
        print_lines(f"... and {len(by_class) - MANY_CLASSES:,} classes more")
    height, width = found.size
    grey = found.images - len(found.broken) - found.colour
    colours = (
        "colour" if not grey else "grey" if not found.colour else f"{found.colour:,} colour, {grey:,} grey"
    )
    sizes = f"{width}x{height}" if found.sizes == 1 else f"{found.sizes:,} sizes, most often {width}x{height}"
    print_lines(f"{found.images:,} images in {len(by_class):,} classes; {colours}; {sizes} pixels")
    largest, smallest = max(by_class, key=by_class.__getitem__), min(by_class, key=by_class.__getitem__)
    print_lines(f"chance: {chance(by_class):.1%}, the accuracy of answering {largest!r} always")
    if by_class[largest] > UNEVEN * by_class[smallest]:
        print_lines(
            f"uneven: {by_class[largest]:,} of {largest!r}, {by_class[smallest]:,} of {smallest!r}; "
            "look at the accuracy of each class, not only at the mean"
        )
    for line in found.remarks:
        print_lines(line)
    for path, reason in found.broken[:MANY_FILES]:
        print_error(f"{folder}: {path}: {reason}", prefix="warning: ")
    if len(found.broken) > MANY_FILES:
        print_error(
            f"{folder}: {len(found.broken) - MANY_FILES:,} files more cannot be decoded", prefix="warning: "
        )
    for first, second in found.equal[:MANY_FILES]:
        print_error(f"{folder}: {first} and {second} are the same image", prefix="warning: ")
    if len(found.equal) > MANY_FILES:
        print_error(
            f"{folder}: {len(found.equal) - MANY_FILES:,} pairs more are the same image", prefix="warning: "
        )


def _part(split: str) -> str:
    return "images" if split == "all" else split


def _print_next(file: Path, advice: Advice, device: str, found: Survey) -> None:
    """Prints the recipe's name, its estimated time and the commands that follow."""
    run = shlex.quote(str(Path("runs") / file.stem))
    recipe = shlex.quote(str(file))
    network, data = advice.sections["network"], advice.sections["data"]
    size = f"{data['size']}x{data['size']}" if data["size"] else "the images' own size"
    print_lines(
        f"{file}: {advice.config.method.name} with {network['name']} (width {network['width']}, depth "
        f"{network['depth']}) at {size}, {advice.config.training.epochs} epochs of {advice.train:,} images: about "
        f"{duration(advice.seconds)} on this {'CPU' if device == 'cpu' else 'GPU'}"
    )
    threat = advice.config.threat
    protocols = "--protocol clean --protocol classes" + (" --protocol pgd-20" if threat else "")
    commands = [
        f"trilemma validate {recipe}",
        f"trilemma train {recipe}",
        f"trilemma evaluate {run} {protocols}",
        f"trilemma report {run}",
    ]
    if found.broken:
        commands.insert(0, "remove or replace the files above that cannot be decoded")
    for index, command in enumerate(commands):
        print_lines(f"{'     ' if index else 'next:'} {command}")


def recipe_yaml(found: Survey, advice: Advice, file: Path, device: str) -> str:
    """Returns the recipe as YAML with comments that say why each value was chosen, and what to change.

    Args:
        found: the images.
        advice: the values.
        file: where the recipe will be written.
        device: the device on which the time was estimated.
    """
    from trilemma.training.advise import chance

    counts = found.by_class
    where = "CPU" if device == "cpu" else "GPU"
    lines = [
        f"# trilemma train {visible_line(str(file))}",
        f"# {found.images:,} images in {len(counts):,} classes: {advice.train:,} to train on, {advice.held_out:,} held "
        "out for the choice of the checkpoint,",
        f"# the others for tests. Chance: {chance(counts):.1%}. About {duration(advice.seconds)} on the {where} it was "
        "written on.",
    ]
    for section, values in advice.sections.items():
        lines += ["", *(f"# {comment}" for comment in COMMENTS[section])]
        lines.append(f"{section}:")
        for key, value in values.items():
            lines.append(f"  {key}: {_scalar(value)}")
    lines += [
        "",
        *(f"# {comment}" for comment in COMMENTS["augmentation"]),
        "augmentation:",
        "  flip: true",
        "",
    ]
    return "\n".join(lines)


COMMENTS = {
    "data": (
        "Every image is cropped to a square and resized to size x size pixels; a larger size costs its square in time.",
        "Without folders train/ and test/, a fixed fifth of each class is kept for tests.",
    ),
    "network": (
        "A residual network for small images. Larger: width 32, depth 20. With a GPU: {name: preact-resnet}.",
    ),
    "method": (
        "standard: accurate only. pgd-at, trades: robust. eb-jdat: robust and generative, several times the cost.",
    ),
    "threat": (
        "The attacks to withstand: no pixel changes by more than the radius. Papers use 8/255 for linf.",
    ),
    "attack": ("Steps of the attack in training: 10 in papers; each costs two forward passes.",),
    "sampler": ("Images that are being generated are kept in a buffer; papers use 10000.",),
    "training": ("More epochs are the first thing to try; the learning rate is that of batch 128, scaled.",),
    "augmentation": ("flip: false where a mirrored image means something else, as text and digits do.",),
}


def _scalar(value: Any) -> str:
    """A value as YAML, on one line."""
    import yaml

    text: str = yaml.safe_dump(value, allow_unicode=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")
