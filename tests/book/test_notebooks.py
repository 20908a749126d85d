"""Every chapter and its solutions: what they must be (lint.py), and that each exercise judges as it should.

That they compute what they show is tested by nbval, which runs them (`make notebooks`).
"""

import re
from pathlib import Path

import pytest

from minids.book.check import definition, tagged_cells
from minids.book.lint import complaints, repeated_bodies

CHAPTERS = sorted((Path(__file__).parents[2] / "chapters").glob("*.ipynb"))
SOLUTIONS = sorted((Path(__file__).parents[2] / "chapters" / "solutions").glob("*.ipynb"))
EXERCISES = [
    (path, tag.removeprefix("ex-"))
    for path in CHAPTERS
    for tag in dict.fromkeys(re.findall(r'"(ex-\d+\.\d+)"', path.read_text(encoding="utf-8")))
]
numbers = [number for _, number in EXERCISES]


@pytest.mark.parametrize("path", [*CHAPTERS, *SOLUTIONS], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_nothing_is_wrong_with_a_notebook(path):
    assert complaints(path) == []


def test_no_function_stands_twice_in_chapters_and_library():
    assert repeated_bodies(CHAPTERS) == []


def test_every_chapter_has_solutions_under_its_name():
    assert [path.name for path in SOLUTIONS] == [path.name for path in CHAPTERS]


def test_the_readme_lists_every_chapter():
    readme = (CHAPTERS[0].parents[1] / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\(chapters/(\d\d_\w+\.ipynb)\)", readme) == [path.name for path in CHAPTERS]


def test_every_exercise_that_is_solved_is_asked():
    solved = {tag for path in SOLUTIONS for tag in re.findall(r'"(ex-\d+\.\d+)"', path.read_text(encoding="utf-8"))}
    assert solved == {f"ex-{number}" for number in numbers}


@pytest.mark.parametrize(("path", "number"), EXERCISES, ids=numbers)
def test_the_stub_of_an_exercise_is_unsolved(path, number, capsys):
    namespace: dict = {}
    for source in tagged_cells(path, "setup", f"ex-{number}"):
        exec(source, namespace)
    assert f"Exercise {number}: not solved yet." in capsys.readouterr().out


@pytest.mark.parametrize("number", numbers)
def test_the_solution_of_an_exercise_is_solved_and_each_mistake_gets_its_hint(number):
    asked = definition(number)
    assert asked.verdict(asked.solution).status == "solved"
    assert asked.mistakes, "an exercise names at least one mistake"
    for hint, mistake in asked.mistakes.items():
        verdict = asked.verdict(mistake)
        assert (verdict.status, verdict.text) == ("wrong", hint)


@pytest.mark.parametrize("number", numbers)
def test_an_oracle_is_not_the_solution_under_another_name(number):
    asked = definition(number)
    assert asked.oracle is not asked.solution
