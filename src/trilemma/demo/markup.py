"""The results of the page as HTML: images, tables, and the live view of chains. Figures are those of the package."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import torch
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from trilemma.demo.compute import Answer, Attacked, Frame, Generated, Plane
from trilemma.demo.stopping import Beat
from trilemma.demo.subject import Subject
from trilemma.evaluation.counterfactual_result import Counterfactuals
from trilemma.figures.chains import BAND, draw_chain_energies, draw_trajectories
from trilemma.figures.counterfactual import difference_map, difference_scale, draw_way
from trilemma.figures.energy_landscape import draw_plane
from trilemma.figures.style import Theme, render
from trilemma.metrics.energy_landscape import EnergyPoints
from trilemma.pages.page import data_uri
from trilemma.pages.words import norm_words, number, percent, threat_words

# Width and height of the live chart, in its own units.
CHART = (480, 180)
# Chains of the live view.
LIVE = 16


def png(pixels: Tensor) -> str:
    """An image ``[C, H, W]`` in [0, 1] as a data URI; of other than 1 or 3 channels, the first one."""
    levels = (pixels * 255).round().to(torch.uint8).cpu()
    array = levels.permute(1, 2, 0).numpy() if len(levels) == 3 else levels[0].numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return data_uri(buffer.getvalue())


def picture(pixels: Tensor, caption: str, alt: str) -> Markup:
    """An image in its own pixels, with a caption below."""
    return Markup(
        '<figure class="pixels"><img src="{}" alt="{}"><figcaption>{}</figcaption></figure>'
    ).format(png(pixels), alt, caption)


def pictures(items: Sequence[tuple[Tensor, str, str]], kind: str = "") -> Markup:
    """Images side by side, each with caption and alternative text."""
    return Markup('<div class="pictures {}">{}</div>').format(
        kind, Markup("").join(picture(*item) for item in items)
    )


def figure(draw: Callable[[Theme], Figure], alt: str, kind: str = "") -> Markup:
    """A figure of the package in both themes, of which the page shows that of its own."""
    light, dark = (data_uri(image) for image in render(draw))
    images = Markup("").join(
        Markup('<img class="{}" src="{}" alt="{}">').format(*each, alt)
        for each in (("in-light", light), ("in-dark", dark))
    )
    return Markup('<div class="figure {}">{}</div>').format(kind, images)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table whose first column names the rows."""
    cells = Markup("").join(Markup("<th>{}</th>").format(text) for text in head)
    body = Markup("").join(
        Markup("<tr><th>{}</th>{}</tr>").format(
            first, Markup("").join(Markup("<td>{}</td>").format(text) for text in rest)
        )
        for first, *rest in rows
    )
    return Markup(
        '<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(cells, body)


def sentence(text: str, kind: str = "") -> str:
    """A line of text; ``kind`` is ``lead``, ``result``, ``note`` or empty."""
    return str(Markup('<p class="{}">{}</p>').format(kind, text))


def alert(text: str) -> str:
    """The answer to a user's mistake."""
    line = " ".join(text.splitlines())
    return str(Markup('<p class="alert" role="alert">{}</p>').format(line))


def progress(beat: Beat) -> str:
    """A line about a computation that is running or waiting."""
    if beat.seconds is None:
        return sentence("Waiting for another computation on this page to end.", "note")
    return sentence(f"Computing: {beat.passes:,} forward passes, {beat.seconds:.0f} s.", "note")


def header(subject: Subject) -> str:
    """Title and facts of the classifier."""
    facts = Markup("").join(
        Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, text) for name, text in subject.facts()
    )
    text = (
        "One classifier, its energies, and what they do: attack an image, generate one from nothing but a class, move "
        "one to another class. Everything is computed on this machine; nothing is sent anywhere."
    )
    return str(Markup("<h1>trilemma demo</h1><p class='lead'>{}</p><dl>{}</dl>").format(text, facts))


def offered(subject: Subject) -> str:
    """The test images as buttons; a sentence if there are none."""
    if subject.offered is None:
        return sentence(subject.missing, "note")
    names = subject.clf.class_names
    buttons = Markup("").join(
        Markup(
            '<button type="button" class="pick" data-index="{}" title="{}"><img src="{}" alt="{}"></button>'
        ).format(index, names[label], png(pixels), f"test image {index + 1}: {names[label]}")
        for index, (pixels, label) in enumerate(
            zip(subject.offered.float_images(), subject.offered.labels.tolist(), strict=True)
        )
    )
    return str(Markup('<div class="picks">{}</div>').format(buttons))


