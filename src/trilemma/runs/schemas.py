"""What readers require of the records of a run folder. Further keys are allowed.

A record that differs is damaged, or was written by another program: it is left out, and a line says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from trilemma.units import parse_fraction


def _radius(value: object) -> object:
    parse_fraction(value)
    return value


Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Some = Annotated[int, Field(ge=1)]
Radius = Annotated[Any, AfterValidator(_radius)]


class _Record(BaseModel):
    # Strict: a text or a truth value is no number.
    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


class Checkpoint(_Record):
    """What a result records of its classifier."""

    checkpoint: str = ""
    epoch: Number | None = None
    step: Count | None = None
    weights: str | None = None
    classes: str | None = None
    recipe: str | None = None
    method: str | None = None
    name: str | None = None
    select: str | None = None


class Threat(_Record):
    """A threat model."""

    norm: str
    radius: Radius


class Data(_Record):
    """The images that a row was measured on."""

    name: str
    split: str
    images: str
    extractor: str | None = None


class Finding(_Record):
    """A finding of the lint."""

    model_config = ConfigDict(extra="forbid")

    name: str
    severity: str
    seen: str
    count: Count
    of: Count
    means: str
    do: str


class Lint(_Record):
    """The record of the lint."""

    images: Count
    findings: list[Finding]


class Bin(_Record):
    """A bin of a reliability diagram."""

    count: Count
    confidence: Number | None
    accuracy: Number | None


class OneClass(_Record):
    """The accuracy of one class."""

    class_: Count = Field(alias="class")
    value: Share
    lower: Share
    upper: Share
    count: Count


class Confused(_Record):
    """A frequent mistake."""

    true: Count
    answer: Count
    count: Count


class Origin(_Record):
    """The samples that a row measures."""

    name: str
    origin: str


class Facts(_Record):
    """Further values of a row, as far as pages show them."""

    note: str = ""
    attacked: Count = 0
    class_names: list[str] = []
    bins: Annotated[list[Bin], Field(min_length=1)] | None = None
    per_class: list[OneClass] = []
    most_confused: list[Confused] = []
    confusion: list[list[Count]] | None = None
    names: dict[str, str] = {}
    sets: dict[str, dict[str, Any]] = {}
    samples: Origin | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Facts:
        size = len(self.class_names)
        named = [*(entry.class_ for entry in self.per_class)]
        named += [k for pair in self.most_confused for k in (pair.true, pair.answer)]
        if any(k >= size for k in named):
            raise ValueError("a class without a name")
        if self.confusion is not None and [len(line) for line in self.confusion] != [size] * size:
            raise ValueError("a confusion matrix of another size than the class names")
        for metrics in self.sets.values():
            if any(name not in metrics for name in ("count", *self.names)):
                raise ValueError("sets of images without their metrics")
            if not all(_is_number(value) for name, value in metrics.items() if name != "intervals"):
                raise ValueError("a metric that is not a number")
        if self.sets and self.samples is None:
            raise ValueError("sets of images without the name of the samples")
        return self


class Purification(_Record):
    """The purification of a row."""

    steps: Count
    attack: str | None = None


class ResultRow(_Record):
    """A row of ``trilemma evaluate``. A row without a quantity is an accuracy."""

    protocol: Annotated[str, Field(min_length=1)]
    version: int
    quantity: str = "accuracy"
    better: Literal["higher", "lower"] = "higher"
    value: Number
    lower: Number | None
    upper: Number | None
    chance: Number | None = None
    also: dict[str, Number | None] = {}
    count: Some
    data: Data
    threat: Threat | None
    seed: int | None
    seconds: Number | None = None
    device: str = ""
    parameters: Number | None = None
    checkpoint: Checkpoint | None = None
    purification: Purification | None = None
    lint: Lint | None = None
    facts: Facts = Facts()

    @model_validator(mode="after")
    def _plausible(self) -> ResultRow:
        if self.quantity == "accuracy" and not 0 <= self.value <= 1:
            raise ValueError("an accuracy outside [0, 1]")
        if (self.lower is None) != (self.upper is None):
            raise ValueError("an interval with one end")
        return self


class SampleMetrics(_Record):
    """Metrics of a set of images."""

    count: Count
    named: Share | None
    named_lower: Number | None
    named_upper: Number | None
    distance: Number | None


class SampleFigures(_Record):
    """Metrics of starts, samples and real images."""

    start: SampleMetrics
    sample: SampleMetrics
    real: SampleMetrics | None = None


class Reference(_Record):
    """The training images that samples are compared with."""

    name: str
    images: Count


class SampleRecord(_Record):
    """A record of ``trilemma generate``."""

    name: Annotated[str, Field(min_length=1)]
    start: str
    sampler: str
    energy: str
    steps: Count
    per_class: Some
    seed: int
    class_names: list[str] = []
    checkpoint: Checkpoint | None = None
    namer: Checkpoint | None
    reference: Reference | None
    figures: SampleFigures


class Spread(_Record):
    """Mean and quantiles of an energy."""

    mean: Number
    p05: Number
    p95: Number


class Energies(_Record):
    """Both energies of a set of images."""

    marginal: Spread
    joint: Spread


class Distance(_Record):
    """A distance in both energies."""

    marginal: Number
    joint: Number


class Value(_Record):
    """A share."""

    value: Share


class Shift(_Record):
    """How an attack moves the energies."""

    shift: Spread
    abnormal: Value


class Move(Energies):
    """How one attack moves the energies."""

    about: str
    broken: Value
    risen: Value
    delta_marginal: Spread
    delta_joint: Spread
    distance: Distance


class Moves(_Record):
    """How each attack moves the energies; without images, nothing else."""

    count: Count
    clean: Energies | None = None
    attacks: dict[str, Move] = {}

    @model_validator(mode="after")
    def _complete(self) -> Moves:
        if self.count and self.clean is None:
            raise ValueError("attacks without the energies of clean images")
        return self


class Place(_Record):
    """The images of a diagnosis."""

    name: str
    split: str


class Diagnosis(_Record):
    """The record of ``trilemma diagnose``."""

    count: Count
    data: Place
    attack: str
    generated: str
    threat: Threat | None
    checkpoint: Checkpoint | None = None
    sets: dict[str, Energies]
    distances: dict[str, Distance]
    shift: Shift
    moves: Moves | None = None


class Status(_Record):
    """The contents of ``status.json``; ``lines`` are the numbers of lines of the logs, by file name."""

    status: str
    lines: dict[str, Count] = {}
    selected: bool = False
    step: Count | None = None
    epochs: Number | None = None
    minutes: Number | None = None


class Environment(_Record):
    """The contents of ``environment.json``."""

    recipe: str | None = None


class Event(_Record):
    """A line of ``events.jsonl``."""

    kind: str
    step: Count | None = None
    epoch: Number | None = None
    name: str = ""
    message: str = ""


def check(schema: type[BaseModel], content: Mapping[str, Any]) -> None:
    """Checks a record.

    Raises:
        ValueError: the record lacks a key or has a value of another type; the message has the key.
    """
    try:
        schema.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ").lower()
        raise ValueError(f"has no valid {key}: {reason}" if key else f"is not consistent: {reason}") from None


def check_metrics(line: Mapping[str, Any]) -> None:
    """Checks a line of ``metrics.jsonl``: kind, step and epoch; all other values, and those of ``terms``, are numbers.

    A number that is not finite is allowed, since an alarm reports it; not as epoch.

    Raises:
        ValueError: as of :func:`check`.
    """
    if not isinstance(line.get("kind"), str):
        raise ValueError("has no kind")
    if type(line.get("step")) is not int or line["step"] < 0:
        raise ValueError("has no step")
    epoch = line.get("epoch")
    if epoch is None or not _is_number(epoch) or not math.isfinite(epoch):
        raise ValueError("has no epoch")
    for key, value in line.items():
        values = value.values() if key == "terms" and isinstance(value, dict) else [value]
        if key != "kind" and not all(isinstance(number, bool) or _is_number(number) for number in values):
            raise ValueError(f"has a {key} that is not a number")


def ordered_metrics() -> Callable[[Mapping[str, Any]], None]:
    """Returns a function as :func:`check_metrics` that is called with each line in turn, and checks their order too.

    Of lines of steps, and of those of evaluations, each has a later step than the one before: what is undone or run
    again is removed. Lines that do not were written by two processes, or copied.
    """
    latest = {"step": -1, "epoch": -1}

    def check(line: Mapping[str, Any]) -> None:
        check_metrics(line)
        kind, step = line["kind"], line["step"]
        if step <= latest.get(kind, -1):
            raise ValueError(
                f"is of step {step}, after one of step {latest[kind]}: written twice, or by two processes"
            )
        if kind in latest:
            latest[kind] = step

    return check


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
