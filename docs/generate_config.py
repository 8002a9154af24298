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
from trilemma.config.registry import METHODS, NETWORKS, Registry
from trilemma.config.section import Section
from trilemma.config.sections import AttackConfig, RegulariserConfig, ThreatConfig
from trilemma.units import PixelLength

PAGE = Path(__file__).with_name("config.md")

# Keys whose class gives no description. A test holds that each of these exists and has none.
MEANINGS = {
    "data.name": "name of a data set (`trilemma list datasets`), or `folder`",
    "threat.norm": "norm of the perturbation: `linf`, the largest change of a pixel value, or `l2`, the Euclidean norm",
    "sampler.name": "step rule of the chain",
    "sampler.steps": "sampler steps per training step",
    "sampler.start": "initial images of new chains, also with options or mixed (`uniform:0.5,class-pca:0.5`); "
    "`replay-buffer` is for `generate` only",
    "update.name": "`plain`: the optimiser's step; `sam`: adaptive sharpness-aware minimisation; `awp`: adversarial "
    "weight perturbation; `sam` and `awp` compute the loss twice per step",
    "optimiser.name": "optimiser of the weights",
    "optimiser.momentum": "momentum of `sgd`, first beta of `adam`",
    "optimiser.nesterov": "Nesterov momentum (`sgd`)",
    "optimiser.weight_decay": "L2 penalty on all weights",
    "schedule.name": "shape of the learning rate over the run",
    "augmentation.flip": "horizontal flip with probability 1/2",
    "monitors.overfitting": "monitor the delta energies for catastrophic and robust overfitting",
    "monitors.divergence": "monitor for divergence: non-finite values, exploding or collapsed energies, saturated "
    "samples",
    "training.epochs": "passes over the training images",
    "training.batch_size": "images per step, over all processes together",
    "training.lr": "learning rate, multiplied by the schedule",
    "training.seed": "seed of all random numbers of the run",
    "training.select": "held-out accuracy that selects the checkpoint `best`; `auto`: `pgd-10` for methods that train "
    "on adversarial images, else `clean`; `last`: the newest checkpoint",
    "training.precision": "number format of the forward passes",
    "training.channels_last": "channels-last memory format of the network; on a CPU only where it is faster and safe",
    "training.compile": "compile the network with `torch.compile`",
    "regulariser.name": "the Delta Energy Regulariser",
}

HEAD = """# Configuration keys

<!-- Written by docs/generate_config.py from the configuration's classes; do not edit. -->

A recipe is a YAML file with the sections below. On the command line a key is written with dots,
`training.epochs=5`. An unknown key, a wrong type or an impossible combination is reported before any work begins.
`trilemma recipe digits/pgd-at` prints a packaged recipe, and with `--resolved` every key of it; `trilemma validate`
makes all checks that `train` makes before its first step, and estimates time, memory and disk.

- *Pixel units* are those of images in [0, 1]: `8/255` is eight grey levels of an 8-bit image. A *pixel length* is
  kept exactly as written, `8/255` or `0.3`.
- Every recipe needs `network` and `method`. A section with a name and no other key may be written as the name:
  `method: trades`.
- A recipe may change another one. With `base: digits/pgd-at` (a packaged recipe, or a path relative to the file) it
  states only what differs: sections are merged key by key, `null` in place of a section removes it, and another
  `method.name` or `network.name` drops the options of the former one. Bases may have bases. A run's `config.yaml`
  holds the resolved recipe.
- Every value has one reading. Numbers are decimal, truth values are `true` and `false`; `yes`, `010`, `0x10`, `1_000`,
  `1:30` and `.inf`, which YAML versions read differently, are refused, and so is a key that is given twice. Files
  are UTF-8.
- `null` as a default means: none, or (for `attack` and `sampler`) the method's default, see
  [the last table](#attack-and-sampler-defaults).
"""


def key_types(model: type[BaseModel]) -> dict[str, Any]:
    """The annotations of a model's fields, with their ``Annotated`` metadata."""
    hints = get_type_hints(model, include_extras=True)
    return {name: hints[name] for name in model.model_fields}


