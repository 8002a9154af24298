"""Inception: the real loading code, with a stand-in network and weights, since the real ones need a download."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from trilemma.errors import CheckpointError, MissingExtraError
from trilemma.metrics.features import extract, metric_names
from trilemma.metrics.inception import inception

# torch-fidelity in small: the same names, arguments and kinds of tensors, and an __init__ that needs torchvision.
NETWORK = """
import torch
from torch import nn
from torch_fidelity.helpers import vassert
URL_INCEPTION_V3 = "https://example.invalid/weights-inception-2015-12-05-6726825d.pth"
class FeatureExtractorInceptionV3(nn.Module):
    def __init__(self, name, features_list, feature_extractor_weights_path=None, **kwargs):
        super().__init__()
        assert name == "inception-v3-compat" and list(features_list) == ["2048", "logits_unbiased"]
        self.fc = nn.Linear(2048, 1008)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))
    def forward(self, x):
        vassert(x.dtype == torch.uint8 and x.shape[1] == 3, "wants RGB bytes")
        features = x.float().flatten(1).repeat(1, 2048)[:, :2048]
        return features, features @ self.fc.weight.T
"""
FILES = {
    "torch_fidelity/__init__.py": "import torchvision_that_is_not_there\n",
    "torch_fidelity/helpers.py": "def vassert(true, message):\n    assert true, message\n",
    "torch_fidelity/interpolate_compat_tensorflow.py": "def interpolate_bilinear_2d_like_tensorflow1x(*_): ...\n",
    "torch_fidelity/feature_extractor_inceptionv3.py": NETWORK,
    "torch_fidelity-0.4.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: torch_fidelity\nVersion: 0.4.0\n",
    "torch_fidelity-0.4.0.dist-info/top_level.txt": "torch_fidelity\n",
}


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package on the path, gone without a trace afterwards; torch's hub in an empty folder."""
    site = tmp_path / "site"
    for name, text in FILES.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("torch_fidelity")}
    yield site
    for name in [name for name in sys.modules if name.startswith("torch_fidelity")]:
        del sys.modules[name]
    sys.modules.update(before)


def weights(path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"fc.weight": torch.rand(1008, 2048, generator=generator), "fc.bias": torch.zeros(1008)}, path)
    return path


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setattr("trilemma.metrics.library.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MissingExtraError, match=r"pip install -e '\.\[inception\]'"):
        inception()


def test_weights_are_loaded_and_give_the_three_names(stand_in, tmp_path):
    """Although torchvision is missing: the network needs nothing of it."""
    file = weights(tmp_path / "mine.pth")
    extractor = inception(file)
    assert metric_names(extractor) == {"frechet": "FID", "kernel": "KID", "score": "IS"}
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    assert extractor.about == {"name": "inception", "weights": digest, "file": "mine.pth"}
    levels = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    found = extract(extractor, levels, batch_size=2)
    assert torch.equal(found.values[:, :48], levels.flatten(1).double())  # bytes arrive as bytes
    assert found.logits is not None and found.logits.shape == (5, 1008)
    assert "torch_fidelity" not in sys.modules  # the package is as it was: not importable as a whole


def test_grey_images_are_repeated(stand_in, tmp_path):
    extractor = inception(weights(tmp_path / "mine.pth"))
    levels = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8)
    assert torch.equal(
        extract(extractor, levels).values, extract(extractor, levels.expand(-1, 3, -1, -1)).values
    )


def test_weights_in_the_hub_are_found_and_none_are_one_line(stand_in, tmp_path, monkeypatch):
    def unreachable(url: str, file: str, progress: bool) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(CheckpointError, match=r"cannot be fetched .*no network.*give inception:FILE"):
        inception()
    name = "weights-inception-2015-12-05-6726825d.pth"
    weights(tmp_path / "hub" / "checkpoints" / name)
    assert inception().about["file"] == name


@pytest.mark.parametrize("content", ["text", {"fc.weight": torch.zeros(2)}, None])
def test_other_files_are_one_line(stand_in, tmp_path, content):
    file = tmp_path / "other.pth"
    if isinstance(content, str):
        file.write_text(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"other\.pth: no weights of the Inception network") as caught:
        inception(file)
    assert "\n" not in str(caught.value)


def test_a_file_that_would_run_code_is_refused_before_the_package_reads_it(stand_in, tmp_path):
    file, ran = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"fc.weight": Touch(str(ran))}, file)
    with pytest.raises(CheckpointError, match="no weights of the Inception network"):
        inception(file)
    assert not ran.exists()


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return open, (self.path, "w")


@pytest.mark.slow
def test_metrics_work_where_the_extra_is_installed_and_torchvision_is_not(stand_in):
    """A fresh process: importing torchmetrics alone fails there."""
    program = """
        import sys
        sys.path.insert(0, sys.argv[1])
        try:
            import torchmetrics
            raise SystemExit("it is not broken")
        except ModuleNotFoundError as error:
            assert error.name == "torchvision_that_is_not_there"
        for name in [name for name in sys.modules if name.startswith("torchmetrics")]:
            del sys.modules[name]
        import torch
        from trilemma.metrics.ood import auroc
        print(auroc(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0])))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(stand_in)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": "src"},
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("0.75\n", 0), done.stderr
