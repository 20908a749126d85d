"""How much room asserts about live training have: other seeds, other values, and what is found too narrow."""

import json
import math
import subprocess
import sys

import pytest
from nbformat import v4, write

from minids.book.margins import facts_of, margin

TRAIN = "SEED = 0\nruns.append(SEED)\nloss = [10, 12, 14][SEED]"
CHECK = """assert loss > 9 and 0 < loss <= 20
for step in range(3):
    assert loss > step
assert not loss == 12
def judge(value):
    assert value in (10, 12, 14), "not this one"
judge(loss)"""


def notebook(path, *cells):
    write(v4.new_notebook(cells=[v4.new_code_cell(text, metadata={"tags": tags}) for text, *tags in cells]), path)
    return path


@pytest.fixture
def facts(tmp_path):
    told = f"import json; json.dump(runs, open({str(tmp_path / 'runs.json')!r}, 'w'))"
    cells = [
        ("runs, note = [], 'a name that the reader gave'",),
        (TRAIN, "live"),
        ("SEED",),
        (CHECK + "\n" + told, "live"),
        ("1 / 0",),
    ]
    return facts_of(notebook(tmp_path / "chapter.ipynb", *cells), seeds=3)


def test_live_cells_run_with_every_seed_and_the_others_once(facts, tmp_path):
    assert json.loads((tmp_path / "runs.json").read_text()) == [0, 1, 2]


def test_the_slack_of_an_assert_is_the_room_to_its_bound(facts):
    assert [side.slack for side in facts["loss > 9"]] == [1, 3, 5]
    assert [tuple(side) for side in facts["loss <= 20"]] == [(10, 20, 10), (12, 20, 8), (14, 20, 6)]
    assert [side.slack for side in facts["0 < loss"]] == [10, 12, 14]
    assert margin(facts["loss > 9"]) == pytest.approx(3 / 2)


def test_of_an_assert_in_a_loop_the_tightest_counts(facts):
    assert [side.bound for side in facts["loss > step"]] == [2, 2, 2]


def test_what_is_only_true_or_false_is_counted(facts):
    assert margin(facts["value in (10, 12, 14)"]) == math.inf
    assert [side.slack > 0 for side in facts["not loss == 12"]] == [True, False, True]
    assert 0 < margin(facts["not loss == 12"]) < 1


def test_a_live_cell_that_occurs_twice_counts_twice(tmp_path):
    again = ("assert count() > SEED", "live")
    cells = [("calls = []\ndef count():\n    calls.append(0)\n    return len(calls)",), ("SEED = 0", "live"), again]
    facts = facts_of(notebook(tmp_path / "chapter.ipynb", *cells, ("calls.append(0)",), again), seeds=2)
    assert [side.value for side in facts["count() > SEED"]] == [1, 4]


def test_a_chapter_without_live_cells_is_not_run(tmp_path):
    assert facts_of(notebook(tmp_path / "chapter.ipynb", ("1 / 0",))) == {}


def test_what_is_no_number_is_refused(tmp_path):
    path = notebook(tmp_path / "chapter.ipynb", ("assert float('nan') > 0", "live"))
    with pytest.raises(ValueError, match=r"float\('nan'\) > 0"):
        facts_of(path)


@pytest.mark.parametrize(("bound", "status"), [("0", 0), ("9", 1)])
def test_an_assert_without_room_fails_the_command(bound, status, tmp_path):
    path = notebook(tmp_path / "chapter.ipynb", (f"SEED = 0\nassert 10 + SEED % 3 > {bound}", "live"))
    command = [sys.executable, "-m", "minids.book.margins", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout
    assert f"10 + SEED % 3 > {bound}" in done.stdout
