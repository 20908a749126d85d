"""The minutes of chapters: measured and kept by machine, and shown for every chapter that exists."""

import json
import os
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from minids.book import minutes as table
from minids.book.check import CHAPTERS
from minids.book.minutes import busy_cores, measure, recorded


@pytest.fixture
def chapter(tmp_path):
    cells = [new_markdown_cell("# 1 · A"), new_code_cell("open('ran', 'a').write('x')")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "01_a.ipynb")
    return tmp_path / "01_a.ipynb"


def test_a_chapter_is_run_twice_and_its_seconds_are_kept_beside_the_others_of_this_machine(chapter, tmp_path, capsys):
    file, before = tmp_path / "minutes.json", chapter.read_bytes()
    measure([chapter], file)
    record = json.loads(file.read_text(encoding="utf-8"))
    record["seconds"]["00_b"] = {"alone": 1.0, "busy": 2.0}
    file.write_text(json.dumps(record), encoding="utf-8")
    measure([chapter], file)
    assert list(recorded(file)["seconds"]) == ["00_b", "01_a"]
    assert all(seconds > 0 for seconds in recorded(file)["seconds"]["01_a"].values())
    assert (tmp_path / "ran").read_text() == "xxxx"
    assert chapter.read_bytes() == before
    file.write_text(json.dumps(record | {"machine": {"cpu": "another", "cores": 1}}), encoding="utf-8")
    measure([chapter], file)
    assert list(recorded(file)["seconds"]) == ["01_a"]


def test_the_cores_are_busy_inside_and_free_afterwards():
    with busy_cores() as others:
        assert len(others) == os.cpu_count()
        assert all(other.poll() is None for other in others)
    assert all(other.poll() is not None for other in others)


def test_the_table_has_every_chapter_with_the_minutes_of_its_opening_and_its_measured_seconds():
    shown = table()._repr_markdown_()
    for path in CHAPTERS.glob("*.ipynb"):
        (row,) = [line for line in shown.splitlines() if f"]({path.name})" in line]
        assert re.search(r"\| \d+ min \|", row)
        assert "not measured" not in row, "make minutes measures it"
