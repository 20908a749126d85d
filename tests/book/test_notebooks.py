"""Every chapter and its solutions: what they must be (lint.py), and that each exercise judges as it should.

That they compute what they show is for nbval to check, which runs them (`make notebooks`).
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import nbval_kernels
import pytest
from nbformat import v4

from minids.book.build import KERNEL
from minids.book.check import definition, tagged_cells
from minids.book.lint import complaints, repeated_bodies

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
SECOND = [path for path in CHAPTERS if path.name[2] == "b"]  # optional, as 03b_what_it_costs.ipynb
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
    names = [path.name for path in CHAPTERS if path not in SECOND]
    assert re.findall(r"\]\(chapters/(\d\d_\w+\.ipynb)\)", readme) == names == [path.name for path in SOLUTIONS]
    assert {number for path in SOLUTIONS for number in exercises(path)} == EXERCISES.keys()


@pytest.mark.parametrize("path", SECOND, ids=lambda path: path.stem)
def test_a_second_notebook_is_linked_from_its_chapter(path):
    (chapter,) = [other for other in CHAPTERS if other.name.startswith(f"{path.name[:2]}_")]
    assert f"]({path.name})" in chapter.read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------
# Chapters hold on every machine


def mentioned(*nodes: ast.AST) -> set[str]:
    return {getattr(node, "id", getattr(node, "attr", "")) for tree in nodes for node in ast.walk(tree)}


def named(target: ast.expr) -> set[str]:
    """The names that an assignment to a target changes: `times` of `times[way]`, `a` and `b` of `a, b`."""
    while isinstance(target, ast.Subscript | ast.Attribute):
        target = target.value
    return mentioned(target) - {""}


def asserts_that_depend_on(roots: set[str], notebook: Path) -> Iterator[tuple[str, list[str]]]:
    """Asserts about what the roots gave, by the names of functions and variables that it passes, with their tags."""
    known = set(roots)
    for cell in nbformat.read(notebook, as_version=4).cells:
        nodes = list(ast.walk(ast.parse(cell.source))) if cell.cell_type == "code" else []
        before: set[str] = set()
        while known != before:
            before = set(known)
            for node in nodes:
                match node:
                    case ast.FunctionDef(name=name, body=body) if known & mentioned(*body):
                        known.add(name)
                    case ast.Assign(targets=targets, value=value) if known & mentioned(value):
                        known.update(*map(named, targets))
                    case ast.Call(func=ast.Attribute(value=kept, attr="append"), args=args) if known & mentioned(*args):
                        known.update(named(kept))
        for node in nodes:
            if isinstance(node, ast.Assert) and known & mentioned(node.test):
                yield ast.unparse(node), cell.metadata.get("tags", [])


@pytest.mark.parametrize("path", [*CHAPTERS, *SOLUTIONS], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_minids_is_imported_before_torch(path):
    """It sets how long torch's threads wait, which torch reads when it is loaded."""
    setup = next(iter(tagged_cells(path, "setup")))
    order = re.findall(r"(?m)^(?:from|import) (minids|torch|transformers)\b", setup)
    assert order[0] == "minids"


@pytest.mark.parametrize("path", [*CHAPTERS, *SOLUTIONS], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_assert_depends_on_a_time(path):
    assert list(asserts_that_depend_on({"perf_counter", "monotonic", "time_ns"}, path)) == []


@pytest.mark.parametrize("path", [*CHAPTERS, *SOLUTIONS], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_asserts_about_live_training_are_in_live_cells_whose_seed_can_be_set(path):
    """So that `make margins` finds them."""
    asserts = list(asserts_that_depend_on({"start_run", "backward"}, path))
    assert [text for text, tags in asserts if "live" not in tags] == []
    assert not asserts or sum("SEED = 0" in source for source in tagged_cells(path, "live")) == 1


@pytest.mark.parametrize(
    "line", ["assert times[0] < 1", "assert max(row) < 1", "ratio = milliseconds() / 2; assert ratio > 1"]
)
def test_an_assert_that_depends_on_a_time_is_found(line, tmp_path):
    clock = "def milliseconds():\n    return perf_counter()\ntimes, row = {}, []\ntimes[0] = milliseconds()\n"
    cells = [v4.new_code_cell(clock + "row.append(milliseconds())"), v4.new_code_cell(f"assert 1 < 2; {line}")]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "timed.ipynb")
    assert len(list(asserts_that_depend_on({"perf_counter"}, tmp_path / "timed.ipynb"))) == 1


# ---------------------------------------------------------------------------------------------------
# Exercises


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


@pytest.mark.parametrize("deaths", range(nbval_kernels.TIMES + 1))
def test_a_kernel_that_dies_at_its_start_gets_other_chances(deaths):
    waiting = [RuntimeError("Kernel died")] * deaths

    def start(kernel_name):
        if waiting:
            raise waiting.pop()
        return kernel_name

    if deaths < nbval_kernels.TIMES:
        assert nbval_kernels.again(start)(kernel_name="python3") == "python3"
    else:
        with pytest.raises(RuntimeError, match="Kernel died"):
            nbval_kernels.again(start)(kernel_name="python3")
