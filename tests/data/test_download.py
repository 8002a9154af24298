"""Downloads are resumed, verified and never half there, against a server on this machine."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from trilemma.data import download
from trilemma.errors import DataError, NotStoredError

DATA = bytes(range(256)) * 400
MD5 = hashlib.md5(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves DATA at /file; ``cut``: bytes before the next answer breaks off; ``ranges``: honour Range."""

    cut: int | None = None
    ranges = True
    requests: list[str | None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.headers["Range"])
        if self.path != "/file":
            self.send_error(404)
            return
        start = int(self.headers["Range"][6:-1]) if self.headers["Range"] and self.server.ranges else 0
        if start >= len(DATA):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")
        self.send_header("Content-Length", str(len(DATA) - start))
        self.end_headers()
        cut, self.server.cut = self.server.cut, None
        self.wfile.write(DATA[start:cut])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.requests = []
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_whole_file_arrives_under_its_name_only(server: Server, tmp_path: Path) -> None:
    download.fetch(server.url, tmp_path / "deep" / "file", MD5)
    assert (tmp_path / "deep" / "file").read_bytes() == DATA
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]
    download.fetch(server.url, tmp_path / "deep" / "file", MD5)
    assert len(server.requests) == 1  # it is there already


def test_cut_is_resumed_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.cut = 30_000
    download.fetch(server.url, tmp_path / "file", hashlib.sha256(DATA).hexdigest())
    assert (tmp_path / "file").read_bytes() == DATA
    assert server.requests == [None, "bytes=30000-"]


def test_cut_that_does_not_heal_keeps_the_part_for_the_next_call(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.cut = 30_000
    with pytest.raises(DataError, match="connection was cut; run again to resume"):
        download.fetch(server.url, tmp_path / "file", MD5)
    assert not (tmp_path / "file").exists()
    download.fetch(server.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == DATA
    assert server.requests[1] == "bytes=30000-"


def test_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "file.part").write_bytes(DATA[:1000])
    download.fetch(server.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == DATA


def test_complete_part_is_accepted(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(DATA)
    download.fetch(server.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == DATA


def test_wrong_checksum_removes_the_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"wrong checksum \(md5 .*, expected 0000"):
        download.fetch(server.url, tmp_path / "file", "0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_missing_file_and_missing_server_are_one_line(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"answers 404 .* set data\.root to its folder"):
        download.fetch(server.url + "/no", tmp_path / "file", MD5)
    with pytest.raises(DataError, match="refused"):
        download.fetch("http://127.0.0.1:9/file", tmp_path / "file", MD5)


def test_target_that_cannot_be_written_says_so(server: Server, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("in the way")
    with pytest.raises(NotStoredError, match="cannot be written"):
        download.fetch(server.url, tmp_path / "blocked" / "file", MD5)
