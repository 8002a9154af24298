"""Writes docs/config.md from the configuration's own classes, so that the page cannot drift from them.

python docs/generate_config.py          # writes the page
python docs/generate_config.py --check  # exits 1 if the page is not up to date
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from trilemma.config.config import Config
from trilemma.config.sections import AttackConfig, RegulariserConfig, Section, ThreatConfig
from trilemma.config.registry import METHODS, NETWORKS, Registry
from trilemma.units import PixelLength

PAGE = Path(__file__).with_name("config.md")

# Keys whose class gives no description. A test holds that each of these exists and has none.
MEANINGS = {
    "data.name": "a data set (`trilemma list datasets`), or `folder`",
    "threat.norm": "how far is measured by: the largest change of a pixel value, or the Euclidean length",
    "sampler.name": "step rule of the chain",
    "sampler.steps": "steps of the chain per training step",
    "sampler.start": "where a new chain begins",
    "update.name": "`sam`: adaptive sharpness-aware step; `awp`: adversarial weight perturbation; each two passes "
    "over the loss",
    "optimiser.name": "the optimiser of the weights",
    "optimiser.momentum": "momentum of `sgd`, first beta of `adam`",
    "optimiser.nesterov": "Nesterov momentum (`sgd`)",
    "optimiser.weight_decay": "L2 penalty on all weights",
    "schedule.name": "shape of the learning rate over the run",
    "augmentation.flip": "mirror left and right with probability 1/2",
    "monitors.overfitting": "watch delta energies for catastrophic and robust overfitting",
    "monitors.divergence": "watch for values that no healthy run has, and go back",
    "training.epochs": "passes over the training images",
    "training.batch_size": "images per step, over all processes together",
    "training.lr": "learning rate that the schedule multiplies",
    "training.seed": "seed of every random number of the run",
    "training.select": "held-out accuracy that chooses `best`; `auto`: `pgd-10` for methods that train on "
    "adversarial images, else `clean`; `last`: the newest, whatever its accuracy",
    "training.precision": "number format of the forward passes",
    "training.channels_last": "memory layout of the network; changes the speed only",
    "training.compile": "`torch.compile` the network",
    "regulariser.name": "the Delta Energy Regulariser",
}

HEAD = """# Configuration keys

<!-- Written by docs/generate_config.py from the configuration's classes; do not edit. -->

A recipe is a YAML file with the sections below. On the command line a key is written with dots,
`training.epochs=5`. An unknown key, a wrong type or an impossible combination is answered before any work begins.

- *Pixel units* are those of images in [0, 1]: `8/255` is eight grey levels of an 8-bit image. A *pixel length* is
  kept exactly as written, `8/255` or `0.3`.
- Every recipe needs `network` and `method`. A section that is a name alone may be written as one:
  `method: trades`.
