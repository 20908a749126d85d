"""Executes notebooks and normalises them for the repository: `make book`.

Sources, tags, outputs and one count per executed cell are kept. What changes from build to build is
dropped: widget state, timestamps, the kernel's name. So building twice changes nothing.

The output of a cell tagged `measured` depends on times and would change at every build. The stored picture is kept
as long as the cell's source and the text of its output are the same.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from minids.book.explore import VIEW
from minids.files import write_atomically

CELL_SECONDS = 600  # enough for a busy machine
# As for tests (Makefile): printed digits must depend neither on threads nor on the hash seed.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false"}
# A number that was measured, and may differ, and a line of live-written text: the same patterns as in tests/nbval.cfg.
MEASURED = re.compile(r"≈ \d+(?:[.,]\d+)?(?:\s?(?:ns|µs|ms|s|min)\b)?(?= \(measured\))|│ [^\n]*(?:\n│[^\n]*)*")
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def build(path: Path, fresh: bool = False) -> bool:
    """Execute a notebook, normalise and store it; return whether the file changed.

    `fresh` redraws measured pictures. Raises nbclient's CellExecutionError where a cell fails, and then leaves
    the file unchanged.
    """
    before = path.read_text(encoding="utf-8")
    stored = nbformat.reads(before, as_version=4)
    notebook = nbformat.reads(before, as_version=4)
    client = NotebookClient(
        notebook, timeout=CELL_SECONDS, kernel_name="python3", coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )  # fmt: skip
    client.execute(env=os.environ | ENVIRONMENT)
    after = text_of(normalise(notebook, None if fresh else stored))
    if after != before:
        write_atomically(path, after)
    return after != before


def normalise(notebook: NotebookNode, stored: NotebookNode | None = None) -> NotebookNode:
    """Return an executed notebook in its normal form; `stored` is the notebook as it is in the file."""
    known = {cell.id: cell for cell in stored.cells} if stored else {}
    notebook.metadata = nbformat.from_dict(KERNEL)
    count = 0
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type != "code":
            continue
        if cell.execution_count is not None:
            count += 1
            cell.execution_count = count
        cell.outputs = [_output(output, count) for output in cell.outputs]
        if "measured" in tags and cell.id in known and _says_the_same(cell, known[cell.id]):
            cell.outputs = known[cell.id].outputs
    nbformat.validate(notebook)
    return notebook


def text_of(notebook: NotebookNode) -> str:
    """Return the file's text."""
    return nbformat.writes(notebook, version=4) + "\n"


def _output(output: NotebookNode, count: int) -> NotebookNode:
    if "execution_count" in output:
        output.execution_count = count
    if "metadata" in output:
        image = output.metadata.get("image/png")
        width = {"width": image["width"]} if image and "width" in image else None
        output.metadata = nbformat.from_dict({"image/png": width} if width else {})
    if "data" in output:
        output.data.pop(VIEW, None)  # without a kernel, as in a stored notebook, sliders do not work
    if "image/png" in output.get("data", {}):
        output.data["image/png"] = output.data["image/png"].strip()
    return output


def _says_the_same(cell: NotebookNode, stored: NotebookNode) -> bool:
    def said(cell: NotebookNode) -> list:
        texts = (output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)
        return [MEASURED.sub("TIME", text) for text in texts]

    return cell.source == stored.get("source") and said(cell) == said(stored)
