"""The page in a browser: what a user clicks, reads and uploads, and that no request leaves this machine."""

from __future__ import annotations

import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trilemma.cli.demo import free_port

pytest.importorskip("gradio", reason="gradio is not installed: pip install -e '.[demo]'")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Gradio, its server and the driver warn of what only they can change.
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no Chromium: install the package chromium of the system"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*:ResourceWarning"),
]
LOCAL = ("127.0.0.1", "::1", "localhost")
# Milliseconds until a step of a test has failed; on a busy machine the browser is slow.
PATIENCE = 90_000
Page = Any


@pytest.fixture(scope="module")
def contacted() -> Iterator[list[object]]:
    """Addresses that this process connects to, while it serves the page."""
    addresses: list[object] = []
    connect = socket.socket.connect

    def recorded(self: socket.socket, address: Any) -> None:
        addresses.append(address[0] if isinstance(address, tuple) else "local")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", recorded)
        yield addresses


@pytest.fixture(scope="module")
def address(subject, contacted) -> Iterator[str]:
    """The address of the page of the packaged classifier, which this process serves."""
    from trilemma.demo.page import serving

    with serving(subject, free_port(None)) as (local, public):
        assert public is None
        yield local


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # Chromium starts in a container without a sandbox only.
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def requests() -> list[str]:
    """Every address that the browser asked for."""
    return []


@pytest.fixture(scope="module")
def open_page(browser, address, requests) -> Callable[..., Page]:
    def open_(**options: Any) -> Page:
        page = browser.new_context(**options).new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        page.wait_for_selector("#attack-start")
        return page

    return open_


@pytest.fixture(scope="module")
def page(open_page) -> Page:
    return open_page()


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def pick(page: Page, index: int) -> None:
    page.click(f'.pick[data-index="{index}"]')
    page.wait_for_selector(f"#chosen >> text=Test image {index + 1},")


def upload(page: Page, path: Path) -> str:
    """Uploads a file; returns the sentence beside the image, or the answer to the mistake."""
    page.set_input_files("#upload input, input[type=file]", path)
    page.wait_for_selector(f"#chosen >> text={path.name}")
    return str(page.inner_text("#chosen"))


def enter(page: Page, field: str, value: str) -> None:
    """Writes into a field until it stays, as a reader does: on a busy machine a tab may still be filling in its own.

    The page then has the time that a reader needs to reach the next field.
    """
    box = page.locator(f"#{field} input, #{field} textarea")
    deadline = time.monotonic() + PATIENCE / 1000
    while True:
        box.press("ControlOrMeta+a")
        box.press_sequentially(value) if value else box.press("Delete")
        box.blur()
        page.wait_for_timeout(400)
        if box.input_value() == value:
            return
        assert time.monotonic() < deadline, f"{field} shows {box.input_value()!r} instead of {value!r}"


def answered(page: Page, name: str, words: str) -> bool:
    """Presses the button of a tab, and waits until it answers with these words, in one line."""
    page.click(f"#{name}-start")
    line = page.locator(f"#{name}-status [role=alert]").filter(has_text=words)
    line.wait_for()
    return "\n" not in line.inner_text() and "Traceback" not in page.content()


def numbers(page: Page, name: str) -> dict[str, list[str]]:
    """The table of a result: first column to the others."""
    rows = page.locator(f"#{name}-result tbody tr").all()
    cells = [row.locator("th, td").all_inner_texts() for row in rows]
    return {first: rest for first, *rest in cells}


def test_the_page_says_which_classifier_it_shows(page):
    text = page.inner_text("dl")
    for words in ("8x8 digits", "eb-jdat", "L∞, radius 0.2", "98.2 % of 397", "autoattack-standard"):
        assert words in text
    assert page.locator(".pick").count() == 20


def test_without_an_image_attack_and_counterfactual_say_so(open_page):
    page = open_page()
    words = "no image chosen; click a test image above, or upload one"
    assert answered(page, "attack", words)
    tab(page, "Counterfactual")
    assert answered(page, "counterfactual", words)


def test_a_test_image_is_attacked(page, subject, five):
    from trilemma.demo import compute

    pick(page, 3)
    page.click("#attack-start")
    page.wait_for_selector("#attack-result table")
    expected = compute.attack(subject, five, "linf", "0.2", "pgd", 20)
    rows = numbers(page, "attack")
    assert rows["class"][:2] == ["5", subject.clf.class_names[expected.after.label]]
    assert rows["confidence"][1] == f"{100 * expected.after.confidence:.1f} %"
    for name, key in (("E(x)", "marginal"), ("E(x, 5)", "joint")):
        before, after = (getattr(side, key) for side in (expected.before, expected.after))
        shown = [float(text.replace("\N{MINUS SIGN}", "-")) for text in rows[name]]
        assert shown == pytest.approx([before, after, after - before], abs=0.006)
    assert page.locator("#attack-result figure img").count() == 3