- `null` as a default means: none, or (for `attack` and `sampler`) what the method brings, see
  [the last table](#what-a-method-brings).
"""


def key_types(model: type[BaseModel]) -> dict[str, Any]:
    """The annotations of a model's fields with everything that qualifies them."""
    hints = get_type_hints(model, include_extras=True)
    return {name: hints[name] for name in model.model_fields}


def type_words(hint: Any, whole: str = "") -> str:
    """A type in words; ``whole`` are the bounds of the whole field."""
    if hint == PixelLength:
        return "pixel length"
    origin = get_origin(hint)
    if origin is Annotated:
        registry = next((part for part in get_args(hint) if isinstance(part, Registry)), None)
        if registry is not None:
            return ", ".join(f"`{name}`" for name in registry.rows())
        return type_words(get_args(hint)[0], whole)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    if origin in (Union, UnionType):
        parts = []
        for part in get_args(hint):
            qualified = get_origin(part) is Annotated and part != PixelLength
            limit = bounds(get_args(part)[1:]) if qualified else whole
            parts.append("`null`" if part is NoneType else type_words(part, limit))
        return " or ".join(parts)
    if origin is tuple:
        return f"list of {type_words(get_args(hint)[0])}s"
    if origin is dict:
        return "mapping"
    return {bool: "true or false", int: "integer", float: "number", str: "text"}[hint] + whole


def bounds(metadata: Any) -> str:
    """``" in [0, 1)"`` or ``" > 0"`` from the constraints of a field."""
    low = next(
        (("[", m.ge) if isinstance(m, Ge) else ("(", m.gt) for m in metadata if isinstance(m, Ge | Gt)), None
    )
    high = next(
        (("]", m.le) if isinstance(m, Le) else (")", m.lt) for m in metadata if isinstance(m, Le | Lt)), None
    )
    if low and high:
        return f" in {low[0]}{low[1]}, {high[1]}{high[0]}"
    if low:
        return f" {'≥' if low[0] == '[' else '>'} {low[1]}"
    return ", not empty" if any(isinstance(m, MinLen) for m in metadata) else ""


def default_words(field: FieldInfo) -> str:
    """The default as it is written in YAML."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value is None:
        return "`null`"
    if value == () or value == {}:
        return "empty"
    return f"`{value}`"


def meaning(key: str, model: type[BaseModel]) -> str:
    """What a key means, by its class, a class above it, or :data:`MEANINGS`."""
    name = key.rpartition(".")[2]
    for above in model.__mro__:
        field = getattr(above, "model_fields", {}).get(name)
        if field is not None and field.description:
            return str(field.description)
    return MEANINGS[key]


def section_table(prefix: str, model: type[BaseModel], left_out: tuple[str, ...] = ()) -> str:
    """The table of one section."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, hint in key_types(model).items():
        field = model.model_fields[name]
        if name in left_out:
            continue
        key = f"{prefix}.{name}" if prefix else name
        kind = type_words(hint, bounds(field.metadata))
        rows.append(f"| `{key}` | {kind} | {default_words(field)} | {meaning(key, model)} |")
    return "\n".join(rows) if len(rows) > 2 else "No options."


def summary(model: type[BaseModel]) -> str:
    """The first line of a class's docstring, unless it is its base's."""
    own = model.__dict__.get("__doc__")
    return f"{own.splitlines()[0]}\n\n" if own else ""


def own_sections() -> dict[str, type[BaseModel]]:
    """Sections of the configuration whose keys do not depend on a name."""
    found: dict[str, type[BaseModel]] = {}
    for name, hint in key_types(Config).items():
        models = [
            part for part in (hint, *get_args(hint)) if isinstance(part, type) and issubclass(part, Section)
        ]
        if models and name not in ("method", "network"):
            found[name] = models[0]
    return found


def brought(name: str) -> str:
    """One row of the last table: the attack and sampler that a method fills in at radius 8/255."""
    options = METHODS.options(name).model_validate({"name": name})
    attack = options.resolved_attack(AttackConfig(), ThreatConfig(radius="8/255"))
    sampler = options.resolved_sampler(Config.model_fields["sampler"].get_default())
    cells = [
        ", ".join(f"{key} {value}" for key, value in section.model_dump(exclude_none=True).items()) or "-"
        for section in (attack, sampler)
    ]
    return f"| `{name}` | {cells[0]} | {cells[1]} |"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    parts.append("## data, threat, training and the rest\n")
    for name, model in own_sections().items():
        optional = " (optional)" if model in (RegulariserConfig, ThreatConfig) else ""
        parts.append(f"### {name}{optional}\n\n{summary(model)}{section_table(name, model)}\n")
    top = Config.model_fields["devices"]
    parts.append(
        "### devices\n\n| key | type | default | meaning |\n|---|---|---|---|\n"
        f"| `devices` | integer{bounds(top.metadata)} | {default_words(top)} | {meaning('devices', Config)} |\n"
    )
    for title, registry in (("method", METHODS), ("network", NETWORKS)):
        parts.append(
            f"## {title}\n\n`{title}.name` is one of the names below; its options stand beside it.\n"
        )
        for name, row in registry.rows().items():
            if row.target.startswith("trilemma."):
                options = registry.options(name)
                unused = ("attack_mode",) if not getattr(options, "uses_attack", True) else ()
                table = section_table(title, options, ("name", *unused))
                parts.append(f"### {title}.name: {name}\n\n{row.summary}\n\n{table}\n")
    parts.append(
        "## What a method brings\n\nThe attack and the sampler of training where the recipe is silent, for a radius "
        "of 8/255; the step size of an attack follows the radius.\n\n| method | attack | sampler |\n|---|---|---|"
    )
    rows = [brought(name) for name, row in METHODS.rows().items() if row.target.startswith("trilemma.")]
    return "\n".join([*parts, *rows]) + "\n"


def main() -> None:
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
            sys.exit(f"{PAGE.name} is not up to date; run: python docs/generate_config.py")
    else:
        PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