def type_words(hint: Any, whole: str = "") -> str:
    """A type in words; ``whole`` is the text of the bounds of the whole field (:func:`bounds`)."""
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
    """The constraints of a field as text, such as ``" in [0, 1)"`` or ``" > 0"``."""
    # An annotation may hold the constraints in a field of its own.
    metadata = [m for one in metadata for m in (one.metadata if isinstance(one, FieldInfo) else [one])]
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
    """The default of a field as it is written in YAML."""
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
    """The description of a key: of its field, of the field of a base class, or from :data:`MEANINGS`."""
    name = key.rpartition(".")[2]
    for above in model.__mro__:
        field = getattr(above, "model_fields", {}).get(name)
        if field is not None and field.description:
            return str(field.description)
    return MEANINGS[key]


def section_table(prefix: str, model: type[BaseModel], left_out: tuple[str, ...] = ()) -> str:
    """The table of the keys of one section, as Markdown."""
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
    """The first line of a class's own docstring; empty for an inherited one."""
    docstring = model.__dict__.get("__doc__")
    return f"{docstring.splitlines()[0]}\n\n" if docstring else ""


def fixed_sections() -> dict[str, type[BaseModel]]:
    """The sections whose keys do not depend on a name in the recipe (all but ``method`` and ``network``)."""
    sections: dict[str, type[BaseModel]] = {}
    for name, hint in key_types(Config).items():
        models = [
            part for part in (hint, *get_args(hint)) if isinstance(part, type) and issubclass(part, Section)
        ]
        if models and name not in ("method", "network"):
            sections[name] = models[0]
    return sections


def defaults_row(name: str) -> str:
    """One row of the last table: the default attack and sampler of a method at radius 8/255."""
    options = METHODS.options(name).model_validate({"name": name})
    attack = options.resolved_attack(AttackConfig(), ThreatConfig(radius="8/255"))
    sampler = options.resolved_sampler(Config.model_fields["sampler"].get_default())
    cells = [
        ", ".join(f"{key} {value}" for key, value in section.model_dump(exclude_none=True).items()) or "-"
        for section in (attack, sampler)
    ]
    return f"| `{name}` | {cells[0]} | {cells[1]} |"


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    parts.append("## data, threat, training and the rest\n")
    for name, model in fixed_sections().items():
        optional = " (optional)" if model in (RegulariserConfig, ThreatConfig) else ""
        parts.append(f"### {name}{optional}\n\n{summary(model)}{section_table(name, model)}\n")
    top = Config.model_fields["devices"]
    parts.append(
        "### devices\n\n| key | type | default | meaning |\n|---|---|---|---|\n"
        f"| `devices` | integer{bounds(top.metadata)} | {default_words(top)} | {meaning('devices', Config)} |\n"
    )
    for title, registry in (("method", METHODS), ("network", NETWORKS)):
        parts.append(
            f"## {title}\n\n`{title}.name` is one of the names below; its options are keys of the same section.\n"
        )
        for name, row in registry.rows().items():
            if row.target.startswith("trilemma."):
                options = registry.options(name)
                unused = ("attack_mode",) if not getattr(options, "uses_attack", True) else ()
                table = section_table(title, options, ("name", *unused))
                parts.append(f"### {title}.name: {name}\n\n{row.summary}\n\n{table}\n")
    parts.append(
        "## Attack and sampler defaults\n\nThe attack and the sampler of each method where the recipe sets none, for a "
        "radius of 8/255; the step size of an attack scales with the radius.\n\n| method | attack | sampler |\n"
        "|---|---|---|"
    )
    rows = [defaults_row(name) for name, row in METHODS.rows().items() if row.target.startswith("trilemma.")]
    return "\n".join([*parts, *rows]) + "\n"


def main() -> None:
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
            sys.exit(f"{PAGE.name} is not up to date; run: python docs/generate_config.py")
    else:
        PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
