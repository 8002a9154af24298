"""Installs every extra into an environment of its own and uses it, beside the torch that was chosen before.

    make extras
    python benchmarks/extras.py [--torch torch==2.13.0] [--pip-flags "--index-url ADDRESS"] [EXTRA ...]

An environment with torch and trilemma is made once and copied for each extra, which is then installed with the commands
of `docs/installation.md`, without constraints, as a user would. The check fails if the torch differs afterwards, if
torchvision or a CUDA library was added, or if the part of trilemma that needs the extra does not work. An extra of
`pyproject.toml` without a check is an error. The environments, about 1.5 GB each, are removed afterwards.
Writes `benchmarks/results/extras.json` and `.md`, and the table in `docs/installation.md`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from benchmarks.result_page import write  # noqa: E402
from studies.common import update_page  # type: ignore[import-not-found]  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "extras.json"
PAGE = ROOT / "docs" / "installation.md"
COMMAND = "make extras"


@dataclass(frozen=True)
class Check:
    """How an extra is installed and used.

    Attributes:
        purpose: what it is for, as the page says it.
        used: what the check does.
        code: Python code that does it, run in an empty folder.
        alone: packages that are installed with ``--no-deps`` after the extra.
    """

    purpose: str
    used: str
    code: str
    alone: tuple[str, ...] = ()


CHECKS = {
    "corruptions": Check(
        "the protocol `corruptions` without a folder",
        "each of the 15 types",
        """
        import torch
        from trilemma.data.corrupted_images import TYPES, MadeImages
        made = MadeImages(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]), seed=0)
        for kind in TYPES:
            images, labels = made.batch(kind, 5, torch.arange(2))
            assert images.shape == (2, 3, 32, 32) and labels.tolist() == [0, 1]
        """,
    ),
    "demo": Check(
        "`trilemma demo`, a page in the browser",
        "the page is served and answers",
        """
        import urllib.request
        from trilemma.cli.demo import free_port
        from trilemma.demo.page import serving
        from trilemma.demo.subject import open_subject
        with serving(open_subject(None), free_port(None)) as (address, _):
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            assert "trilemma demo" in opener.open(address).read().decode()
        """,
    ),
    "dev": Check(
        "tests, lint and types",
        "one test file, lint and types of one module",
        """
        import subprocess, sys
        for arguments in (
            ["pytest", "-q", "-p", "no:cacheprovider", "tests/test_energies.py"],
            ["ruff", "check", "--no-cache", "src"], ["mypy", "--cache-dir", "/dev/null", "src/trilemma/units.py"],
        ):
            subprocess.run([sys.executable, "-m", *arguments], check=True, cwd=ROOT)
        """,
    ),
    "docs": Check(
        "this site",
        "`mkdocs build --strict`",
        """
        import subprocess, sys
        from pathlib import Path
        command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", Path("site").resolve()]
        subprocess.run(command, check=True, cwd=ROOT)
        """,
    ),
    "efficientnet": Check(
        "`FD-efficientnet-lite0`, distances of samples in a public network",
        "features of random images",
        """
        import torch
        from trilemma.metrics.efficientnet import efficientnet_lite0
        assert efficientnet_lite0().features(torch.rand(2, 1, 28, 28)).shape == (2, 1280)
        """,
    ),
    "fast-jpeg": Check(
        "JPEG files decoded by simplejpeg, several times faster",
        "its pixels are those of Pillow",
        """
        from trilemma.data.pictures import _fast
        assert _fast()
        """,
    ),
    "hub": Check(
        "classifiers of the Hugging Face hub, `hub:OWNER/NAME`",
        "the offline answer",
        """
        import os
        os.environ["HF_HUB_OFFLINE"] = "1"
        import trilemma
        from trilemma.errors import CheckpointError
        try:
            trilemma.load("hub:nobody/nothing")
        except CheckpointError as error:
            print(error)
        else:
            raise AssertionError
        """,
    ),
    "inception": Check(
        "FID, KID and IS with the Inception network",
        "features with random weights",
        """
        import torch
        from trilemma.metrics.inception import inception
        from trilemma.metrics.library import torch_fidelity, torchmetrics
        torchmetrics("image.fid")
        network = torch_fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
        torch.save({}, "empty.pth")
        load, network.load_state_dict = network.load_state_dict, lambda self, state: None
        made = network("inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path="empty.pth")
        network.load_state_dict = load
        torch.save(made.state_dict(), "random.pth")
        assert inception("random.pth").features(torch.rand(2, 3, 32, 32)).shape == (2, 2048)
        """,
        alone=("torch-fidelity",),
    ),
    "onnx": Check(
        "`trilemma export` to ONNX",
        "an export, compared with the original",
        """
        import torch
        import trilemma
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        clf = trilemma.Classifier(network, 10, image_shape=(1, 8, 8)).eval()
        print(trilemma.export(clf, "classifier.onnx", data="digits"))
        """,
    ),
    "slurm": Check(
        "`trilemma sweep --launcher slurm`",
        "a job of its local executor",
        """
        import submitit
        from pathlib import Path
        from trilemma.sweeps.launchers import run_submitted
        from trilemma.sweeps.task import Task

        overrides = {"training.epochs": 1, "data.train_images": 40, "network.width": 4}
        task = Task("a", "digits/standard", overrides, Path("run"), Path("log"), "cpu", (), None, False, 1)
        executor = submitit.LocalExecutor(folder="jobs")
        run_submitted(executor, [task], 1, lambda task, line: print(task.name, line), lambda: None)
        assert Path("run/checkpoints/last/classifier.safetensors").is_file()
        """,
    ),
    "stream": Check(
        "training on tar shards, `data.name=shards`",
        "shards are written and read in their order",
        """
        import torch
        from pathlib import Path
        from trilemma.data.sharding import shard_source
        from trilemma.data.sources import load_splits

        shard_source("digits", Path("shards"), per_shard=400)
        stream = load_splits("shards", "shards").stream
        (images,) = stream.batches([torch.arange(16)])
        assert images.shape == (16, 1, 8, 8) and len(stream) == 1200
        """,
    ),
    "tensorboard": Check(
        "training metrics for TensorBoard",
        "an event file",
        """
        from pathlib import Path
        from trilemma.training.tensorboard import tensorboard
        log = tensorboard(Path("events"))
        assert log is not None and list(Path("events").iterdir())
        """,
    ),
    "timm": Check(
        "networks of timm, `timm:NAME`",
        "four networks, forward and backward",
        """
        import torch
        from trilemma.networks.timm_network import timm_network
        for name, side in (("resnet18", 32), ("convnext_atto", 32), ("vit_tiny_patch16_224", 224), ("densenet121", 32)):
            images = torch.rand(2, 3, side, side, requires_grad=True)
            timm_network(10, model=name).eval()(images).sum().backward()
            assert images.grad is not None and images.grad.abs().sum() > 0
        """,
        alone=("timm",),
    ),
}
# No extra may add these: they come with one exact torch.
FORBIDDEN = ("torchvision", "torchaudio", "nvidia-", "triton")


def declared() -> dict[str, list[str]]:
    """Extra name to requirements, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    return extras


def commands(name: str) -> list[str]:
    """The commands that install an extra in the clone, as the page shows them."""
    return [
        f"pip install -e '.[{name}]'",
        *(f"pip install --no-deps {package}" for package in CHECKS[name].alone),
    ]


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """The standard output of a command; its standard error is shown if it fails."""
    # Only what is installed is imported.
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=settings, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(
            f"{shlex.join(map(str, command))[:300]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
    return done.stdout


def packages(python: Path) -> dict[str, str]:
    """Name to version of what is installed."""
    lines = run(python, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check").splitlines()
    return {name.lower(): version for name, _, version in (line.partition("==") for line in lines)}


def size(folder: Path) -> float:
    """Megabytes of the files below a folder."""
    return (
        sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
        / 1e6
    )


def make_base(folder: Path, torch: str, flags: list[str]) -> Path:
    """An environment with torch and trilemma; returns its Python."""
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", *flags, torch)
    run(python, "-m", "pip", "install", "--quiet", ROOT)
    return python


def check(name: str, base: Path, place: Path) -> dict[str, Any]:
    """Installs one extra into a copy of ``base`` and uses it; returns what it cost."""
    environment = place / name
    shutil.copytree(base, environment, symlinks=True)
    python = environment / "bin" / "python"
    before, megabytes, started = packages(python), size(environment), time.perf_counter()
    try:
        run(python, "-m", "pip", "install", "--quiet", f"{ROOT}[{name}]")
        for package in CHECKS[name].alone:
            run(python, "-m", "pip", "install", "--quiet", "--no-deps", package)
        seconds = time.perf_counter() - started
        after = packages(python)
        if after["torch"] != before["torch"]:
            raise SystemExit(f"{name}: replaced torch {before['torch']} by {after['torch']}")
        if added := [package for package in after.keys() - before.keys() if package.startswith(FORBIDDEN)]:
            raise SystemExit(f"{name}: installed {', '.join(added)}")
        megabytes = size(environment) - megabytes
        work = place / "work"
        work.mkdir()
        code = f"ROOT = {str(ROOT)!r}\n{textwrap.dedent(CHECKS[name].code)}"
        started = time.perf_counter()
        run(python, "-c", code, cwd=work)
        used = time.perf_counter() - started
        shutil.rmtree(work)
    finally:
        shutil.rmtree(environment)
    new = {package: after[package] for package in sorted(after.keys() - before.keys())}
    return {
        "torch": after["torch"],
        "megabytes": round(megabytes),
        "install_seconds": round(seconds),
        "use_seconds": round(used),
        "added": new,
    }


def table(rows: dict[str, Any]) -> str:
    """The extras as Markdown: purpose, commands, size and check."""
    lines = ["| extra | for | in the clone | adds | checked by |", "|---|---|---|---|---|"]
    for name, row in sorted(rows.items()):
        how = ", then ".join(f"`{command}`" for command in commands(name))
        count = len(row["added"])
        amount = f"{row['megabytes']} MB, {count} package{'s' if count > 1 else ''}"
        lines.append(f"| `{name}` | {CHECKS[name].purpose} | {how} | {amount} | {CHECKS[name].used} |")
    return "\n".join(lines)


def page(content: dict[str, Any]) -> str:
    """The page of everything measured so far."""
    lines = [
        "# Extras: installed each by itself, beside the torch that was chosen\n",
        f"`{content['command']}`\n",
        f"{content['about']}\n",
        "| extra | torch afterwards | adds | seconds to install, to use | packages |",
        "|---|---|---|---|---|",
    ]
    for name, row in sorted(content["rows"].items()):
        added = ", ".join(f"{package} {version}" for package, version in row["added"].items())
        seconds = f"{row['install_seconds']}, {row['use_seconds']}"
        lines.append(f"| {name} | {row['torch']} | {row['megabytes']} MB | {seconds} | {added} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("extras", nargs="*", help=f"of {', '.join(CHECKS)}; by default all")
    parser.add_argument("--torch", default="torch==2.13.0", help="requirement that chooses torch")
    parser.add_argument("--pip-flags", default="", help="flags of pip for torch alone")
    arguments = parser.parse_args()
    if unknown := declared().keys() ^ CHECKS.keys():
        raise SystemExit(f"extras without a check, or checks without an extra: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_base(place / "base", arguments.torch, shlex.split(arguments.pip_flags))
        rows: dict[str, Any] = {}
        for name in arguments.extras or CHECKS:
            row = check(name, place / "base", place)
            rows = write(RESULTS, COMMAND, {name: row}, page)
            update_page(PAGE, "extras", table({key: rows[key] for key in rows.keys() & CHECKS.keys()}))
            print(f"{name}: {row['megabytes']} MB, torch {row['torch']} as before", flush=True)


if __name__ == "__main__":
    main()
