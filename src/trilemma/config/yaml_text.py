"""Reading YAML strictly: one meaning per value, as in YAML 1.2; what YAML 1.1 reads as something else is refused."""

from __future__ import annotations

import re
from collections.abc import Hashable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from trilemma import text_files
from trilemma.errors import ConfigError
from trilemma.limits import RECIPE, RECIPE_VALUES
from trilemma.printing import shortened
from trilemma.units import DECIMAL, parse_fraction

_INT, _FLOAT, _BOOL = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:bool"
_NULL, _MERGE, _TEXT = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge", "tag:yaml.org,2002:str"
_AMBIGUOUS = "!ambiguous"
# Plain values by their pattern, as in YAML 1.2. The ambiguous ones are truth values, or numbers of another base, in
# YAML 1.1 and texts in YAML 1.2: either reading would surprise half of the readers.
_PATTERNS = {
    _NULL: r"~|null|Null|NULL|",
    _BOOL: r"true|True|TRUE|false|False|FALSE",
    _INT: r"[-+]?(?:0|[1-9][0-9]*)",
    _FLOAT: DECIMAL.pattern,
    _MERGE: r"<<",
    _AMBIGUOUS: "|".join(
        (
            r"yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF",
            # leading zeros, hexadecimal, octal, binary
            r"[-+]?0[0-9_]+(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|[-+]?0[xX][0-9a-fA-F_]+|[-+]?0[oO][0-7_]+|[-+]?0[bB][01_]+",
            # underscores, sexagesimal
            r"[-+]?[0-9]+_[0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+(?::[0-5]?[0-9])+(?:\.[0-9_]*)?",
            r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        )
    ),
}


class _RefusedError(yaml.MarkedYAMLError):
    """What YAML allows and a recipe does not."""

    def __init__(self, problem: str, mark: yaml.Mark) -> None:
        super().__init__(problem=problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    """A safe loader without YAML 1.1's octal, sexagesimal, underscored and worded values, and without double keys."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        # Before the base class inserts the values of `<<`, which a key of the mapping itself may replace.
        first_lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag not in (_MERGE, _TEXT):
                name = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise _RefusedError(f"{name} is not a key; a key is a name, such as training", key.start_mark)
            if key.value in first_lines:
                first = f"first on line {first_lines[key.value]}"
                raise _RefusedError(
                    f"{key.value} is given a second time ({first}); keep one of the two", key.start_mark
                )
            first_lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _number(loader: _Loader, node: Any) -> int | float:
    text = str(node.value)
    try:
        # Refuses digits without end, and 1e-400, which would become 0.
        parse_fraction(text)
        if DECIMAL.fullmatch(text):
            return int(text) if node.tag == _INT else float(text)
    except ValueError as error:
        raise _RefusedError(str(error), node.start_mark) from None
    raise _RefusedError(f"{text[:40]} is not a decimal number", node.start_mark)


def _ambiguous(loader: _Loader, node: Any) -> Any:
    raise _RefusedError(_two_readings(str(node.value)), node.start_mark)


def _two_readings(text: str) -> str:
    """What an ambiguous value has to be replaced by."""
    instead = "a decimal number"
    if text.lower() in ("yes", "on"):
        instead = "true"
    elif text.lower() in ("no", "off"):
        instead = "false"
    elif re.fullmatch(r"[-+]?0[0-9]+", text):
        plain = text.lstrip("+-").lstrip("0") or "0"
        instead = f"{'-' if text.startswith('-') else ''}{shortened(plain)}, without leading zeros,"
    text = shortened(text)
    return f"{text} has two readings in YAML; write {instead} or, if it is a text, '{text}' in quotes"


for _tag, _pattern in _PATTERNS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), None)
_Loader.add_constructor(_INT, _number)
_Loader.add_constructor(_FLOAT, _number)
_Loader.add_constructor(_AMBIGUOUS, _ambiguous)


def parse_yaml(text: str, where: str) -> Any:
    """The value that a YAML document describes: mappings, lists, texts, numbers, truth values and ``None``.

    Numbers are decimal (``1e-4`` included), truth values are ``true`` and ``false``, and everything else, dates
    included, is a text.

    Args:
        text: the document.
        where: beginning of every error message.

    Raises:
        ConfigError: not YAML, a key given twice in one mapping, a key that is not a name, or a value that YAML versions
            read differently (``yes``, ``010``, ``0x10``, ``1_000``, ``1:30``, ``.inf``).
    """
    RECIPE.check(len(text), where, ConfigError)
    try:
        return _load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" line {mark.line + 1}:"
        raise ConfigError(f"{where}:{line} {_problem(error)}") from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply; a recipe has sections and keys") from None


def _load(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_values(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_values(root: yaml.Node) -> None:
    """Refuses a document whose anchors refer to themselves, or multiply it.

    An anchor is a node with several parents, so that a few lines can stand for a billion values, which would be written
    out in a message or in the configuration of a run.
    """
    counts: dict[int, int] = {}

    def count(node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) not in counts:
            # Until it is known: a node below that finds it is inside itself.
            counts[id(node)] = 0
            children = node.value if isinstance(node, yaml.SequenceNode) else chain(*node.value)
            counts[id(node)] = 1 + sum(map(count, children))
        elif counts[id(node)] == 0:
            raise _RefusedError("an anchor holds itself; write the values out", node.start_mark)
        return counts[id(node)]

    if (values := count(root)) > RECIPE_VALUES.value:
        raise _RefusedError(
            f"has, with its anchors filled in, {RECIPE_VALUES.excess(values)}", root.start_mark
        )


def parse_value(text: str, where: str) -> Any:
    """The value of a command-line override: a plain YAML value, or a list, mapping or quoted text in YAML.

    A plain value is taken whole: `` #`` and ``: ``, which have a meaning in a document, are part of a text.

    Args:
        text: the value.
        where: beginning of every error message.

    Raises:
        ConfigError: as of :func:`parse_yaml`.
    """
    text = text.strip()
    tag = next((tag for tag, pattern in _PATTERNS.items() if re.fullmatch(pattern, text)), _TEXT)
    if tag == _AMBIGUOUS:
        raise ConfigError(f"{where}: {_two_readings(text)}")
    if tag in (_TEXT, _MERGE) and not text.startswith(("[", "{", '"', "'")):
        return text
    RECIPE.check(len(text), where, ConfigError)
    try:
        return _load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {_problem(error)}") from None
    except RecursionError:
        raise ConfigError(f"{where[:100]}: nested too deeply") from None


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong, and what to do, as one line without its place."""
    problem = str(getattr(error, "problem", None) or "cannot be read")
    if isinstance(error, _RefusedError):
        return problem
    if "'\\t'" in problem:
        return "begins with a tab; indent with spaces"
    if isinstance(error, yaml.reader.ReaderError):
        problem = f"character {error.position + 1} is a control character"
    return f"not valid YAML: {problem}; correct it"


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        ConfigError: another encoding, or a file that cannot be read.
    """
    try:
        with suppress(OSError):
            RECIPE.check(path.stat().st_size, str(path), ConfigError)
        return text_files.read_text(path)
    except UnicodeError as error:
        raise ConfigError(f"{path}: {error}; save the file as UTF-8") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; check the file") from None
