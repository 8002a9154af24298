"""``trilemma demo``: one page in the browser about a classifier, served on this machine."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Annotated

from trilemma.classifier.source import ClassifierSource
from trilemma.cli.common import Data, Device, Quiet, choose_device, option, print_error, print_progress
from trilemma.cli.model import with_classifier
from trilemma.cli.quickstart import NAMES
from trilemma.errors import ConfigError
from trilemma.printing import print_lines
from trilemma.processes import sigterm_interrupts
from trilemma.runs.run_directory import ENDED, RunDirectory

HOST = "127.0.0.1"
# The first of these ports that is free is the default.
PORTS = range(7860, 7960)
# Default folder of the quickstart, and its run to show: the one that is robust and generates.
QUICKSTART, PREFERRED = Path("quickstart"), "eb-jdat"

Port = Annotated[
    int | None,
    option(
        "--port N", f"port on this machine  [default: the first free one from {PORTS[0]}]", min=1, max=65535
    ),
]
Share = Annotated[
    bool,
    option(
        "--share", "also publish the page through a tunnel of gradio; anybody with the address can use it"
    ),
]


@with_classifier
def demo(
    classifier: ClassifierSource,
    port: Port = None,
    share: Share = False,
    data: Data = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Serves a page to try a classifier in the browser.

    Four tabs: attack an image; generate images of a class, with the chains and their energy on their way; move an image
    to another class; and the plane of E(x) and E(x, y) with clean, adversarial and generated images. Without
    RUN_OR_FILE, it is the classifier of the newest quickstart in the working directory, else one of the 8x8 digits that
    is part of this package. Nothing is sent to another machine unless --share is given. Ctrl-C ends it. Requires the
    extra 'demo'.

    \b
    Examples:
      trilemma demo
      trilemma demo runs/digits-eb-jdat --port 8000
      trilemma demo model.safetensors --data scans/
    """
    chosen = newest_quickstart() if classifier.empty else classifier
    if chosen is not None:
        chosen.check()
    free = free_port(port)
    # First of all, since reading the data may take long.
    from trilemma.demo.page import serving
    from trilemma.demo.subject import open_subject

    subject = open_subject(chosen, choose_device(device), data)
    with sigterm_interrupts(), serving(subject, free, share) as (local, public):
        try:
            print_progress("Ctrl-C ends the page", quiet)
            if share and public is None:
                print_error(
                    "--share: gradio's tunnel cannot be reached; the page is on this machine only", ""
                )
            print_lines(*(url for url in (local, public) if url is not None))
            threading.Event().wait()
        except KeyboardInterrupt:
            print_progress("the page has ended", quiet)


def newest_quickstart() -> ClassifierSource | None:
    """The quickstart in the working directory: its run eb-jdat, else the newest finished one; ``None`` without any."""
    runs = [RunDirectory(QUICKSTART / name) for name in NAMES]
    finished = [run for run in runs if run.status().get("status") in ENDED and run.classifiers()]
    if not finished:
        return None

    def rank(run: RunDirectory) -> tuple[bool, int]:
        return run.path.name == PREFERRED, run.status_file.stat().st_mtime_ns

    return ClassifierSource(max(finished, key=rank).path)


def free_port(port: int | None) -> int:
    """Returns ``port``, by default the first free one of :data:`PORTS`.

    Raises:
        ConfigError: it is in use or not allowed, or all of them are.
    """
    for candidate in PORTS if port is None else [port]:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            # As the server itself does: a port whose connections have just been closed is free.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, candidate))
            except OSError as error:
                reason = error.strerror
                continue
        return candidate
    if port is None:
        raise ConfigError(f"ports {PORTS[0]} to {PORTS[-1]}: all in use; choose another one with --port")
    raise ConfigError(f"--port {port}: cannot be used ({reason}); choose another --port")