def chosen_image(pixels: Tensor, note: str) -> str:
    """The image that the user works on."""
    return str(
        Markup('<div class="chosen">{}<p>{}</p></div>').format(picture(pixels, "", "your image"), note)
    )


def _answer_table(
    names: Sequence[str], y: str, columns: Sequence[tuple[str, Answer]], joint: Sequence[float] | None = None
) -> Markup:
    """Class, confidence and energies of two images beside each other."""
    (first, before), (second, after) = columns

    def energy(name: str, low: float, high: float) -> tuple[str, ...]:
        change = high - low
        return name, number(low), number(high), ("+" if change > 0 else "") + number(change)

    return table(
        ("", first, second, "change"),
        (
            ("class", names[before.label], names[after.label], ""),
            ("confidence", percent(before.confidence), percent(after.confidence), ""),
            energy("E(x)", before.marginal, after.marginal),
            energy(f"E(x, {y})", before.joint, after.joint),
        ),
    )


def attacked(subject: Subject, result: Attacked) -> str:
    """The result of an attack."""
    names = subject.clf.class_names
    y, before, after = names[result.label], names[result.before.label], names[result.after.label]
    threat = threat_words({"norm": result.threat.norm, "radius": result.threat.radius})
    if result.after.label != result.label:
        verdict = f"The attack succeeds: {y} is classified as {after}."
        if result.before.label != result.label:
            verdict = f"The image is classified as {before} before any attack, and as {after} after it."
    else:
        verdict = f"The attack fails: the image is still classified as {after}."
    pair = torch.stack([result.original, result.adversarial])
    scale = float(difference_scale(pair[:1], pair[1:]))
    return str(
        Markup(sentence(verdict, "result"))
        + pictures(
            [
                (
                    result.original,
                    f"before: {before}, {percent(result.before.confidence)}",
                    "image before the attack",
                ),
                (
                    result.adversarial,
                    f"after: {after}, {percent(result.after.confidence)}",
                    "image after the attack",
                ),
                (
                    difference_map(pair[:1], pair[1:])[0],
                    f"difference, \N{PLUS-MINUS SIGN}{scale:.2g}",
                    "difference map",
                ),
            ]
        )
        + _answer_table(names, y, (("before", result.before), ("after", result.after)))
        + Markup(
            sentence(
                f"{result.attack}; {threat}; distance {result.distance:.3g}. "
                f"E(x, {y}) is that of the class that the attack leads away from; a lower E(x) means that the "
                "classifier rates the image as more like its training images.",
                "note",
            )
        )
    )


def live(subject: Subject, label: int, frames: Sequence[Frame]) -> str:
    """Chains as they are now, above the energy of each since the start."""
    frame = frames[-1]
    shown = [(pixels, "", f"chain {number + 1}") for number, pixels in enumerate(frame.images[:LIVE])]
    return str(
        Markup(sentence(f"Step {frame.step} of {frame.steps}", "result"))
        + pictures(shown, "many")
        + _chart(subject, label, frames)
    )


def _chart(subject: Subject, label: int, frames: Sequence[Frame]) -> Markup:
    """E(x, y) of each chain over the steps as SVG, on the scale of :func:`draw_chain_energies` if that is known."""
    values = torch.stack([frame.joint for frame in frames])
    statistics, (width, height), name = subject.clf.statistics, CHART, subject.clf.class_names[label]
    known = "energy_mean" in statistics
    drawn, edges = values, torch.empty(0)
    if known:
        mean, std = (float(statistics[key][label]) for key in ("energy_mean", "energy_std"))
        drawn, edges = _symmetric_log((values - mean) / std), torch.tensor([-BAND, BAND])
    low, high = (float(edge) for edge in torch.cat([drawn.flatten(), edges]).aminmax())
    heights = 8 + (height - 16) * (high - drawn) / max(high - low, 1e-6)
    parts = []
    if known:
        top, bottom = (8 + (height - 16) * (high - edge) / max(high - low, 1e-6) for edge in (BAND, -BAND))
        template = '<rect class="band" x="0" y="{:.1f}" width="{}" height="{:.1f}"/>'
        parts.append(Markup(template.format(top, width, bottom - top)))
    for chain in heights.T.tolist():
        places = [width * frame.step / max(frame.steps, 1) for frame in frames]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(places, chain, strict=True))
        parts.append(Markup('<polyline class="chain" points="{}"/>').format(points))
    words = f"E(x, {name}) of each chain, now {number(float(values[-1].mean()))} on average"
    if known:
        words += f"; in the band are two standard deviations around the training images of {name}"
    return Markup(
        '<figure class="chart"><svg viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
        "<figcaption>{}.</figcaption></figure>"
    ).format(width, height, words, Markup("").join(parts), words)


