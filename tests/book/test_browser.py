"""A reader's browser on `make lab`: all cells run, a slider moved, an exercise solved, nothing asked of the network."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import pytest

from minids.book import __main__ as book

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
ERRORS = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]'  # tracebacks and warnings alike
TEXTS = (  # printed output, verdict, table, code, prose, and of sliders label, readout and text
    ".jp-OutputArea-output pre", ".jp-OutputArea-output p", ".jp-OutputArea-output td", ".cm-line",
    ".jp-MarkdownOutput p", ".widget-label", ".widget-readout", ".widget-html-content",
)  # fmt: skip
FONT_SIZE = "selector => parseFloat(getComputedStyle(document.querySelector(selector)).fontSize)"
IDLE = '.jp-Notebook-ExecutionIndicator[data-status="idle"]'


@pytest.fixture
def address(tmp_path, monkeypatch):
    """Where JupyterLab serves copies of the chapters on the loopback interface; all that it writes goes to a folder."""
    if CHROMIUM is None:
        if os.environ.get("CI") and sys.platform == "linux":
            pytest.fail("Continuous integration must have Chromium: .ci/run installs it.")
        pytest.skip("Chromium is not installed: this test runs a chapter in a real browser.")
    monkeypatch.setattr(book, "MINE", tmp_path / "my")
    book.copy_chapters(book.CHAPTERS, book.MINE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTERLAB_SETTINGS_DIR")
    folders = {name: str(tmp_path / name) for name in (*folders, "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}
    options = ["--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0"]
    command = book.lab_command([*options, "--IdentityProvider.token=secret"])
    log, url = tmp_path / "lab.log", f"http://127.0.0.1:{port}/%s?token=secret"
    with log.open("w") as output:
        environment = os.environ | folders | book.quiet(tmp_path / "quiet")
        lab = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        for _ in range(300):
            assert lab.poll() is None, log.read_text()
            with suppress(OSError), urllib.request.urlopen(url % "api", timeout=2):
                break
            time.sleep(0.2)
        yield url % ""
    finally:
        lab.terminate()
        lab.wait(20)


@pytest.fixture
def page(address):
    """JupyterLab in a headless Chromium, which has neither seen an error nor asked anything else of the network."""
    from playwright.sync_api import sync_playwright

    def is_outside(url: str) -> bool:
        return not url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        errors, urls = [], []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: urls.append(request.url))
        page.on("websocket", lambda socket: urls.append(socket.url))
        page.goto(address, wait_until="domcontentloaded")
        yield page
        browser.close()
    assert errors == [] == list(filter(is_outside, urls))
    assert urls


def test_a_reader_runs_a_chapter_moves_its_slider_and_solves_its_exercise(page):
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=60_000)
    # "Idle" is also shown while there is no kernel, so wait for its name.
    page.locator(".jp-Toolbar-kernelName", has_text="Python 3").wait_for(timeout=60_000)
    page.locator(IDLE).wait_for(timeout=60_000)
    page.locator(".lm-MenuBar-item", has_text="Run").click()
    page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
    page.locator("text=Exercise 0.1: not solved yet").last.wait_for(timeout=120_000)
    page.locator(IDLE).wait_for(timeout=120_000)
    assert page.locator(ERRORS).count() == 0

    answer = page.locator("details pre").first
    assert not answer.is_visible()
    page.locator("details summary", has_text="fill in guess").first.click()
    assert answer.is_visible()

    handle, readout = page.locator(".noUi-handle").first, page.locator(".widget-readout").first
    picture = page.locator("img.widget-image").first
    before, value, pixels = picture.get_attribute("src"), readout.inner_text(), picture.screenshot()
    handle.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("src => document.querySelector('img.widget-image').src !== src", arg=before)
    assert readout.inner_text() != value
    assert picture.screenshot() != pixels

    cell = page.locator(".jp-CodeCell", has_text="def add(a, b)")

    def run_instead(source: str, cell=cell) -> None:
        cell.locator(".cm-content").click()
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.insert_text(source)
        page.keyboard.press("Control+Enter")

    for body, says in (("a * b", "✗ Exercise 0.1"), ("a + b", "✓ Exercise 0.1: solved"), ("a + b\n1 / 0", None)):
        run_instead(f'def add(a, b):\n    return {body}\n\ncheck("0.1", add)')
        verdict = cell.locator(".jp-OutputArea-output", has_text=says) if says else page.locator(ERRORS)
        verdict.wait_for(timeout=30_000)

    other = page.locator(".jp-CodeCell", has_text="show(start)")
    for place, on, sizes in ((other.first, True, {20}), (cell.last, False, {13, 14})):  # off in another cell than on
        run_instead(f"projector({on})  # def add(a, b) show(start)\nprint({on}, 'it is')", place)
        place.locator(".jp-OutputArea-output", has_text=f"{on} it is").wait_for(timeout=30_000)
        assert {page.evaluate(FONT_SIZE, selector) for selector in TEXTS} <= sizes
