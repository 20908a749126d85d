"""JupyterLab on a copy of the chapters, and a headless Chromium in front of it."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from minids.book.__main__ import copy_chapters, quiet

CHAPTERS = Path(__file__).parents[1] / "chapters"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
IDLE = '.jp-Notebook-ExecutionIndicator[data-status="idle"]'


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """Serve a copy of the chapters on the loopback interface; yield the address of a notebook, with %s for its name.

    Everything JupyterLab writes goes to `folder`.
    """
    copy_chapters(CHAPTERS, folder / "book")  # as a reader has them: without outputs
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, log = secrets.token_hex(8), folder / "lab.log"
    names = ("CONFIG_DIR", "RUNTIME_DIR", "DATA_DIR")
    environment = os.environ | {f"JUPYTER_{name}": str(folder / name.lower()) for name in names}
    environment |= {f"JUPYTERLAB_{name}": str(folder / name.lower()) for name in ("SETTINGS_DIR", "WORKSPACES_DIR")}
    environment |= quiet(folder / "quiet")
    environment |= {"IPYTHONDIR": str(folder / "ipython"), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder / 'book'}",
    ]  # fmt: skip
    with log.open("w") as output:
        lab = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(300):
            if lab.poll() is not None:
                raise RuntimeError(log.read_text())
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=2)
                break
            time.sleep(0.2)
        else:
            raise RuntimeError(log.read_text())
        yield f"{address}/lab/tree/%s?token={token}&reset"
    finally:
        lab.terminate()
        try:
            lab.wait(20)
        except subprocess.TimeoutExpired:
            lab.kill()
            lab.wait()


@contextlib.contextmanager
def browser_page(dark: bool = False) -> Iterator:
    """Yield a page of a headless Chromium. `page.errors` are its errors, `page.outside` requests to elsewhere."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="dark" if dark else "light")
        page.errors, page.outside = [], []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("request", lambda request: page.outside.append(request.url) if is_outside(request.url) else None)
        page.on("websocket", lambda socket: page.outside.append(socket.url) if is_outside(socket.url) else None)
        yield page
        browser.close()


def is_outside(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))


def open_notebook(page, url: str) -> None:
    """Open a notebook and wait until its kernel is there."""
    page.goto(url, wait_until="domcontentloaded")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=60_000)
    # "Idle" is also shown while there is no kernel, so wait for its name.
    page.locator(".jp-Toolbar-kernelName", has_text="Python 3").wait_for(timeout=60_000)
    page.locator(IDLE).wait_for(timeout=60_000)


def run_all(page, last: str) -> None:
    """Run all cells, and wait for `last`, something that only a new output shows, and for the kernel."""
    page.locator(".lm-MenuBar-item", has_text="Run").click()
    page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
    page.locator(last).last.wait_for(timeout=120_000)
    page.locator(IDLE).wait_for(timeout=120_000)
