"""Models of the JSON headers of files of tensors: a header is input, so it is validated before anything is built.

A header that another program wrote may hold anything. The models are strict (``"10"``, ``10.0`` and ``true`` are no
number of classes) and ignore keys of later versions. This module imports no torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from trilemma.printing import quoted
from trilemma.units import MOST_CLASSES, check_radius, parse_norm

# Pixel values of one image: 8192 x 8192 x 3, 0.8 GB as float32.
MOST_PIXEL_VALUES = 3 * 8192**2
_TYPES = ("str", "int", "float", "bool")


def _check_text(text: str) -> str:
    # JSON can hold half of a character, which is no name.
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds half of a Unicode character (a surrogate)")
    return text


Text = Annotated[str, AfterValidator(_check_text)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
ImageShape = Annotated[list[Count], Field(min_length=3, max_length=3)]
Constants = Annotated[list[float], Field(min_length=1)]


class Header(BaseModel):
    """Base class of headers: frozen, strict, without NaN and infinity."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, extra="ignore")


class StoredThreat(Header):
    """Norm and radius of a :class:`trilemma.Threat`; another key would change its meaning, so it is refused."""

    model_config = ConfigDict(extra="forbid")

    norm: str
    radius: str | float

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_radius(parse_norm(self.norm), self.radius)
        return self


class StoredNetwork(Header):
    """Registry name of a network, and its options, which the network's own class validates."""

    model_config = ConfigDict(extra="allow")

    name: str

    def options(self) -> dict[str, Any]:
        """The name and the options."""
        return self.model_dump()


class About(Header):
    """What a classifier records of its origin; further keys are the user's own."""

    model_config = ConfigDict(extra="allow")

    recipe: str | None = None
    data: str | None = None
    method: str | None = None
    checkpoint: str | None = None
    class_names: str | None = None
    select: str | None = None
    step: int | None = None
    epoch: float | None = None
    attack_steps: int | None = None
    chain: dict[str, str | float | int | bool | None] | None = None

    def content(self) -> dict[str, Any]:
        """The keys that are set."""
        return self.model_dump(exclude_unset=True)


class NetworkHeader(Header):
    """What a file of weights says about its network.

    Attributes:
        num_classes: K.
        class_names: K names; ``None`` for the class numbers.
        image_shape: (C, H, W); ``None`` for any that the network takes.
        threat: the threat model that the classifier was trained for.
        network: the network in the registry; ``None`` for one that is not in it.
        about: the origin of the classifier.
    """

    num_classes: Annotated[int, Field(ge=2, le=MOST_CLASSES)]
    class_names: list[Text] | None = None
    image_shape: ImageShape | None = None
    threat: StoredThreat | None = None
    network: StoredNetwork | None = None
    about: About = About()

    def content(self) -> dict[str, Any]:
        """The header as JSON values."""
        return {**self.model_dump(), "about": self.about.content()}

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """The image shape as a tuple."""
        if self.image_shape is None:
            return None
        channels, height, width = self.image_shape
        return channels, height, width

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(f"{len(self.class_names)} class names for {self.num_classes} classes")
        if self.shape is not None:
            channels, height, width = self.shape
            if channels * height * width > MOST_PIXEL_VALUES:
                raise ValueError(f"images of {channels}x{height}x{width} are larger than this trilemma reads")
        return self


class HubHeader(NetworkHeader):
    """What ``config.json`` of a repository says about its weights.

    Attributes:
        mean, std: normalisation, one value per channel or one for all; ``None`` for none.
    """

    mean: Constants | None = None
    std: Constants | None = None

    @model_validator(mode="after")
    def _check_normalisation(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean without std, or std without mean")
        for name, values in (("mean", self.mean), ("std", self.std)):
            channels = None if self.image_shape is None else self.image_shape[0]
            if values is not None and channels is not None and len(values) not in (1, channels):
                raise ValueError(f"{len(values)} values of {name} for images of {channels} channels")
        return self


class ClassifierHeader(HubHeader):
    """The header of a classifier file, which has all keys of the first version.

    Attributes:
        output: key or index of the logits.
        weights: SHA-256 of the weights (:func:`trilemma.runs.digests.weights_digest`); earlier versions have none.
    """

    class_names: list[Text]
    image_shape: ImageShape | None
    mean: Constants | None
    std: Constants | None
    threat: StoredThreat | None
    network: StoredNetwork | None
    about: About
    output: str | int | None = None
    weights: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None


class ChainsHeader(Header):
    """The header of a file of chains.

    Attributes:
        class_names: one name per class.
        weights: digest of the classifier that was saved with them, as in its header; earlier versions have none.
    """

    class_names: Annotated[list[Text], Field(min_length=1)]
    weights: str | None = None


def problem(error: ValidationError) -> str:
    """The first of the errors of a header as one line: the key, what is wrong, and the value."""
    first = error.errors(include_url=False)[0]
    # Without the names of types, which pydantic adds for a value of several types.
    parts = [str(part) for part in first["loc"]]
    key = ".".join(part for part in parts if part.isdigit() or (part.isidentifier() and part not in _TYPES))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{key} is missing"
    if first["type"] == "value_error" and isinstance(first["input"], dict):
        # Of several keys together: the message names them.
        return f"{key}: {message}" if key else message
    if first["type"] in ("model_type", "dict_type"):
        message = "must be a mapping"
    message = message.replace("Input should be ", "must be ")
    return f"{key or 'the header'} = {quoted(first['input'])}: {message[:200]}"
