"""The guard of notebooks: each thing it watches, broken once."""

import base64
import shutil
from pathlib import Path

import nbformat
import pytest

from minids.book.lint import complaints, repeated_bodies

ORIGINAL = Path(__file__).parents[2] / "chapters" / "01_the_bill.ipynb"


@pytest.fixture
def broken(tmp_path):
    """Return a function that applies a change to a copy of chapter 1 and returns the complaints about it."""
    folder = tmp_path / "chapters"
    shutil.copytree(ORIGINAL.parent, folder)
    shutil.copytree(ORIGINAL.parents[1] / "figures", tmp_path / "figures")
    path = folder / ORIGINAL.name

    def complain(change) -> str:
        notebook = nbformat.read(path, as_version=4)
        change(notebook)
        nbformat.write(notebook, path)
        return "\n".join(complaints(path))

    return complain


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook) -> list:
    return [out for cell in code(notebook) for out in cell.outputs if "image/png" in out.get("data", {})]


def markdown(notebook, old: str, new: str) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace(old, new)


def untag(notebook, tag: str) -> None:
    for cell in notebook.cells:
        cell.metadata.tags = [known for known in cell.metadata.get("tags", []) if known != tag]


def stream(text: str, name: str = "stdout"):
    return nbformat.v4.new_output("stream", name=name, text=text)


BREAKS = {
    "numbered": lambda nb: code(nb)[2].update(execution_count=None),
    "in order": lambda nb: code(nb)[2].update(execution_count=40),
    "has 26 lines": lambda nb: code(nb)[2].update(source="x = 1\n" * 26),
    "has 101 characters": lambda nb: code(nb)[2].update(source="x" * 101),
    "Half of the code cells": lambda nb: [cell.update(source="x = 1\n" * 9) for cell in code(nb)],
    "cell names a place": lambda nb: code(nb)[2].update(source="open('/home/me/x')"),
    r"one machine: C:\Users": lambda nb: code(nb)[2].update(source=r"open(r'C:\Users\me')"),
    "one machine: /mnt/x": lambda nb: code(nb)[2].update(source="'file:/mnt/x'"),
    "one machine: 0x7f00aa": lambda nb: code(nb)[2].outputs.append(stream("<object at 0x7f00aa11>")),
    "output names a place": lambda nb: code(nb)[2].outputs.append(stream("/tmp/ipykernel_1/2.py")),
    "standard error": lambda nb: code(nb)[2].outputs.append(stream("warning", "stderr")),
    "fails with ValueError": lambda nb: code(nb)[2].outputs.append(
        nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    ),
    "no text of its own": lambda nb: pictures(nb)[0].data.update({"text/plain": "<Figure size 900x500>"}),
    "picture has": lambda nb: pictures(nb)[0].data.update({"image/png": base64.b64encode(bytes(100_001)).decode()}),
    "notebook has": lambda nb: code(nb)[2].outputs.append(stream("x" * 1_000_000)),
    "widget state": lambda nb: nb.metadata.update(widgets={"state": {}}),
    "backslash too many": lambda nb: nb.cells[0].update(source=nb.cells[0].source + "\n$\\\\varphi$"),
    "comes from elsewhere": lambda nb: nb.cells[0].update(source=nb.cells[0].source + "\n![x](https://a.b/c.png)"),
    "leads nowhere": lambda nb: nb.cells[0].update(source=nb.cells[0].source + "\n[x](99_nothing.ipynb)"),
    "elsewhere: https://d": lambda nb: nb.cells[0].update(source=nb.cells[0].source + "\nx <img src='https://d.e/f'>"),
    "nowhere: gone.md": lambda nb: nb.cells[0].update(source=nb.cells[0].source + '\n[x](gone.md "title")'),
    "not of chapter 1": lambda nb: code(nb)[-1].metadata.update(tags=["ex-2.5"]),
    "begin with": lambda nb: markdown(nb, "# 1 · The bill", "# The bill"),
    "'By the end'": lambda nb: markdown(nb, "By the end", "Later"),
    "'minutes'": lambda nb: nb.cells[0].update(source=nb.cells[0].source.replace("minutes", "hours")),
    "'You need'": lambda nb: markdown(nb, "You need", "Bring"),
    "predictions": lambda nb: markdown(nb, "**Predict", "**Guess"),
    "wrong variant": lambda nb: untag(nb, "wrong"),
    "tagged `setup`": lambda nb: untag(nb, "setup"),
    "4 exercises": lambda nb: untag(nb, "ex-1.2"),
    "of the tier ★★★": lambda nb: markdown(nb, "★★★ ", ""),
} | {
    f"section {name!r}": lambda nb, name=name: markdown(nb, f"## {name}", "## Else")
    for name in ("You are here", "What this shows, and what it does not", "Summary", "Exercises", "References")
}


@pytest.mark.parametrize("complaint", BREAKS)
def test_what_is_broken_is_complained_about(broken, complaint):
    assert complaint in broken(BREAKS[complaint])


def test_a_whole_chapter_gives_no_complaint(broken):
    assert broken(lambda nb: None) == ""


def test_code_and_mathematics_are_no_links_and_the_web_may_be_linked(broken):
    text = "\n`f[i](x)` $a[k](b)$ [x](mailto:a@b.c) <a href='https://a.b'>x</a> ![x](../figures/claims.png) [y](https://a.b)"
    assert broken(lambda nb: nb.cells[0].update(source=nb.cells[0].source + text)) == ""


def test_a_copied_function_is_found_in_chapters_and_library(tmp_path):
    body = "    a = x + 1\n    b = a * 2\n    return a + b\n"
    copied = (
        (ORIGINAL.parents[1] / "minids" / "model" / "moe.py")
        .read_text()
        .split("def sort_by_expert")[1]
        .split("\n\n\ndef")[0]
    )
    for name, source in (
        ("a", f"def f(x):\n{body}"),
        ("b", f"def g(x):\n    'Another.'\n{body}"),
        ("c", "def s" + copied),
    ):
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), tmp_path / f"{name}.ipynb")
    found = repeated_bodies(sorted(tmp_path.glob("*.ipynb")))
    assert len(found) == 2
    assert "g in b.ipynb has the body of f in a.ipynb" in found[0]
    assert "sort_by_expert in moe.py" in found[1]
