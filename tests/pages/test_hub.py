"""Runs and classifiers on the Hugging Face hub: the files, the card, and a round trip through a server on this host."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml

import trilemma
from trilemma.errors import CheckpointError, ConfigError, MissingExtraError, RunError
from trilemma.pages.lint import lint_result
from trilemma.runs.read import read_contents
from trilemma.runs.run_directory import RunDirectory


@pytest.fixture
def run(complete_run: Any, tmp_path: Path) -> Path:
    """A run with rows, whose configuration names paths of this machine."""
    path = Path(shutil.copytree(complete_run.path, tmp_path / "full"))
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["training"]["start"] = str(tmp_path)
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    directory = RunDirectory(path)
    directory.write_environment({**directory.environment(), "command": f"trilemma train {tmp_path}"})
    directory.add_event(
        {"step": 0, "epoch": 0, "kind": "start", "name": "weights", "message": f"of {tmp_path}"}
    )
    return path


def test_the_files_of_a_run_are_a_run_without_paths_of_this_machine(run: Path, tmp_path: Path) -> None:
    folder = Path(trilemma.push(run, "owner/net", license="mit", out=tmp_path / "files"))
    for file in folder.rglob("*"):
        if file.is_file():
            assert str(tmp_path).encode() not in file.read_bytes(), file
    pushed, clf = RunDirectory.open(folder), trilemma.load(run)
    assert pushed.config().method.name == "pgd-at"
    assert [event["name"] for event in pushed.events()] == ["divergence", "rollback"]
    for loaded in (trilemma.load(folder), trilemma.load(folder / "classifier.safetensors")):
        assert torch.equal(next(loaded.parameters()), next(clf.parameters()))
    assert "clean" in trilemma.report(folder, tmp_path / "page.html").read_text()
    with pytest.raises(RunError, match="already exists"):
        trilemma.push(run, "owner/net", out=folder)


def test_the_card_states_results_findings_and_how_to_load_it(run: Path, tmp_path: Path) -> None:
    text = (
        Path(trilemma.push(run, "owner/net", license="mit", out=tmp_path / "files")) / "README.md"
    ).read_text()
    _, header, body = text.split("---\n", 2)
    data = yaml.safe_load(header)
    assert data["license"] == "mit" and data["library_name"] == "trilemma" and "pgd-at" in data["tags"]
    rows = RunDirectory(run).path / "evaluation"
    clean = json.loads((rows / "clean.json").read_text())
    metrics = {r["metrics"][0]["name"]: r["metrics"][0]["value"] for r in data["model-index"][0]["results"]}
    assert metrics["clean v1, 20 images"] == clean["value"]
    assert "pgd-20 v1, linf 0.2, 20 images" in metrics
    assert 'trilemma.load("hub:owner/net")' in body and "[N, 1, 8, 8]" in body
    assert f"| clean | accuracy | {100 * clean['value']:.1f} %" in body
    lint = lint_result(read_contents(run))
    assert f"Lint: {lint.line}" in body and "Licence: mit." in body
    assert all(f"- {finding.severity}: {finding.name}" in body for finding in lint.findings)


def test_a_classifier_has_a_card_without_results_and_its_names_are_escaped(toy: Any, tmp_path: Path) -> None:
    clf = toy.mlp(class_names=["<script>", "a|b", "*c*"])
    clf.about = {"source": {"source": str(tmp_path / "net.pt")}}
    folder = Path(trilemma.push(clf, "owner/net", out=tmp_path / "files"))
    text = (folder / "README.md").read_text()
    assert "Nothing was measured" in text and "No licence was chosen" in text and "license" not in text
    assert "<script>" not in text and "a\\|b" in text
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "classifier.safetensors"]
    assert str(tmp_path).encode() not in (folder / "classifier.safetensors").read_bytes()
    assert clf.about == {"source": {"source": str(tmp_path / "net.pt")}}


def test_mistakes_are_one_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="write OWNER/NAME"):
        trilemma.push(run, "net", out=tmp_path / "files")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # makes importing it fail
    for call in (lambda: trilemma.push(run, "owner/net"), lambda: trilemma.pull("owner/net", tmp_path / "x")):
        with pytest.raises(MissingExtraError, match=r"pip install -e '\.\[hub\]'"):
            call()


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that an upload of small files and a download use; one repository in memory."""

    files: ClassVar[dict[str, bytes]] = {}
    commit = "0" * 40

    def log_message(self, *_: Any) -> None: ...

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "X-Repo-Commit": self.commit,
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [
                {"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for name in names
            ]
            return self._answer({"files": modes})
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        host = f"http://{self.headers['Host']}"
        url = f"{host}/owner/net/commit/{self.commit}"
        return self._answer(
            {"url": f"{host}/owner/net", "commitUrl": url, "commitOid": self.commit, "success": True}
        )

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            siblings = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
            info = {
                "_id": "1",
                "id": "owner/net",
                "sha": self.commit,
                "private": False,
                "siblings": siblings,
                "tags": [],
            }
            tree = [{"type": "file", "path": n, "size": len(c), "oid": "1"} for n, c in self.files.items()]
            return self._answer(tree if "/tree/" in self.path else info)
        content = self.files.get(self.path.partition("?")[0].partition("/resolve/")[2].partition("/")[2])
        if content is None:
            return self._answer({}, 404, {"X-Error-Code": "EntryNotFound"})
        return self._answer(content, headers={"ETag": hashlib.sha1(content).hexdigest()})

    def do_HEAD(self) -> None:
        self.do_GET()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    pytest.importorskip("huggingface_hub", reason="the extra 'hub' is not installed")
    constants = pytest.importorskip("huggingface_hub.constants")
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{httpd.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", "hf_made_up")
        monkeypatch.setattr(Hub, "files", {})
        yield Hub
        httpd.shutdown()


@pytest.mark.filterwarnings("default")
def test_a_run_makes_the_round_trip_through_the_hub(run: Path, tmp_path: Path, server: type[Hub]) -> None:
    address = trilemma.push(run, "owner/net", license="mit")
    assert address.endswith(f"/owner/net/commit/{Hub.commit}")
    assert {
        "README.md",
        "classifier.safetensors",
        "config.yaml",
        "evaluation/clean.json",
    } <= server.files.keys()
    clf = trilemma.load(run)
    assert torch.equal(next(trilemma.load("hub:owner/net").parameters()), next(clf.parameters()))
    folder = trilemma.pull("owner/net", tmp_path / "pulled")
    assert trilemma.compare([folder, run]).entries[0].method == "pgd-at"
    assert torch.equal(next(trilemma.load(folder).parameters()), next(clf.parameters()))
    with pytest.raises(RunError, match="already exists"):
        trilemma.pull("owner/net", folder)


@pytest.mark.filterwarnings("default")
def test_a_refused_upload_is_one_line(run: Path, server: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "do_POST", lambda handler: handler._answer({"error": "Invalid token"}, 401))
    with pytest.raises(CheckpointError, match="owner/net: cannot be uploaded") as refused:
        trilemma.push(run, "owner/net")
    assert "\n" not in str(refused.value) and "hf auth login" in str(refused.value)
