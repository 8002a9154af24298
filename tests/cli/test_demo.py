"""``trilemma demo``: which classifier it takes, its mistakes, and its end. The page itself: tests/demo."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from trilemma.cli import demo


def test_the_quickstart_is_taken_if_there_is_one(untrained_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert demo.newest_quickstart() is None
    shutil.copytree(untrained_run, "quickstart/pgd-at")
    chosen = demo.newest_quickstart()
    assert chosen is not None and chosen.path == Path("quickstart/pgd-at")
    shutil.copytree(untrained_run, "quickstart/eb-jdat")
    shutil.copytree(untrained_run, "quickstart/standard")
    chosen = demo.newest_quickstart()
    assert chosen is not None and chosen.path == Path("quickstart/eb-jdat")
    # A run that is not finished is none.
    (tmp_path / "quickstart" / "eb-jdat" / "status.json").write_text('{"status": "running"}')
    chosen = demo.newest_quickstart()
    assert chosen is not None and chosen.path != Path("quickstart/eb-jdat")


def test_a_port_that_is_taken_or_invalid_is_one_line(mistake):
    with socket.socket() as other:
        other.bind((demo.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        line = mistake("demo", "--port", port)
        assert line == f"--port {port}: cannot be used (Address already in use); choose another --port"
        # By default, the next one is taken.
        assert demo.free_port(None) in demo.PORTS
    assert "'--port': Input should be less than or equal to 65535" in mistake("demo", "--port", 70000)
    assert "--port" in mistake("demo", "--port", "web")


def test_without_gradio_it_says_what_to_install(mistake, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "trilemma.demo.page", raising=False)
    assert mistake("demo").endswith("pip install -e '.[demo]' in the clone")


def test_a_classifier_that_does_not_exist_is_one_line(mistake):
    assert mistake("demo", "runs/none").startswith("runs/none: no such run folder or classifier file")


def test_ctrl_c_ends_the_page_without_a_traceback(tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install -e '.[demo]'")
    command = [sys.executable, "-m", "trilemma", "demo"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell starts background jobs, and so perhaps these tests, with Ctrl-C ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as server:
        assert server.stdout is not None
        address = server.stdout.readline()
        server.send_signal(signal.SIGINT)
        try:
            output, errors = server.communicate(timeout=60)
        finally:
            server.kill()
    assert server.returncode == 0, errors
    assert address.startswith("http://127.0.0.1:78") and output == ""
    assert errors.splitlines() == ["Ctrl-C ends the page", "the page has ended"]
