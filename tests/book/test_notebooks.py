"""Every chapter and its solutions: what they must be (lint.py), and that each exercise judges as it should.

That they compute what they show is for nbval to check, which runs them (`make notebooks`).
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

from minids.book.build import KERNEL
from minids.book.check import definition, tagged_cells
from minids.book.lint import complaints, repeated_bodies

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "chapters" / "solutions").glob("*.ipynb"))


def exercises(path: Path) -> list[str]:
    """Return the numbers of the exercises that cells of a notebook are tagged with."""
    return list(dict.fromkeys(re.findall(r'"ex-(\d+\.\d+)"', path.read_text(encoding="utf-8"))))


EXERCISES = {number: path for path in CHAPTERS for number in exercises(path)}


@pytest.mark.parametrize("path", [*CHAPTERS, *SOLUTIONS], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_nothing_is_wrong_with_a_notebook(path):
    assert complaints(path) == []


def test_no_function_stands_twice_in_chapters_and_library():
    assert repeated_bodies(CHAPTERS) == []


def test_every_chapter_is_in_the_readme_and_has_solutions_of_all_its_exercises():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    names = [path.name for path in CHAPTERS]
    assert re.findall(r"\]\(chapters/(\d\d_\w+\.ipynb)\)", readme) == names == [path.name for path in SOLUTIONS]
    assert {number for path in SOLUTIONS for number in exercises(path)} == EXERCISES.keys()


@pytest.mark.parametrize("number", EXERCISES)
def test_the_stub_of_an_exercise_is_unsolved(number, capsys):
    namespace: dict = {}
    for source in tagged_cells(EXERCISES[number], "setup", f"ex-{number}"):
        exec(source, namespace)
    assert f"Exercise {number}: not solved yet." in capsys.readouterr().out


@pytest.mark.parametrize("number", EXERCISES)
def test_the_solution_of_an_exercise_is_solved_and_each_mistake_gets_its_hint(number):
    asked = definition(number)
    assert asked.verdict(asked.solution).status == "solved"
    assert asked.oracle is not asked.solution, "the oracle is the solution itself"
    assert asked.mistakes, "an exercise names at least one mistake"
    for hint, mistake in asked.mistakes.items():
        verdict = asked.verdict(mistake)
        assert (verdict.status, verdict.text) == ("wrong", hint)


def test_nbval_finds_a_changed_digit_and_overlooks_only_measured_times(tmp_path):
    cells = []
    for source, stored in (("41 + 1", "42"), ("41 + 1", "43"), ("'≈ 12 ms (measured)'", "'≈ 3.5 s (measured)'")):
        output = v4.new_output("execute_result", {"text/plain": stored}, execution_count=1)
        cells.append(v4.new_code_cell(source, outputs=[output], execution_count=1))
    nbformat.write(v4.new_notebook(cells=cells, metadata=KERNEL), tmp_path / "digits.ipynb")
    options = ["--nbval", "--nbval-sanitize-with", ROOT / "tests" / "nbval.cfg", "-p", "no:cacheprovider", "-rA"]
    command = [sys.executable, "-m", "pytest", "-p", "nbval.plugin", "digits.ipynb", *options]
    no_other_plugins = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # they take seconds to load
    said = subprocess.run(command, cwd=tmp_path, env=no_other_plugins, capture_output=True, text=True).stdout
    assert re.findall(r"(?m)^(PASSED|FAILED) .*Cell (\d)", said) == [("PASSED", "0"), ("PASSED", "2"), ("FAILED", "1")]