def _symmetric_log(values: Tensor) -> Tensor:
    """Values as they are up to twice :data:`BAND`, and beyond by their logarithm."""
    limit = 2 * BAND
    return torch.where(
        values.abs() <= limit, values, values.sign() * limit * (1 + (values.abs() / limit).log())
    )


def generated(subject: Subject, result: Generated) -> str:
    """Generated images, the way of their chains, and their energies."""
    names, statistics = subject.clf.class_names, subject.clf.statistics
    shown = [
        (
            pixels,
            f"{names[answer.label]}, {percent(answer.confidence)}",
            f"generated image of {names[result.label]}",
        )
        for pixels, answer in zip(result.images, result.answers, strict=True)
    ]
    agreeing = sum(answer.label == result.label for answer in result.answers)
    label = names[result.label]
    text = f"{agreeing} of {len(shown)} generated images are classified as {label} by the classifier itself."
    chains = result.chains
    parts = [
        Markup(sentence(text, "result")),
        pictures(shown, "many"),
        figure(
            lambda theme: draw_trajectories(chains.images, chains.steps, chains.labels, names, theme),
            "chains on their way from the start to the sample",
            "wide",
        ),
    ]
    if "energy_mean" in statistics and chains.steps[-1] > 0:
        means, stds = (statistics[key].cpu() for key in ("energy_mean", "energy_std"))
        parts.append(
            figure(
                lambda theme: draw_chain_energies(
                    result.joint, chains.steps, chains.labels, means, stds, theme
                ),
                "energy of the chains over the steps",
            )
        )
    energy = number(sum(answer.joint for answer in result.answers) / len(result.answers))
    parts.append(
        Markup(sentence(f"{result.about}; E(x, {names[result.label]}) is {energy} on average.", "note"))
    )
    return str(Markup("").join(parts))


def counterfactual(subject: Subject, result: Counterfactuals, answers: Sequence[Answer]) -> str:
    """An image, its counterfactual and the way between them; ``answers`` of both, with E(x, target)."""
    names, trajectory = subject.clf.class_names, result.trajectories[0]
    first, target, final = (
        names[int(labels[0])] for labels in (result.original_labels, result.target_labels, result.labels)
    )
    distance = f"{norm_words(result.settings['norm'])} distance {float(result.distances[0]):.3g}"
    if first == target:
        verdict = f"The image is classified as {target} already, so that it stays as it is."
    elif bool(result.success[0]):
        verdict = f"{first} becomes {target} at {distance}."
    else:
        verdict = f"No {target} was found: the result is classified as {final}, at {distance}."
    before, after = result.originals[0], result.images[0]
    pair = torch.stack([before, after])
    scale = float(difference_scale(pair[:1], pair[1:]))
    along = "step" if "budget" in result.settings else "distance"
    way = {**trajectory.values, "step": [float(step) for step in trajectory.steps]}
    frames = [
        (image / 255, f"{along} {_short(way[along][step])}", f"image at {along} {_short(way[along][step])}")
        for image, step in zip(trajectory.frames, trajectory.frame_steps, strict=True)
    ]
    return str(
        Markup(sentence(verdict, "result"))
        + pictures(
            [
                (before, f"original: {first}", "original image"),
                (after, f"result: {final}", "counterfactual image"),
                (
                    difference_map(pair[:1], pair[1:])[0],
                    f"difference, \N{PLUS-MINUS SIGN}{scale:.2g}",
                    "difference map",
                ),
            ]
        )
        + _answer_table(names, target, (("original", answers[0]), ("result", answers[1])))
        + Markup(sentence("On the way:", "note"))
        + pictures(frames, "many")
        + figure(
            lambda theme: draw_way(way, (first, target), along, theme), "energies and confidence on the way"
        )
    )


def _short(value: float) -> str:
    return f"{value:.3g}"


def plane(result: Plane, marks: dict[str, EnergyPoints]) -> str:
    """The plane of the energies."""
    text = (
        "Each point is an image. On the line the loss E(x, y) - E(x) is 0; above it the classifier is less sure of the "
        "class y. Attacks lift images off the line; samples of a classifier that generates lie among the clean images."
    )
    hint = "" if marks else " Choose an image above, and it is drawn among them."
    return str(
        figure(lambda theme: draw_plane(result.points, marks, theme), "plane of E(x) and E(x, y)", "large")
        + Markup(sentence(text + hint, "note"))
        + Markup(sentence(f"{result.about}.", "note"))
    )
