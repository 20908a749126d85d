"""The rules for a chapter that can be checked without running it: `complaints(path)`.

Whether its outputs are right is checked by nbval, which runs it.
"""

from __future__ import annotations

import ast
import base64
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

PACKAGE = Path(__file__).parents[1]
MOST_LINES, MEDIAN_LINES, COLUMNS = 25, 7, 100  # wider lines are cut on a laptop's screen
NOTEBOOK_BYTES, PICTURE_BYTES = 1_000_000, 100_000
SECTIONS = ("You are here", "What this shows, and what it does not", "Summary", "Exercises", "References")
SECOND_SECTIONS = ("What this shows, and what it does not", "References")
PREDICT, PREDICTIONS, SECOND_PREDICTIONS = "**Predict before you run.**", 2, 1
PLACE = re.compile(
    r"(?<![\w./])(?:/home|/tmp|/root|/work|/Users|/Volumes|/mnt|/private|/var|/opt)/[\w.-]+"
    r"|\b[A-Z]:[\\/]\w+|\b0x[0-9a-f]{6,}"
)
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)[^)]*\)|(?:src|href)=[\"']([^\"']+)[\"']")
NOT_PROSE = re.compile(r"(?s)```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$")


def complaints(path: Path) -> list[str]:
    """Return what is wrong with a notebook, a sentence each."""
    notebook = nbformat.read(path, as_version=4)
    found = [*_files(path, notebook), *_execution(notebook), *_cells(notebook), *_outputs(notebook)]
    if path.parent.name == "solutions":
        return found
    found += [*_median(notebook), *_predictions(notebook)]
    number, second = int(path.name[:2]), path.name[2] == "b"
    if second:
        found += _second(notebook, number)
    elif number:  # chapter 0 has another structure
        found += _skeleton(notebook, number)
    return found


