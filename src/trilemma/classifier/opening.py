"""Opens classifiers of every kind: stored ones, published ones, and the user's own networks and weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trilemma.classifier import file as classifier_file
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.foreign_weights import (
    StoredWeights,
    architecture,
    load_weights,
    named_as_in,
    read_weights,
)
from trilemma.classifier.output import accepted_shape, logits_in, raised
from trilemma.config.overrides import parse_overrides
from trilemma.config.registry import NETWORKS
from trilemma.data.class_names import names_by_order, numbers
from trilemma.data.image_set import ImageSet
from trilemma.data.sources import load_images
from trilemma.errors import CheckpointError, ConfigError, ImageError, NetworkError, describe
from trilemma.files import CLASSIFIER, file_sha256
from trilemma.networks.create import create_network
from trilemma.networks.own_network import own_network
from trilemma.printing import print_message
from trilemma.threat import Threat

Data = str | Path | ImageSet
# Number and names of the classes; the names are None if only the number is known.
Classes = tuple[int, tuple[str, ...] | None]
# Mean and standard deviation.
Normalisation = tuple[Sequence[float], Sequence[float]]


def from_weights(source: str, file: Path | None) -> Classifier:
    """The classifier of a published name, or of a file that says which network it is.

    Args:
        source: the name, or the path as the user gave it.
        file: the file; ``None`` for a published name.

    Raises:
        CheckpointError: the file does not say which network its weights belong to.
        UserError: the file or the published network cannot be loaded.
    """
    if file is None:
        publisher, _, name = source.partition(":")
        return PUBLISHED[publisher](name)
    if CLASSIFIER.matches(file):
        return Classifier.load(file)
    stored = read_weights(file)
    if stored.metadata is None:
        raise CheckpointError(
            f"{source}: holds weights but does not say which network they belong to; "
            f"add --network NAME (`trilemma list networks`) or --model MODULE:FUNCTION{architecture(stored)}"
        )
    if stored.metadata.network is None:
        raise CheckpointError(
            f"{source}: exported from a network that is not in trilemma's registry; add --model MODULE:FUNCTION"
        )
    _print_notes(stored)
    network = classifier_file.rebuild_network(stored.metadata, file, stored.tensors)
    known = _stored_classes(stored) or (stored.metadata.num_classes, None)
    return _wrap(network, stored, known, network_config=stored.metadata.network.options())


def from_function(
    function: str | nn.Module | Callable[[], Any],
    file: Path | None,
    data: Data | None,
    *,
    classes: Classes | None,
    normalisation: Normalisation | None,
    size: int | None,
    output: str | int | None,
) -> Classifier:
    """The classifier around the user's network, with the weights of ``file`` if it is given.

    Args:
        function: as of :func:`trilemma.networks.own_network.own_network`; a network or a :class:`Classifier`.
        file: a classifier file or a file of weights.
        data: determines classes and image shape where nothing else does.
        classes, normalisation, size, output: as of :class:`trilemma.classifier.source.ClassifierSource`.

    Raises:
        UserError: an argument is invalid, or two of them contradict each other.
    """
    module = own_network(function)
    given: dict[str, Any] = {
        "classes": classes, "normalisation": normalisation, "size": size, "output": output
    }  # fmt: skip
    if file is not None and CLASSIFIER.matches(file):
        return with_options(Classifier.load(file, _inner(module)), str(file), **given)
    stored = None if file is None else _read(file)
    if isinstance(module, Classifier):
        if stored is not None and load_weights(module.network, stored) is not None:
            raise _two_normalisations(stored, "the classifier of --model")
        return with_options(module, "the trilemma.Classifier of --model", **given)
    known = classes or _stored_classes(stored)
    images = None if data is None or known is not None else _open(data, size)
    shape = _shape(images, stored)
    if size is not None:
        channels = shape[0] if shape else None if normalisation is None else len(normalisation[0])
        shape = _resized(module, size, channels)
    if known is None:
        known = _classes_of(images) or _probe(module, shape, output)
    return name_by_order(_wrap(module, stored, known, normalisation, shape, output), images)


def from_name(
    network: str,
    file: Path,
    data: Data | None,
    *,
    classes: Classes | None,
    normalisation: Normalisation | None,
    size: int | None,
    output: str | int | None,
) -> Classifier:
    """The classifier of a registered network ``NAME[,key=value,...]`` with the weights of ``file``.

    The number of classes and channels follow from the shapes of the weights. Arguments and exceptions as of
    :func:`from_function`.
    """
    if CLASSIFIER.matches(file):
        raise ConfigError(
            f"--network {network}: already stored in the classifier file {file}; remove the option"
        )
    options = network_options(network)
    stored = _read(file)
    count, channels = dimensions(options, stored)
    named = _stored_classes(stored)
    images = None if data is None or (classes and count and channels and size) else _open(data, size)
    stated = classes or named or _classes_of(images)
    known = stated if count is None or (stated is not None and stated[0] == count) else (count, None)
    if classes is not None and known != classes:
        raise ConfigError(f"--classes: {classes[0]} classes, but the weights of {file} have {count} outputs")
    shape = _shape(images, stored)
    channels = channels or (shape[0] if shape else None)
    if size is not None and channels is not None:
        shape = (channels, size, size)
    if known is None or channels is None:
        # Weights of another network do not show it either.
        load_weights(create_network(options, 2, (channels or 3, 32, 32)), stored)
        raise ConfigError(
            f"--network {network}: the weights of {file} do not show the number of classes; add --data or --classes"
        )
    module = create_network(options, known[0], shape or (channels, 32, 32))
    clf = _wrap(
        module, stored, known, normalisation, shape, output, network_config=options.model_dump(mode="json")
    )
    return clf if classes is not None or named is not None else name_by_order(clf, images)


def with_options(
    clf: Classifier,
    source: str,
    *,
    classes: Classes | None,
    normalisation: Normalisation | None,
    size: int | None,
    output: str | int | None,
) -> Classifier:
    """A classifier that is complete, with the arguments that can be added to it: classes, size and output.

    Raises:
        ConfigError: an argument contradicts what the classifier stores.
        ImageError: the network does not take images of this size.
    """
    if normalisation is not None:
        raise ConfigError(f"--mean, --std: {source} stores its own normalisation; remove both options")
    if classes is not None:
        count, names = classes
        numbered = clf.class_names == numbers(clf.num_classes)
        if count != clf.num_classes or (names not in (None, clf.class_names) and not numbered):
            stored = ", ".join(clf.class_names[:5]) + (", ..." if clf.num_classes > 5 else "")
            raise ConfigError(
                f"--classes: {source} has {clf.num_classes} classes ({stored}); remove the option"
            )
        clf.class_names = names or clf.class_names
    if output is not None:
        clf.output = output
    if size is not None and (clf.image_shape is None or clf.image_shape[1:] != (size, size)):
        channels = clf.image_shape[0] if clf.image_shape else None if clf.mean is None else clf.mean.numel()
        clf.image_shape = _resized(clf.network, size, channels, clf.image_shape)
    return clf


def network_options(text: str) -> Any:
    """The options of ``NAME[,key=value,...]``.

    Raises:
        UnknownNameError: the network is not registered.
        ConfigError: an option is unknown or has an invalid value.
    """
    from pydantic import ValidationError

    name, *settings = text.split(",")
    options = NETWORKS.options(name)
    try:
        return options.model_validate({"name": name, **parse_overrides(settings)})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        allowed = ", ".join(field for field in options.model_fields if field != "name")
        raise ConfigError(
            f"--network {text}: {key}: {first['msg'].lower()}; options of {name}: {allowed}"
        ) from None


def _wrap(
    network: nn.Module,
    stored: StoredWeights | None,
    classes: Classes,
    normalisation: Normalisation | None = None,
    shape: tuple[int, int, int] | None = None,
    output: str | int | None = None,
    network_config: dict[str, Any] | None = None,
) -> Classifier:
    """Loads the weights, and returns a classifier with what the arguments and the metadata of the file state."""
    in_file = None if stored is None else load_weights(network, stored)
    if stored is not None and in_file is not None:
        if normalisation is not None:
            raise _two_normalisations(stored, "--mean and --std")
        normalisation = in_file
        if stored.metadata is None:
            note(f"{stored.path}: using its normalisation, mean {in_file[0]}, std {in_file[1]}")
    mean, std = normalisation or (None, None)
    metadata = None if stored is None else stored.metadata
    threat = None if metadata is None else metadata.threat
    count, names = classes
    more = {} if output is None else {"output": output}
    clf = Classifier(
        network, count, mean, std, class_names=names,
        image_shape=shape or (None if metadata is None else metadata.shape),
        threat=None if threat is None else Threat(threat.norm, threat.radius), network_config=network_config, **more,
    )  # fmt: skip
    clf.about = {} if metadata is None else metadata.about.content()
    return clf


def _read(file: Path) -> StoredWeights:
    """The weights of a file, after printing what was chosen or converted."""
    stored = read_weights(file)
    _print_notes(stored)
    return stored


def _print_notes(stored: StoredWeights) -> None:
    for line in stored.notes:
        note(f"{stored.path}: {line}")


def note(text: str) -> None:
    """Prints a line on standard error about a choice that was made while a classifier was opened."""
    print_message(text)


def _two_normalisations(stored: StoredWeights, other: str) -> ConfigError:
    return ConfigError(
        f"{stored.path}: contains a normalisation, which conflicts with {other}; use only one of them"
    )


def _inner(network: nn.Module) -> nn.Module:
    """The network of a classifier; a plain network is returned as it is."""
    return network.network if isinstance(network, Classifier) else network


def _open(data: Data, size: int | None) -> ImageSet:
    return data if isinstance(data, ImageSet) else load_images(data, size=size)


def _classes_of(images: ImageSet | None) -> Classes | None:
    return None if images is None else (images.num_classes, names_by_order(images.class_names)[0])


def name_by_order(clf: Classifier, images: ImageSet | None) -> Classifier:
    """The classifier, with a note in ``about`` if its class names are only those of the data in their order."""
    names, by = ((), "") if images is None else names_by_order(images.class_names)
    if by and names == clf.class_names:
        clf.about["class_names"] = by
    return clf


def _stored_classes(stored: StoredWeights | None) -> Classes | None:
    """The classes that the metadata of a file name; ``None`` if there are none."""
    names = None if stored is None or stored.metadata is None else stored.metadata.class_names
    return None if names is None else (len(names), tuple(names))


def _shape(images: ImageSet | None, stored: StoredWeights | None) -> tuple[int, int, int] | None:
    """The image shape that the metadata state, else that of the data; ``None`` if there are none."""
    if stored is not None and stored.metadata is not None and stored.metadata.shape is not None:
        return stored.metadata.shape
    return None if images is None else images.image_shape


def _probe(network: nn.Module, shape: tuple[int, int, int] | None, output: str | int | None) -> Classes:
    """The number of logits that the network returns for a black image.

    Raises:
        ConfigError: no image shape is known, or the output is not ``[1, K]``.
    """
    advice = "add --classes with their number or names, --size N (its outputs are counted), or --data"
    if shape is None:
        raise ConfigError(f"the number of classes of this network is not known; {advice}")
    logits = logits_in(_forward(network, shape), output)
    if logits.ndim != 2:
        raise NetworkError(f"network: returned {list(logits.shape)} for 1 image; return logits [N, K]")
    return logits.shape[1], None


def _resized(
    network: nn.Module, size: int, channels: int | None, native: tuple[int, int, int] | None = None
) -> tuple[int, int, int]:
    """The shape of images of ``size`` x ``size``, after a check with a black image that the network takes it.

    Args:
        network: the network.
        size: side in pixels.
        channels: number of channels; ``None`` for the first of 3 and 1 that the network takes.
        native: the image shape that the network is known to take, for the message.

    Raises:
        ImageError: the network takes images of another size.
        NetworkError: it raises an exception for another reason.
    """
    failure: Exception | None = None
    for count in (3, 1) if channels is None else (channels,):
        try:
            _forward(network, (count, size, size))
        # Any exception: networks refuse sizes with assertions and errors of many types.
        except Exception as error:
            failure = failure or error
        else:
            return count, size, size
    assert failure is not None
    image = torch.zeros(1, channels or 3, size, size)
    with inner_loop(network):
        fits = native or accepted_shape(network, image, failure)
    if fits is None:
        raise raised(failure, image) from failure
    remedy = f"; use --size {fits[1]}" if fits[1] != size else ""
    raise ImageError(
        f"--size {size}: the network cannot take images of {size}x{size} ({describe(failure)}){remedy}"
    ) from failure


@torch.no_grad()
def _forward(network: nn.Module, shape: tuple[int, int, int]) -> Any:
    parameter = next(network.parameters(), None)
    image = torch.zeros(1, *shape)
    if parameter is not None and parameter.is_floating_point():
        image = image.to(parameter)
    with inner_loop(network):
        return network(image)


def dimensions(options: Any, stored: StoredWeights) -> tuple[int | None, int | None]:
    """Number of classes and of image channels, from the shapes of the weights; ``None`` where they do not show it.

    The network is created with two numbers of classes and of channels; the tensors whose shape changes show which
    dimension of the stored tensors to read.
    """
    base, other = _created(options, 2, 1), (_created(options, 3, 1), _created(options, 2, 2))
    tensors = named_as_in(base, stored)
    shapes = {name: value.shape for name, value in base.state_dict().items()}
    found: list[int | None] = []
    for changed in other:
        sizes = {
            tensors[name].shape[axis]
            for name, value in changed.state_dict().items()
            if name in tensors and tensors[name].ndim == value.ndim
            for axis in range(value.ndim)
            if value.shape[axis] != shapes[name][axis]
        }
        found.append(sizes.pop() if len(sizes) == 1 else None)
    return found[0], found[1]


def _created(options: Any, num_classes: int, channels: int) -> nn.Module:
    """A network for its shapes only: without memory for the weights where the network allows it."""
    shape = (channels, 32, 32)
    if NETWORKS.row(options.name).built_in:
        try:
            with torch.device("meta"):
                return create_network(options, num_classes, shape)
        # Some networks compute with values while they are created, which tensors without memory do not have.
        except (NotImplementedError, RuntimeError):
            pass
    with torch.random.fork_rng(devices=()):
        return create_network(options, num_classes, shape)


def _from_timm(name: str) -> Classifier:
    from trilemma.networks.timm_network import timm_classifier_parts

    network, num_classes, mean, std, shape = timm_classifier_parts(name)
    # A saved classifier file contains the weights, so that loading it must not download timm's weights again.
    config = {"name": "timm", "model": name, "pretrained": False}
    return Classifier(network, num_classes, mean, std, image_shape=shape, network_config=config)


def _from_robustbench(name: str) -> Classifier:
    from trilemma.classifier.robustbench import IMAGE_SHAPE, find

    found = find(name)
    options = network_options(found.entry.network)
    network = create_network(options, found.num_classes, IMAGE_SHAPE)
    # A normalisation in the file is the one that the weights were trained with.
    mean, std = load_weights(network, _read(found.path)) or found.entry.normalisation or (None, None)
    clf = Classifier(
        network, found.num_classes, mean, std, image_shape=IMAGE_SHAPE,
        threat=Threat(found.norm, found.radius), network_config=options.model_dump(mode="json"),
    )  # fmt: skip
    clf.about = {"data": found.data, "file": str(found.path), "sha256": file_sha256(found.path)}
    return clf


def _from_hub(name: str) -> Classifier:
    from trilemma.classifier.hub import hub_classifier

    return hub_classifier(name)


PUBLISHED: dict[str, Callable[[str], Classifier]] = {
    "timm": _from_timm,
    "robustbench": _from_robustbench,
    "hub": _from_hub,
}
