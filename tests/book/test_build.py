"""A built notebook is in one form: building again changes nothing, and what was measured keeps its picture."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode, v4

from minids.book.build import MEASURED, build, normalise, text_of

# A notebook as an author leaves it: with a picture, one with a slider, and one that is another each time.
SOURCES = """import base64, os, time
from IPython.display import display
def draw(picture="a picture", **more):
    data = {"text/plain": "a picture", "image/png": base64.b64encode(picture.encode()).decode() + "\\n"}
    display(more | data, metadata={"image/png": {"width": 900, "height": 500}}, raw=True)
os.getcwd().rpartition("/")[2], os.environ["OMP_NUM_THREADS"]
---
draw()
---
import ipywidgets
draw(**ipywidgets.IntSlider()._repr_mimebundle_())
---
draw(picture=str(time.time()))
"""


@pytest.fixture
def path(tmp_path) -> Path:
    cells = [
        v4.new_markdown_cell("# A notebook"),
        *(v4.new_code_cell(source.strip()) for source in SOURCES.split("---\n")),
    ]
    cells[1] |= {"metadata": {"tags": ["setup"], "editor": {"a": 1}}, "execution_count": 7}
    cells[-1].metadata.tags = ["measured"]
    nbformat.write(v4.new_notebook(cells=cells, metadata={"widgets": {"state": {}}}), tmp_path / "notebook.ipynb")
    return tmp_path / "notebook.ipynb"


def test_building_twice_changes_nothing_and_a_fresh_build_only_what_is_measured(path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")  # of whoever calls: the digits must not depend on it
    authored = nbformat.read(path, as_version=4)
    assert build(path) is True
    first = path.read_bytes()
    built = nbformat.read(path, as_version=4)
    markdown, *code = built.cells
    assert [cell.id for cell in built.cells] == [cell.id for cell in authored.cells]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4]
    assert (code[0].metadata, markdown.metadata) == ({"tags": ["setup"]}, {})
    assert set(built.metadata) == {"kernelspec", "language_info"}
    assert code[0].outputs[0].data["text/plain"] == f"('{path.parent.name}', '1')"
    for cell in code[1:]:  # a picture with its text and its width, and no widget
        (output,) = cell.outputs
        assert set(output.data) == {"image/png", "text/plain"}
        assert (output.data["text/plain"], output.metadata) == ("a picture", {"image/png": {"width": 900}})
        assert not output.data["image/png"].endswith("\n")
    assert build(path) is False
    assert path.read_bytes() == first
    assert build(path, fresh=True) is True
    assert nbformat.read(path, as_version=4).cells[:-1] == built.cells[:-1]


def test_a_notebook_that_fails_stays_as_it_was(tmp_path):
    path = tmp_path / "failing.ipynb"
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("1 / 0")]), path)
    before = path.read_bytes()
    with pytest.raises(CellExecutionError):
        build(path)
    assert path.read_bytes() == before


def executed(source: str, text: str, picture: str = "bmV3", tags: tuple = ("measured",)) -> NotebookNode:
    output = v4.new_output("display_data", {"text/plain": text, "image/png": picture})
    cell = v4.new_code_cell(source, outputs=[output], metadata={"tags": list(tags)}, execution_count=1)
    cell.id = "a"
    return v4.new_notebook(cells=[cell])


@pytest.mark.parametrize(
    ("new", "keeps"),
    [
        (executed("draw()", "one ≈ 12 ms (measured)"), True),
        (executed("draw()", "one ≈ 13.5 s (measured)"), True),
        (executed("draw()", "one 12 ms"), False),
        (executed("draw(2)", "one ≈ 12 ms (measured)"), False),
        (executed("draw()", "one ≈ 12 ms (measured)", tags=()), False),
    ],
    ids=["the same", "another time", "another text", "another source", "not measured"],
)
def test_a_measured_picture_stays_as_long_as_source_and_text_do(new, keeps):
    old = executed("draw()", "one ≈ 12 ms (measured)", picture="b2xk")
    once = normalise(new, old)
    assert once.cells[0].outputs[0].data["image/png"] == ("b2xk" if keeps else "bmV3")
    text = text_of(once)
    assert text_of(normalise(nbformat.reads(text, as_version=4))) == text


def test_nbval_masks_the_same_numbers_and_texts():
    config = (Path(__file__).parents[1] / "nbval.cfg").read_text(encoding="utf-8")
    assert "|".join(re.findall(r"(?m)^regex: (.*)$", config)) == MEASURED.pattern
