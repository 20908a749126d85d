"""What lint.py watches in notebooks, each thing broken once in the text of chapter 1."""

import base64
import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from minids.book.lint import SECTIONS, complaints, repeated_bodies

ROOT = Path(__file__).parents[2]
ORIGINAL = ROOT / "chapters" / "01_the_bill.ipynb"
TITLE, CODE, OUTPUT, OUTPUTS = "# 1 · The bill", "start()", "seed 0", '"outputs": [\n'
FAILED = '{"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []},'
GUESS = '"predict"\n    ]\n   },\n   "outputs": []'
SETUP_LINES = len(nbformat.read(ORIGINAL, as_version=4).cells[1].source.splitlines())
LARGE = base64.b64encode(bytes(100_002)).decode()


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of chapter 1, with all that it links to."""
    folder = tmp_path_factory.mktemp("lint")
    for name in ("chapters", "figures"):
        shutil.copytree(ROOT / name, folder / name)
    return folder / "chapters" / ORIGINAL.name


BREAKS = {  # what is said, when this is replaced by that
    "numbered": ('"execution_count": 3,', '"execution_count": null,'),
    "in order": ('"execution_count": 3,', '"execution_count": 40,'),
    "has 26 lines": (CODE, r"x = 1\n" * (26 - SETUP_LINES) + CODE),
    "has 101 characters": (CODE, "x" * 101),
    "Half of the code cells": ('"source": [', r'"source": ["\n\n\n\n\n\n\n\n",'),
    "cell names a place on one machine: /home/me": (CODE, "open('/home/me')"),
    r"one machine: C:\Users": (CODE, r"open(r'C:\\Users\\me')"),
    "one machine: /mnt/x": (CODE, "'file:/mnt/x'"),
    "one machine: 0x7f00aa": (OUTPUT, "<object at 0x7f00aa11>"),
    "output names a place": (OUTPUT, "/tmp/ipykernel_1/2.py"),
    "standard error": ('"stdout"', '"stderr"'),
    "fails with ValueError": (OUTPUTS, OUTPUTS + FAILED),
    "no text of its own": ('"text/plain": [', '"text/plain": ["<Figure size 900x500>",'),
    "A picture has no text": ('"text/plain"', '"text/other"'),
    "bytes: at most 100,000.": ('"image/png": "', f'"image/png": "{LARGE}'),
    "bytes: at most 1,000,000.": (OUTPUT, "x" * 1_000_000),
    "widget state": ('"kernelspec"', '"widgets": {"state": {}}, "kernelspec"'),
    "backslash too many": (TITLE, TITLE + r" $\\\\varphi$"),
    "elsewhere: https://a.b/c.png": (TITLE, TITLE + " ![x](https://a.b/c.png)"),
    "elsewhere: https://d.e/f": (TITLE, TITLE + " <img src='https://d.e/f'>"),
    "nowhere: 99_nothing.ipynb": (TITLE, TITLE + " [x](99_nothing.ipynb)"),
    "nowhere: gone.md": (TITLE, TITLE + r" [x](gone.md \"title\")"),
    "begin with": (TITLE, "# The bill"),
    "'By the end'": ("By the end", "Later"),
    "'minutes'": ("minutes", "hours"),
    "'You need'": ("You need", "Bring"),
    "Predictions: 0, at least 2": ("**Predict", "**Guess"),
    "tagged `predict`": ('"predict"', '"other"'),
    "no cell with `guess = ...`": ("guess = ...", "guess = 42"),
    "the guess has an output": (
        GUESS,
        GUESS.replace("[]", '[{"output_type": "stream", "name": "stdout", "text": ""}]'),
    ),
    "`with reveal(guess):`": ("with reveal(guess):", "if True:"),
    "does not begin with <details>": ("<details>", "<br>"),
    "Markdown is shown as it is typed until an empty line": ("Hint</summary>\\n", "Hint</summary>`a`\\n"),
    "wrong variant": ('"wrong"', '"other"'),
    "tagged `setup`": ('"setup"', '"other"'),
    "4 exercises": ('"ex-1.2"', '"other"'),
    "not of chapter 1": ('"ex-1.5"', '"ex-2.5"'),
    "of the tier ★★★": ("★★★ ", ""),
} | {f"section {name!r}": (f"## {name}", "## Else") for name in SECTIONS}


@pytest.mark.parametrize("says", BREAKS)
def test_what_is_broken_is_complained_about(copy, says):
    copy.write_text(ORIGINAL.read_text(encoding="utf-8").replace(*BREAKS[says]), encoding="utf-8")
    assert says in "\n".join(complaints(copy))


def test_a_chapter_breaks_none_of_the_rules_and_each_break_changes_it():
    text = ORIGINAL.read_text(encoding="utf-8")
    assert complaints(ORIGINAL) == []
    assert all(before in text for before, _ in BREAKS.values())


SECOND = [
    new_markdown_cell("# 1b · More\n\n**Predict before you run.** Half?", id="more"),
    new_code_cell("guess = ...", metadata={"tags": ["predict"]}, execution_count=1),
    new_code_cell("with reveal(guess):\n    print(1)", metadata={"tags": ["setup"]}, execution_count=2),
    new_markdown_cell("<details></details>\n\n## What this shows, and what it does not\n\n## References"),
]
SECOND[2].outputs = [new_output("display_data", {"text/plain": "1"})]
SECOND_BREAKS = {
    "begin with '# 1b · Title'": ("# 1b", "# 1"),
    "'References' is missing": ("## References", "## Else"),
    "Predictions: 0, at least 1": ("**Predict", "**Guess"),
    "tagged `setup`": ("setup", "other"),
    "second notebook has an exercise": ("setup", "ex-1.1"),
}


@pytest.mark.parametrize("says", SECOND_BREAKS)
def test_a_second_notebook_has_rules_of_its_own(tmp_path, says):
    path = tmp_path / "01b_more.ipynb"
    text = nbformat.writes(new_notebook(cells=SECOND))
    path.write_text(text, encoding="utf-8")
    assert complaints(path) == []
    path.write_text(text.replace(*SECOND_BREAKS[says]), encoding="utf-8")
    assert says in "\n".join(complaints(path))


def test_code_and_mathematics_are_no_links_and_the_web_may_be_linked(copy):
    links = (
        "`f[i](x)` $a[k](b)$ [x](mailto:a@b.c) <a href='https://a.b'>x</a> ![x](../figures/claims.png) [y](https://a)"
    )
    copy.write_text(ORIGINAL.read_text(encoding="utf-8").replace(TITLE, TITLE + links), encoding="utf-8")
    assert complaints(copy) == []


def test_a_copied_function_is_found_in_chapters_and_library(tmp_path):
    body = "    a = x + 1\n    b = a * 2\n    return a + b\n"
    library = (ROOT / "minids" / "book" / "show.py").read_text().split("def show")[1].split("\n\n\ndef")[0]
    sources = {"a": f"def f(x):\n{body}", "b": f"def g(x):\n    'Another.'\n{body}", "c": f"def other{library}"}
    for name, source in sources.items():
        nbformat.write(new_notebook(cells=[new_code_cell(source)]), tmp_path / f"{name}.ipynb")
    assert repeated_bodies(sorted(tmp_path.glob("*.ipynb"))) == [
        "g in b.ipynb has the body of f in a.ipynb.",
        "other in c.ipynb has the body of show in show.py.",
    ]
