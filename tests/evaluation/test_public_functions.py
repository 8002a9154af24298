"""The functions beside the commands: what each takes, returns and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import trilemma
from trilemma.data.sources import load_images
from trilemma.errors import ConfigError, RunError
from trilemma.training.run import Run

FUNCTIONS = (
    "compare", "counterfactual", "diagnose", "evaluate", "export", "generate", "lint", "load", "predict", "report",
    "score", "train",
)  # fmt: skip


@pytest.fixture
def run(run_copy: Path) -> Run:
    """The run as :func:`trilemma.train` returns it."""
    return Run(run_copy, trilemma.load(run_copy), [])


def test_the_public_names_are_listed_and_exist():
    assert set(FUNCTIONS) < set(dir(trilemma)) and {"figures", "attacks", "__version__"} < set(dir(trilemma))
    for name in dir(trilemma):
        assert getattr(trilemma, name) is not None
    for name in FUNCTIONS:
        assert callable(getattr(trilemma, name))
    with pytest.raises(AttributeError, match="no attribute 'trains'"):
        trilemma.trains  # noqa: B018


def test_a_module_of_the_same_name_does_not_replace_a_function():
    import trilemma.pages.html
    import trilemma.training.train

    assert callable(trilemma.report) and callable(trilemma.train)


def test_a_run_is_a_path(run):
    assert Path(run) == run.path
    assert trilemma.report(run) == run.path / "report.html"


def test_evaluate_writes_the_rows_of_a_run_into_its_folder(run):
    rows = trilemma.evaluate(run, protocols=["clean", "pgd-20"], threat=0.1, images=20)
    assert rows["pgd-20"]["threat"] == {"norm": "linf", "radius": "0.1"}
    assert run.rows["clean"] == rows["clean"]
    again = trilemma.evaluate(run.classifier, "digits", ["clean"], images=20)
    assert again["clean"]["value"] == rows["clean"]["value"]
    assert (
        trilemma.evaluate(run.classifier, protocols=["clean"], images=20)["clean"]["data"]
        == again["clean"]["data"]
    )
    with pytest.raises(ConfigError, match="leave state out"):
        trilemma.evaluate(run, state=run.path)


def toy_normalisation():
    """The normalisation of ``toy.mlp`` as a layer."""

    class Normalise(torch.nn.Module):
        def forward(self, images):
            return (images - 0.5) / 0.25

    return Normalise()


def test_evaluate_takes_a_network_and_a_radius_in_a_norm(toy):
    clf, images = toy.mlp(), toy.image_set()
    network = torch.nn.Sequential(toy_normalisation(), clf.network)
    row = trilemma.evaluate(network, images, ["pgd-20"], 0.5, norm="L2", lint=False)["pgd-20"]
    wrapped = trilemma.evaluate(clf, images, ["pgd-20"], trilemma.Threat("l2", 0.5), lint=False)["pgd-20"]
    assert row["threat"] == {"norm": "l2", "radius": "0.5"}
    assert row["value"] == pytest.approx(wrapped["value"], abs=0.07)
    with pytest.raises(ConfigError, match="no threat stored"):
        trilemma.evaluate(network, images)


def test_diagnose_writes_into_a_run_and_nowhere_else(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = trilemma.diagnose(run, images=10, attacks=["pgd"])
    assert json.loads((run.path / "figures" / "energies.json").read_text())["count"] == record["count"] == 10
    before = sorted(path for path in tmp_path.rglob("*"))
    again = trilemma.diagnose(run.classifier, images=10, attacks=["pgd"])
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert again["sets"] == record["sets"]


def test_generate_returns_the_images_that_it_writes(run):
    generated = trilemma.generate(run, per_class=2, steps=2, seed=3)
    assert generated.images.shape == generated.starts.shape == (20, 1, 8, 8)
    assert generated.labels.tolist() == sorted(list(range(10)) * 2)
    assert generated.grid is not None and generated.grid.is_file()
    assert "20 samples, 2 steps of momentum" in repr(generated) and len(repr(generated)) < 2000
    assert generated._repr_png_()[:4] == b"\x89PNG"
    alone = trilemma.generate(run.classifier, per_class=2, steps=2, seed=3)
    assert torch.equal(alone.images, generated.images) and alone.grid is None


def test_the_chain_of_the_training_is_the_default(run):
    run.classifier.about["chain"] = {
        "name": "langevin",
        "energy": "marginal",
        "step_size": 0.5,
        "noise_std": 0.0,
    }
    record = trilemma.generate(run.classifier, per_class=1, steps=1).record
    assert (record["sampler"], record["energy"], record["options"]["step_size"]) == (
        "langevin",
        "marginal",
        0.5,
    )
    other = trilemma.generate(run.classifier, per_class=1, steps=1, sampler="momentum", step_size=0.1).record
    assert other["options"] == {"step_size": 0.1}


def test_export_takes_the_format_of_the_suffix_and_returns_the_file(run, tmp_path):
    exported = trilemma.export(run, tmp_path / "net.pt")
    assert Path(exported) == tmp_path / "net.pt"
    assert exported.metadata["checked_on"] == {"data": "digits", "split": "test", "images": 397}
    assert trilemma.export(run.path, form="state-dict").path == run.path / "export" / "classifier.pt"
    with pytest.raises(RunError, match="already exists"):
        trilemma.export(run, tmp_path / "net.pt")
    with pytest.raises(ConfigError, match="form='onnx' or form='state-dict'"):
        trilemma.export(run, tmp_path / "net.bin")


def test_lint_takes_a_run_a_network_and_tensors(run):
    images = load_images("digits").first(20)
    findings = trilemma.lint(run, images)
    assert isinstance(findings, list)
    scaled = trilemma.lint(run.classifier.network, 255 * images.float_images(), images.labels)
    assert "range" in [finding.name for finding in scaled]
    assert "error: range" in repr(scaled) and "<td>error: range</td>" in scaled._repr_html_()
    assert repr(type(scaled)()) == "the lint found nothing"
    with pytest.raises(ConfigError, match="without labels"):
        trilemma.lint(run, images.float_images())


def test_compare_returns_the_table_and_writes_the_file(complete_run, run, tmp_path):
    table = trilemma.compare([complete_run.path, run], tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == table.to_csv()
    assert "clean v1" in repr(table) and "<table>" in table._repr_html_()
    assert table.to_markdown().startswith("| run | method |")
    with pytest.raises(ConfigError, match="pass a list of run folders"):
        trilemma.compare(str(run.path))
    with pytest.raises(ConfigError, match="unknown suffix"):
        trilemma.compare([run], tmp_path / "table.docx")
