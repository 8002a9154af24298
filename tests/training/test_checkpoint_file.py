"""The raw state's file: what goes in comes out, a write that fails leaves the old one, mistakes are one line."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.training.support import differences
from torch import Tensor

from trilemma.errors import CheckpointError
from trilemma.runs.state_file import STATE
from trilemma.training import checkpoint
from trilemma.training.checkpoint import load_state, save_state

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def tensor(dtype: torch.dtype, shape: list[int]) -> Tensor:
    return (torch.arange(torch.Size(shape).numel()).view(shape) % 2).to(dtype)


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.builds(tensor, st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3))
)
keys = st.text(max_size=5) | st.integers(0, 50)
nested = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(keys, nested, max_size=4))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_nested_state_comes_back_as_it_was(tmp_path: Path, state: dict[Any, Any]) -> None:
    save_state(tmp_path / "state.safetensors", state)
    assert differences(load_state(tmp_path / "state.safetensors"), state) == []


def test_keys_that_read_alike_stay_apart(tmp_path: Path) -> None:
    state: dict[Any, Any] = {
        1: torch.tensor(1),
        "1": torch.tensor(2),
        "a/b": torch.tensor(3),
        "a": {"b": torch.tensor(4)},
    }
    save_state(tmp_path / "state", state)
    assert differences(load_state(tmp_path / "state"), state) == []


def test_an_optimiser_with_its_integer_keys_goes_on_where_it_was(tmp_path: Path) -> None:
    def stepped(steps: int, state: Path | None = None) -> tuple[Tensor, torch.optim.Optimizer]:
        weight = torch.nn.Parameter(torch.ones(3))
        optimiser = torch.optim.Adam([weight], lr=0.1)
        if state is not None:
            saved = load_state(state)
            weight.data.copy_(saved["weight"])
            optimiser.load_state_dict(saved["optimiser"])
        for _ in range(steps):
            optimiser.zero_grad()
            (weight**3).sum().backward()
            optimiser.step()
        return weight.detach(), optimiser

    weight, optimiser = stepped(3)
    save_state(tmp_path / "state", {"weight": weight, "optimiser": optimiser.state_dict()})
    assert torch.equal(stepped(2, tmp_path / "state")[0], stepped(5)[0])


def test_views_and_tensors_that_share_memory_are_saved_by_value(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    state = {"whole": whole, "again": whole, "column": whole[:, 1], "turned": whole.T}
    save_state(tmp_path / "state", state)
    assert differences(load_state(tmp_path / "state"), state) == []


# A disk that runs full in the middle of a write. In a process of its own, because the limit holds for every file a
# process writes: where the output of the tests goes to a file, the limit would end them too.
WRITE_ON_A_FULL_DISK = """
import resource, signal, sys, torch
from dataclasses import replace
from pathlib import Path
from trilemma.errors import NotStoredError
from trilemma.training.checkpoint import save_state
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    save_state(Path(sys.argv[1]), {"step": 2, "large": torch.zeros(10_000)})
except NotStoredError as error:
    print(error)
"""


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    save_state(tmp_path / "state", {"step": 1})
    program = [sys.executable, "-c", WRITE_ON_A_FULL_DISK, str(tmp_path / "state")]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert re.search(r"state: cannot be written .*free disk space", done.stdout), done.stdout + done.stderr
    assert load_state(tmp_path / "state") == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["state"]


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_state(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


def test_a_missing_state_is_one_clear_line(tmp_path: Path) -> None:
    assert "nothing to resume from" in refusal(tmp_path / "state")


def test_a_newer_format_names_both_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "STATE", replace(STATE, version=STATE.version + 1))
        save_state(tmp_path / "state", {})
    message = refusal(tmp_path / "state")
    assert f"version {STATE.version + 1}" in message and "upgrade trilemma" in message


def test_an_older_format_says_to_start_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "STATE", replace(STATE, version=STATE.version - 1))
        save_state(tmp_path / "state", {"a": 1})
    with pytest.raises(
        CheckpointError, match="written by an earlier trilemma, which cannot be resumed; start a new run"
    ):
        load_state(tmp_path / "state")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "state", {"weights": torch.zeros(1000)})
    content = (tmp_path / "state").read_bytes()
    for length in (0, 4, 100, len(content) - 1):
        (tmp_path / "state").write_bytes(content[:length])
        assert "truncated" in refusal(tmp_path / "state")


def test_safetensors_of_others_and_classifiers_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "other")
    assert "not a training state of trilemma" in refusal(tmp_path / "other")
    save_file(
        {"weight": torch.zeros(1)}, tmp_path / "other", {"format": "trilemma-classifier", "version": "1"}
    )
    assert "not a training state of trilemma" in refusal(tmp_path / "other")


class Trap:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    torch.save({"trap": Trap(tmp_path / "sprung")}, tmp_path / "zipped")
    (tmp_path / "plain").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    for name in ("zipped", "plain"):
        assert "not a training state" in refusal(tmp_path / name)
    assert not (tmp_path / "sprung").exists()
