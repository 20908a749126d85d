"""How long each chapter takes: to read, as its opening says, and to run, as measured by `make minutes`.

A chapter is run twice, as a reader runs it: on an otherwise idle machine, and beside a program that keeps every core
busy.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

from minids.book.check import CHAPTERS
from minids.book.recorded import DATA
from minids.device import cpu_name
from minids.files import write_atomically

FILE = DATA / "minutes.json"
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends with the process that started it


def run_seconds(path: Path) -> float:
    """Execute a notebook, keep nothing of it, and return the seconds that it took."""
    import nbformat
    from nbclient import NotebookClient

    from minids.book.build import CELL_SECONDS

    folder = {"metadata": {"path": str(path.parent)}}
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3", resources=folder)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    started = perf_counter()
    client.execute(env=environment | {"PYTHONHASHSEED": "0"})
    return perf_counter() - started


@contextlib.contextmanager
def busy_cores() -> Iterator[list[subprocess.Popen]]:
    """Keep every core busy with one other process each."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(os.cpu_count())]
    try:
        yield others
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure(paths: list[Path], file: Path = FILE) -> None:
    """Measure these chapters, or all of them, and store the seconds in the file."""
    machine = {"cpu": cpu_name(), "cores": os.cpu_count()}
    record = recorded(file)
    if record["machine"] != machine:  # the times of one machine only
        record = {"machine": machine, "seconds": {}}
    for path in paths or sorted(CHAPTERS.glob("*.ipynb")):
        alone = run_seconds(path)
        with busy_cores():
            busy = run_seconds(path)
        record["seconds"][path.stem] = {"alone": round(alone, 1), "busy": round(busy, 1)}
        record["seconds"] = dict(sorted(record["seconds"].items()))
        print(f"{path.stem}: {alone:.1f} s alone, {busy:.1f} s on busy cores", flush=True)
        write_atomically(file, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def recorded(file: Path = FILE) -> dict:
    """Return what has been measured so far, by chapter, and on which machine."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"machine": None, "seconds": {}}


class Minutes:
    """The table of the chapters that exist, with their minutes."""

    def __init__(self):
        record, self.rows = recorded(), []
        self.machine = "Measured on {cpu}, {cores} cores.".format_map(record["machine"]) if record["machine"] else ""
        for path in sorted(CHAPTERS.glob("*.ipynb")):
            opening = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
            title = re.match(r"# (.+)", opening)[1]
            reading = re.search(r"(?i)\babout (\d+) minutes", opening)
            seconds = record["seconds"].get(path.stem, {})
            times = [_time(seconds.get(way)) for way in ("alone", "busy")]
            self.rows.append((title, path.name, f"{reading[1]} min" if reading else "–", *times))

    def __repr__(self) -> str:
        rows = (
            f"{title}: {read} to read, {alone} to run, {busy} on busy cores"
            for title, _, read, alone, busy in self.rows
        )
        return "\n".join([*rows, self.machine])

    def _repr_markdown_(self) -> str:
        head = "| chapter | reading and exercises | running all cells | running, with every core busy |\n"
        rows = (f"| [{title}]({name}) | {read} | {alone} | {busy} |" for title, name, read, alone, busy in self.rows)
        return "\n".join([head + "|---|---:|---:|---:|", *rows, "", self.machine])


def minutes() -> Minutes:
    """Return the table of the chapters and their minutes."""
    return Minutes()


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not measured"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
