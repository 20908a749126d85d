"""A reader's browser: every cell of a chapter run, a slider moved, an exercise solved, nothing asked of the network."""

import os
import sys

import pytest
from lab import CHROMIUM, browser_page, jupyterlab, open_notebook, run_all

ERRORS = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]'  # tracebacks and warnings alike


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    if CHROMIUM is None:
        if os.environ.get("CI") and sys.platform == "linux":
            pytest.fail("Continuous integration must have Chromium: .ci/run installs it.")
        pytest.skip("Chromium is not installed: this test runs chapters in a real browser.")
    with jupyterlab(tmp_path_factory.mktemp("lab")) as url:
        yield url


@pytest.fixture
def page():
    with browser_page() as page:
        yield page
        assert page.errors == []
        assert page.outside == []


def retype(page, cell, source: str) -> None:
    """Replace a cell's source by typing, and run it."""
    cell.locator(".cm-content").click()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.insert_text(source)
    page.keyboard.press("Control+Enter")


def test_a_chapter_runs_and_its_slider_moves_the_picture(lab, page):
    open_notebook(page, lab % "01_the_bill.ipynb")
    run_all(page, last="text=Exercise 1.5: not solved yet")
    assert page.locator(ERRORS).count() == 0
    handle, readout = page.locator(".noUi-handle").first, page.locator(".widget-readout").first
    picture = page.locator("img.widget-image").first
    before, value, pixels = picture.get_attribute("src"), readout.inner_text(), picture.screenshot()
    handle.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("src => document.querySelector('img.widget-image').src !== src", arg=before)
    assert readout.inner_text() != value
    assert picture.screenshot() != pixels


def test_an_exercise_is_solved_by_typing_and_an_error_would_be_seen(lab, page):
    open_notebook(page, lab % "00_how_to_use_this_book.ipynb")
    run_all(page, last="text=Exercise 0.1: not solved yet")
    assert page.locator(ERRORS).count() == 0
    cell = page.locator(".jp-CodeCell", has_text="def add(a, b)")
    verdict = cell.locator(".jp-OutputArea-output", has_text="Exercise 0.1")
    for body, says in (("a * b", "✗ Exercise 0.1"), ("a + b", "✓ Exercise 0.1: solved")):
        retype(page, cell, f'def add(a, b):\n    return {body}\n\ncheck("0.1", add)')
        verdict.filter(has_text=says).wait_for(timeout=30_000)
    retype(page, cell, "def add(a, b): ...\n1 / 0")
    page.locator(ERRORS).wait_for(timeout=30_000)