def _code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _prose(notebook: NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def _files(path: Path, notebook: NotebookNode) -> Iterator[str]:
    if path.stat().st_size > NOTEBOOK_BYTES:
        yield f"The notebook has {path.stat().st_size:,} bytes: at most {NOTEBOOK_BYTES:,}."
    if notebook.metadata.get("widgets"):
        yield "The notebook keeps widget state: build it with `make book`."
    for match in LINK.finditer(NOT_PROSE.sub("", _prose(notebook))):
        link = match[2] or match[3]
        if re.match(r"\w+:", link):
            if match[1] or match[0].startswith("src"):
                yield f"A picture comes from elsewhere: {link}."
        elif not link.startswith("#") and not (path.parent / link.partition("#")[0]).exists():
            yield f"A link leads nowhere: {link}."
    if doubled := re.search(r"\\\\[a-zA-Z;,!]+", _prose(notebook)):
        yield f"A formula has a backslash too many: {doubled[0]}."


def _execution(notebook: NotebookNode) -> Iterator[str]:
    counts = [cell.execution_count for cell in _code(notebook)]
    if counts != list(range(1, len(counts) + 1)):  # nbval compares nothing where there is no number
        yield f"The code cells are numbered {counts}: execute them in order."


def _cells(notebook: NotebookNode) -> Iterator[str]:
    sizes = [len(cell.source.splitlines()) for cell in _code(notebook)]
    for cell in notebook.cells:
        for match in PLACE.finditer(cell.source):
            yield f"A cell names a place on one machine: {match[0]}."
        if cell.cell_type == "markdown" and (raw := re.search(r"</summary>[ \t]*[^\s<].*", cell.source)):
            yield f"Markdown is shown as it is typed until an empty line: {raw[0]!r}."
    for cell, size in zip(_code(notebook), sizes, strict=True):
        widest = max(cell.source.splitlines(), key=len, default="")
        if len(widest) > COLUMNS:
            yield f"A line has {len(widest)} characters, at most {COLUMNS}: {widest.strip()!r}."
        if size > MOST_LINES:
            yield f"A cell has {size} lines, at most {MOST_LINES}: {cell.source.splitlines()[0]!r} …"


def _median(notebook: NotebookNode) -> Iterator[str]:
    middle = statistics.median([len(cell.source.splitlines()) for cell in _code(notebook)] or [0])
    if middle > MEDIAN_LINES:
        yield f"Half of the code cells have {middle:g} lines or more: at most {MEDIAN_LINES}."


def _outputs(notebook: NotebookNode) -> Iterator[str]:
    for cell in _code(notebook):
        for output in cell.outputs:
            data = output.get("data", {})
            texts = [output.get("text", ""), *(data.get(f"text/{kind}", "") for kind in ("plain", "html", "markdown"))]
            for match in PLACE.finditer(" ".join([*texts, *output.get("traceback", [])])):
                yield f"An output names a place on one machine: {match[0]}."
            if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", []):
                yield f"A cell fails with {output.ename}: {output.evalue}"
            if output.get("name") == "stderr":
                yield f"A cell writes to standard error: {output.text.strip()[:80]!r}."
            if "image/png" in data:
                size = len(base64.b64decode(data["image/png"]))
                if size > PICTURE_BYTES:
                    yield f"A picture has {size:,} bytes: at most {PICTURE_BYTES:,}."
                if (data.get("text/plain") or "<").startswith("<"):
                    yield "A picture has no text of its own: give it `alt`."


def _predictions(notebook: NotebookNode) -> Iterator[str]:
    """A question, a cell for the guess, the answer folded by `reveal`, and the reason folded."""
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type != "markdown" or PREDICT not in cell.source:
            continue
        question = f"After the prediction in cell {cell.id!r}"
        guess, *later = [*notebook.cells[place + 1 :], new_markdown_cell()]
        if "predict" not in guess.metadata.get("tags", []) or not re.search(r"(?m)^guess = \.\.\.", guess.source):
            yield f"{question} there is no cell with `guess = ...`, tagged `predict`."
            continue
        if guess.get("outputs"):
            yield f"{question} the cell of the guess has an output."
        answered = next((i for i, cell in enumerate(later) if cell.get("outputs")), None)
        if answered is None or "with reveal(guess):" not in later[answered].source:
            yield f"{question} the next output is not in a cell with `with reveal(guess):`."
            continue
        why = next((cell.source for cell in later[answered:] if cell.cell_type == "markdown"), "")
        if not why.startswith("<details>"):
            yield f"{question} the text after its answer does not begin with <details>."


def _opening(notebook: NotebookNode, number: str, sections: tuple[str, ...], predictions: int) -> Iterator[str]:
    prose = _prose(notebook)
    if not re.match(rf"# {number} · \S", notebook.cells[0].source):
        yield f"The notebook does not begin with '# {number} · Title'."
    for section in sections:
        if not re.search(rf"(?m)^## {section}$", prose):
            yield f"The section {section!r} is missing."
    if prose.count(PREDICT) < predictions:
        yield f"Predictions: {prose.count(PREDICT)}, at least {predictions}."
    if not any("setup" in cell.metadata.get("tags", []) for cell in _code(notebook)):
        yield "No cell is tagged `setup`: exercises are tested with nothing else run before."


def _second(notebook: NotebookNode, number: int) -> Iterator[str]:
    """An optional notebook of a chapter, as 03b_what_it_costs.ipynb."""
    yield from _opening(notebook, f"{number}b", SECOND_SECTIONS, SECOND_PREDICTIONS)
    if any(tag.startswith("ex-") for cell in notebook.cells for tag in cell.metadata.get("tags", [])):
        yield "A second notebook has an exercise: exercises are in the chapter itself."


def _skeleton(notebook: NotebookNode, number: int) -> Iterator[str]:
    yield from _opening(notebook, str(number), SECTIONS, PREDICTIONS)
    for promise in ("By the end", "minutes", "You need"):
        if promise.lower() not in notebook.cells[0].source.lower():
            yield f"The opening does not say {promise!r}."
    tags = [tag for cell in _code(notebook) for tag in cell.metadata.get("tags", [])]
    if "wrong" not in tags:
        yield "There is no wrong variant to be seen failing: tag its cell `wrong`."
    exercises = [tag for tag in tags if tag.startswith("ex-")]
    for tag in exercises:
        if not tag.startswith(f"ex-{number}."):
            yield f"The tag {tag} is not of chapter {number}."
    if len(set(exercises)) < 5:
        yield f"There are {len(set(exercises))} exercises: at least 5."
    for tier in ("★ ", "★★ ", "★★★ "):
        if not re.search(rf"(?m)^### .*(?<!★){tier}", _prose(notebook)):
            yield f"No exercise is of the tier {tier.strip()}."


def repeated_bodies(paths: list[Path]) -> list[str]:
    """Return a sentence for every function body that stands twice, in these notebooks or in the library."""
    first: dict[str, str] = {}
    repeated = []
    for place, source in [*_library(), *(item for path in paths for item in _notebook_sources(path))]:
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef):
                continue
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            text = ast.unparse(ast.Module(body, []))
            if len(text.splitlines()) < 3:
                continue
            here = f"{node.name} in {place}"
            if text in first and place.endswith(".ipynb"):
                repeated.append(f"{here} has the body of {first[text]}.")
            first.setdefault(text, here)
    return repeated


def _library() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.name, path.read_text(encoding="utf-8")


def _notebook_sources(path: Path) -> Iterator[tuple[str, str]]:
    for cell in _code(nbformat.read(path, as_version=4)):
        yield path.name, re.sub(r"(?m)^[%!].*$", "", cell.source)
