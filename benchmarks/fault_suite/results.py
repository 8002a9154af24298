"""What a command found out, without what differs from one run to the next: the oracle of sound and damaged inputs."""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fault_suite.case import Ended, Judge

# Times, and what depends on them.
VOLATILE = {
    "seconds", "minutes", "images_per_second", "started", "seconds_per_step", "peak_memory_mb", "archive_sha256",
    "digest",
}  # fmt: skip
# A position of the training state is a tree of pairs; its tensors are all that a result depends on.
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_DURATION = re.compile(r"(?<![\w.])\d+(?:\.\d+)? (?:s|min|h)(?!\w)")


def steady(value: Any) -> Any:
    """A JSON value without its volatile entries."""
    if isinstance(value, dict):
        return {key: steady(inner) for key, inner in value.items() if key not in VOLATILE}
    return [steady(inner) for inner in value] if isinstance(value, list) else value


def of_json(ended: Ended) -> Any:
    """The JSON on standard output."""
    return steady(json.loads(ended.stdout))


def of_page(name: str) -> Callable[[Ended], Any]:
    """The visible text of an HTML page, and digests of its pictures."""

    def read(ended: Ended) -> dict[str, Any]:
        text = (ended.folder / name).read_text(encoding="utf-8")
        pictures = [
            hashlib.sha256(data.encode()).hexdigest()[:12]
            for data in re.findall(r"data:image/[a-z+]+;base64,([\w+/=]+)", text)
        ]
        text = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", text)
        # How long a training took differs each time.
        text = _DURATION.sub("TIME", html.unescape(re.sub(r"<[^>]*>", " ", text)))
        return {"words": text.split(), "pictures": pictures}

    return read


def of_run(name: str) -> Callable[[Ended], Any]:
    """The tensors of the last state and of the classifiers of a run, and its metric lines."""

    def read(ended: Ended) -> dict[str, Any]:
        run = ended.folder / name
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        found: dict[str, Any] = {"metrics": [steady(json.loads(line)) for line in lines]}
        for file in ("last/state", "last/classifier", "best/classifier"):
            found[file] = tensors_digest(run / "checkpoints" / f"{file}.safetensors")
        return found

    return read


def of_rows(name: str) -> Callable[[Ended], Any]:
    """The JSON files of a folder, at any depth, by path."""

    def read(ended: Ended) -> dict[str, Any]:
        files = sorted((ended.folder / name).rglob("*.json"))
        return {str(file.relative_to(ended.folder)): steady(json.loads(file.read_text())) for file in files}

    return read


def of_arrays(name: str) -> Callable[[Ended], Any]:
    """Digests of the arrays of the ``.npz`` files of a folder."""

    def read(ended: Ended) -> dict[str, str]:
        import numpy as np

        found = {}
        for file in sorted((ended.folder / name).glob("*.npz")):
            with np.load(file) as archive:
                for key in archive.files:
                    found[f"{file.name}/{key}"] = hashlib.sha256(archive[key].tobytes()).hexdigest()[:16]
        return found

    return read


def of_weights(name: str) -> Callable[[Ended], Any]:
    """The digest of exported weights."""

    def read(ended: Ended) -> str:
        import torch

        content = torch.load(ended.folder / name, weights_only=True)
        return _digest({key: value for key, value in content.items() if isinstance(value, torch.Tensor)})

    return read


def tensors_digest(file: Path) -> str:
    """The digest of the tensors of a safetensors file, read without trilemma."""
    from safetensors.torch import load_file

    return _digest(load_file(file))


def _digest(tensors: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def only_lacks(found: Any, sound: Any) -> bool:
    """Whether a result has nothing that the sound one does not have: parts may be absent, none may differ."""
    if isinstance(found, dict) and isinstance(sound, dict):
        if found.keys() == {"words", "pictures"}:
            numbers = {number for word in sound["words"] for number in _NUMBER.findall(word)}
            # Pictures are drawn from what there is.
            return all(number in numbers for word in found["words"] for number in _NUMBER.findall(word))
        return all(
            value in (None, [], {}) or only_lacks(value, sound.get(key)) for key, value in found.items()
        )
    if isinstance(found, list) and isinstance(sound, list):
        return all(any(only_lacks(one, other) for other in sound) for one in found)
    return found is None or bool(found == sound)


def same_as(
    sound: Any, read: Callable[[Ended], Any], file: str | None = None, may_lack: bool = False
) -> Judge:
    """The judge that compares a result with the sound one.

    Args:
        sound: the result for the sound input.
        read: reads the result.
        file: a damaged file: a result that differs is right if a warning or note names it.
        may_lack: whether parts may be absent without a word, since the file need not exist.
    """

    def judge(ended: Ended) -> str:
        try:
            found = read(ended)
        except (OSError, ValueError) as error:
            return f"exit code 0, and no result: {type(error).__name__}: {error}"
        if found == sound or (may_lack and only_lacks(found, sound)):
            return ""
        if file is not None and any(Path(file).name in line for line in ended.remarks):
            return ""
        return first_difference(found, sound)

    return judge


def first_difference(found: Any, sound: Any, path: str = "") -> str:
    """Where two results differ first, for a person."""
    if isinstance(found, dict) and isinstance(sound, dict):
        for key in [*sound, *(key for key in found if key not in sound)]:
            if found.get(key) != sound.get(key):
                return first_difference(found.get(key), sound.get(key), f"{path}/{key}")
    if isinstance(found, list) and isinstance(sound, list):
        for index, (one, other) in enumerate(zip(found, sound, strict=False)):
            if one != other:
                return first_difference(one, other, f"{path}/{index}")
        return f"{path}: {len(found)} instead of {len(sound)}"
    return f"{path}: {str(found)[:60]!r} instead of {str(sound)[:60]!r}"
