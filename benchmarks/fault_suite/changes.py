"""Changes of JSON that keep it JSON: what random bytes seldom reach."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

_HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), 2**31, 2**63, 2**64, 10**30,
    "", "x", "0", "1/0", "1e999", "-1", "nan", "null", "../x", "\0", "\x1b[2J", "\ud800", "\u202e", "a\nb", "9" * 40,
    "x" * 5000, [], {}, [[]], [None], [0] * 300, {"": 0}, {"x": {"x": {}}},
)  # fmt: skip
_MOST_CHANGES = 3
# Probability that a list or mapping is changed as a whole.
_STAYS = 0.2


def changed_json(content: bytes, chance: random.Random) -> bytes | None:
    """JSON, or a random line of JSON lines, with some values replaced, removed, moved, wrapped or renamed.

    ``None`` if it is not JSON.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        lines = content.splitlines()
        if len(lines) < 2:
            return None
        number = chance.randrange(len(lines))
        line = changed_json(lines[number], chance)
        return (
            None
            if line is None
            else b"".join(one + b"\n" for one in [*lines[:number], line, *lines[number + 1 :]])
        )
    for _ in range(chance.randint(1, _MOST_CHANGES)):
        value = _changed(value, chance)
    return json.dumps(value).encode()


def _changed(value: Any, chance: random.Random) -> Any:
    """A value in which one place is changed."""
    root = [value]
    container, key = _place(root, chance)
    what = chance.randrange(8)
    if what == 0 and container is not root:
        del container[key]
    elif what == 1 and isinstance(container, dict):
        container[chance.choice(["", "x", "name", f"{key} ", str(key).upper()])] = container.pop(key)
    elif what == 2:
        container[key] = chance.choice([[container[key]], {"x": container[key]}, str(container[key])])
    elif what == 3:
        other, place = _place(root, chance)
        container[key] = copy.deepcopy(other[place])
    elif what == 4 and isinstance(container[key], int | float):
        container[key] = chance.choice([-1, 2, 0.1, 1e9]) * container[key]
    elif what == 5 and isinstance(container[key], str | list):
        container[key] = container[key] * 2 if chance.random() < 0.5 else container[key][:-1]
    else:
        container[key] = copy.deepcopy(chance.choice(_HOSTILE))
    return root[0]


def _place(container: Any, chance: random.Random) -> tuple[Any, Any]:
    """A place below a container, as the container that holds it and its key or index there."""
    while True:
        key = chance.choice(list(container) if isinstance(container, dict) else range(len(container)))
        inner = container[key]
        if not isinstance(inner, dict | list) or not inner or chance.random() < _STAYS:
            return container, key
        container = inner