@pytest.mark.parametrize(
    ("radius", "words"),
    [("0", "must be above 0"), ("1.5", "more than the whole range [0, 1]"), ("wide", "is not a number")],
)
def test_a_wrong_radius_is_answered_on_the_page(page, radius, words):
    pick(page, 3)
    enter(page, "attack-radius", radius)
    assert answered(page, "attack", words)
    assert page.inner_text("#attack-result") == ""
    enter(page, "attack-radius", "0.2")


def test_uploads_are_converted_or_refused_in_a_sentence(page, files):
    assert "notes.png: cannot be decoded as an image" in upload(page, files["text"])
    assert answered(page, "attack", "no image chosen")
    assert "10,000 x 10,000 pixels, more than the 50 million" in upload(page, files["huge"])
    assert page.locator(".pick[aria-pressed=true]").count() == 0
    assert "transparent parts made black, colour converted to grey" in upload(page, files["rgba"])
    assert "centre cropped, resized to 8 x 8" in upload(page, files["wide"])
    page.click("#attack-start")
    page.wait_for_selector("#attack-result table")
    assert "of the class that the attack leads away from" in page.inner_text("#attack-result")


def test_an_image_is_moved_to_a_class_and_drawn_in_the_plane(page):
    pick(page, 3)
    tab(page, "Counterfactual")
    page.click("#counterfactual-start")
    page.wait_for_selector("#counterfactual-result table")
    assert re.match(r"5 becomes 9 at L2 distance 0\.\d+\.", page.inner_text("#counterfactual-result"))
    rows = numbers(page, "counterfactual")
    assert rows["class"][:2] == ["5", "9"] and "E(x, 9)" in rows
    assert page.locator("#counterfactual-result .figure img:visible").count() == 1
    tab(page, "Energy plane")
    enter(page, "plane-images", "20")
    page.click("#plane-start")
    page.wait_for_selector("#plane-result .figure")
    assert "20 test images of digits" in page.inner_text("#plane-result")


def test_chains_run_live_and_stop_really_stops_them(page, subject):
    tab(page, "Generate")
    enter(page, "generate-steps", "5000")
    page.click("#generate-start")
    page.wait_for_selector("#generate-result .chart polyline")
    page.click("#generate-stop")
    page.wait_for_selector("#generate-status >> text=Stopped after")
    assert not subject.clf.network._forward_pre_hooks
    assert re.search(r"Step \d+ of 5000", page.inner_text("#generate-result"))
    enter(page, "generate-steps", "30")
    enter(page, "generate-images", "2")
    page.click("#generate-start")
    page.wait_for_selector("#generate-result >> text=2 of 2 generated images are classified as 3")
    assert "start uniform, sampler langevin, energy joint, steps 30" in page.inner_text("#generate-result")
    enter(page, "generate-images", "65")
    assert answered(page, "generate", "must be at most 64")
    enter(page, "generate-images", "2.5")
    assert answered(page, "generate", "images: 2.5; enter a whole number")
    enter(page, "generate-images", "2")
    enter(page, "generate-steps", "-1")
    assert answered(page, "generate", "must be at least 0")
    enter(page, "generate-steps", "")
    page.click("#generate-start")
    page.wait_for_selector("#generate-result >> text=energy joint, steps 100")


def test_a_closed_browser_tab_leaves_no_computation(open_page, subject):
    page = open_page()
    tab(page, "Generate")
    enter(page, "generate-steps", "5000")
    page.click("#generate-start")
    page.wait_for_selector("#generate-result .chart polyline")
    assert subject.clf.network._forward_pre_hooks
    page.close()
    deadline = time.monotonic() + PATIENCE / 1000
    while subject.clf.network._forward_pre_hooks and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not subject.clf.network._forward_pre_hooks


def test_two_browser_tabs_keep_their_own_images_and_the_theme_is_the_readers(page, open_page):
    pick(page, 3)
    other = open_page(color_scheme="dark", viewport={"width": 390, "height": 800})
    pick(other, 4)
    for one, label in ((page, "5"), (other, "7")):
        tab(one, "Attack")
        one.click("#attack-start")
        one.wait_for_selector(f"#attack-result >> text=E(x, {label})")
        assert numbers(one, "attack")["class"][0] == label
    assert other.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 29)"
    # Nothing is wider than a phone, and all tabs are there.
    assert other.evaluate("document.documentElement.scrollWidth") == 390
    assert other.get_by_role("tab").count() == 4


def test_no_request_leaves_this_machine(page, address, requests, contacted):
    hosts = {url.split("/")[2] for url in requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {address.split("/")[2]}
    assert {host for host in contacted if host != "local"} <= set(LOCAL)
    # And the browser would load nothing from elsewhere.
    refused = page.evaluate("fetch('https://example.org/').then(() => 'loaded', () => 'refused')")
    assert refused == "refused"
