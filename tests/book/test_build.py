"""A built notebook is in one form: building again changes nothing, and what is measured keeps its picture."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode, v4

from minids.book.build import MEASURED, VIEW, build, normalise, text_of


@pytest.fixture
def notebook(tmp_path):
    """A notebook as an author leaves it: out of order, with what editors add."""
    cells = [
        v4.new_markdown_cell("# A notebook"),
        v4.new_code_cell("x = 2\nprint(x)", metadata={"tags": ["setup"], "editor": {"a": 1}}, execution_count=7),
        v4.new_code_cell("from minids.book.plots import draw_architecture\ndraw_architecture(3)"),
        v4.new_code_cell("from minids.book import explore\ndef draw(chapter=3):\n"
                         "    return draw_architecture(chapter)\nexplore(draw, chapter=range(1, 4))"),
        v4.new_code_cell("import os\nos.getcwd().rpartition('/')[2], os.environ['OMP_NUM_THREADS']"),
    ]  # fmt: skip
    path = tmp_path / "notebook.ipynb"
    nbformat.write(v4.new_notebook(cells=cells, metadata={"widgets": {"state": {}}}), path)
    return path


def test_building_twice_changes_nothing_the_second_time(notebook):
    assert build(notebook) is True
    first = notebook.read_bytes()
    assert build(notebook) is False
    assert notebook.read_bytes() == first
    built = nbformat.read(notebook, as_version=4)
    code = [cell for cell in built.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4]
    assert code[0].metadata == {"tags": ["setup"]}
    assert set(built.metadata) == {"kernelspec", "language_info"}
    assert [cell.id for cell in built.cells] == [cell.id for cell in nbformat.read(notebook, as_version=4).cells]
    for cell in code[1:3]:  # a picture with its text and its width, and no widget
        (output,) = cell.outputs
        assert set(output.data) == {"image/png", "text/plain"}
        assert output.data["text/plain"].startswith("The architecture")
        assert output.metadata == {"image/png": {"width": 900}}
    assert VIEW not in notebook.read_text()
    assert code[3].outputs[0].data["text/plain"] == f"('{notebook.parent.name}', '1')"


def test_building_keeps_a_measured_picture_and_a_fresh_build_draws_it_anew(tmp_path):
    lines = [
        "import time", "from minids.book.plots.style import new_figure", "fig = new_figure(height=1)",
        "fig.alt = 'a time'", "fig.text(0.1, 0.5, f'{time.time():.6f}')", "fig",
    ]  # fmt: skip
    cell = v4.new_code_cell("\n".join(lines), metadata={"tags": ["measured"]})
    path = tmp_path / "measured.ipynb"
    nbformat.write(v4.new_notebook(cells=[cell]), path)
    assert [build(path), build(path), build(path, fresh=True)] == [True, False, True]


def test_a_notebook_that_fails_stays_as_it_was(tmp_path):
    path = tmp_path / "failing.ipynb"
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("1 / 0")]), path)
    before = path.read_bytes()
    with pytest.raises(CellExecutionError):
        build(path)
    assert path.read_bytes() == before


def measured(source: str, text: str, picture: str, tags=("measured",)) -> NotebookNode:
    output = v4.new_output("display_data", {"text/plain": text, "image/png": picture})
    cell = v4.new_code_cell(source, outputs=[output], metadata={"tags": list(tags)}, execution_count=1)
    cell.id = "a"
    return v4.new_notebook(cells=[cell])


@pytest.mark.parametrize(
    ("new", "picture"),
    [
        (measured("draw()", "one", "bmV3"), "b2xk"),
        (measured("draw(2)", "one", "bmV3"), "bmV3"),
        (measured("draw()", "two", "bmV3"), "bmV3"),
        (measured("draw()", "one", "bmV3", tags=()), "bmV3"),
    ],
    ids=["the same", "another source", "another text", "not measured"],
)
def test_a_measured_picture_stays_as_long_as_source_and_text_do(new, picture):
    old = measured("draw()", "one", "b2xk")
    assert normalise(new, old).cells[0].outputs[0].data["image/png"] == picture


def test_a_measured_time_is_no_difference():
    old = measured("draw()", "it took ≈ 12 ms (measured)", "b2xk")
    for text, picture in (("it took ≈ 13.5 s (measured)", "b2xk"), ("it takes 13 ms", "bmV3")):
        new = normalise(measured("draw()", text, "bmV3"), old)
        assert new.cells[0].outputs[0].data["image/png"] == picture


def test_nbval_masks_the_same_times():
    config = (Path(__file__).parents[1] / "nbval.cfg").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^regex: (.*)$", config) == [MEASURED.pattern]


def test_a_fresh_build_draws_measured_pictures_anew():
    assert normalise(measured("draw()", "one", "bmV3")).cells[0].outputs[0].data["image/png"] == "bmV3"


def test_normalising_twice_changes_nothing():
    once = text_of(normalise(measured("draw()", "one", "bmV3")))
    assert text_of(normalise(nbformat.reads(once, as_version=4))) == once
