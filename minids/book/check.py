"""Exercises that check themselves.

A chapter ends an exercise with `check("1.2", answer)`. What solves it stands in the chapter's solutions
notebook, in the cells tagged `ex-1.2`, which end with `exercise("1.2", …)`: the solution, an oracle that does
not share its reasoning, cases to compare on, and the mistakes that people make, each with its hint. So one
place holds everything about an exercise, and nothing of it is in the chapter.

`check` never raises: an answer is unsolved, wrong or solved.
"""

from __future__ import annotations

import contextlib
import html
import io
import json
import random
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from IPython import get_ipython
from IPython.display import display

CHAPTERS = Path(__file__).parents[2] / "chapters"
MARKS = {"unsolved": ("○", "#6B6F76"), "wrong": ("✗", "#B34700"), "solved": ("✓", "#00724F")}


@dataclass(frozen=True)
class Exercise:
    """What an exercise asks for. Answers are functions, compared with `oracle` on `cases`, or values for `judge`.

    `cases` are arguments by the name under which a difference is reported. `judge` returns what is wrong with a
    value, or None. `mistakes` are wrong answers by the hint that each deserves.
    """

    number: str
    solution: Any
    oracle: Callable | None = None
    cases: dict[str, tuple] = field(default_factory=dict)
    judge: Callable[[Any], str | None] | None = None
    mistakes: dict[str, Any] = field(default_factory=dict)

    def verdict(self, answer: Any) -> Verdict:
        """Return what is to be said of an answer."""
        try:
            status, text = self._verdict(answer)
        except Exception as error:  # the reader's code, and check must not raise
            status, text = "wrong", f"Your code raises {type(error).__name__}: {error}"
        return Verdict(self.number, status, text)

    def _verdict(self, answer: Any) -> tuple[str, str]:
        if self._is_empty(answer):
            return "unsolved", "not solved yet."
        for hint, mistake in self.mistakes.items():
            if self._same_answer(answer, mistake):
                return "wrong", hint
        complaint = self.judge(answer) if self.judge else self._first_difference(answer)
        if complaint:
            return "wrong", complaint
        checked = self.judge or self.oracle
        agrees = "" if self.judge else f" in {len(self.cases)} case{'s' * (len(self.cases) > 1)}"
        return "solved", f"solved: {checked.__doc__.strip().rstrip('.')}{agrees}."

    def _is_empty(self, answer: Any) -> bool:
        if answer is None or answer is ...:
            return True
        if not callable(answer) or not self.cases:
            return False
        try:
            result = answer(*next(iter(self.cases.values())))
        except NotImplementedError:
            return True
        return result is None or result is ...

    def _same_answer(self, answer: Any, mistake: Any) -> bool:
        if not self.cases:
            return same(answer, mistake)
        return all(same(answer(*case), mistake(*case)) for case in self.cases.values())

    def _first_difference(self, answer: Callable) -> str | None:
        for name, case in self.cases.items():
            got, expected = answer(*case), self.oracle(*case)
            if not same(got, expected):
                return f"for {name} yours gives {_brief(got)}, and it should be {_brief(expected)}."
        return None


@dataclass(frozen=True)
class Verdict:
    """`status` is unsolved, wrong or solved; `text` says why."""

    number: str
    status: str
    text: str

    def __str__(self) -> str:
        return f"{MARKS[self.status][0]} Exercise {self.number}: {self.text}"

    def show(self) -> Verdict:
        _, color = MARKS[self.status]
        if get_ipython() is None:
            print(self)
            return self
        line = f'<p style="border-left:4px solid {color};padding-left:10px"><b>{html.escape(str(self))}</b></p>'
        display({"text/plain": str(self), "text/html": line}, raw=True)
        return self

    def _ipython_display_(self) -> None:
        """Stay silent as a cell's last value: it has been shown."""


_found: ContextVar[list[Exercise] | None] = ContextVar("found", default=None)


def exercise(number: str, solution: Any, **asks) -> None:
    """Define an exercise, in a solutions notebook; `asks` are the other fields of Exercise.

    Shows the verdict on the solution. Raises AssertionError unless it is solved and every mistake gets its hint.
    """
    defined = Exercise(number, solution, **asks)
    if (found := _found.get()) is not None:
        found.append(defined)
        return
    verdict = defined.verdict(solution)
    assert verdict.status == "solved", verdict
    for hint, mistake in defined.mistakes.items():
        assert defined.verdict(mistake) == Verdict(number, "wrong", hint), f"another answer than for {hint!r}"
    verdict.show()


def check(number: str, answer: Any) -> Verdict:
    """Show and return the verdict on a reader's answer to an exercise, by its number, as in "1.2"."""
    try:
        verdict = definition(number).verdict(answer)
    except ValueError as error:
        verdict = Verdict(number, "unsolved", str(error))
    return verdict.show()


def definition(number: str) -> Exercise:
    """Return an exercise from its chapter's solutions notebook. Raises ValueError where there is none."""
    found: list[Exercise] = []
    token = _found.set(found)
    namespace: dict = {"__name__": "solutions"}
    try:
        with _undisturbed(), contextlib.redirect_stdout(io.StringIO()):
            for source in tagged_cells(solutions_of(number), "setup", f"ex-{number}"):
                exec(source, namespace)
    finally:
        _found.reset(token)
    if len(found) != 1:
        raise ValueError(f"there is no exercise {number}.")
    return found[0]


def solutions_of(number: str) -> Path:
    """Return the solutions notebook of an exercise's chapter."""
    chapter = number.partition(".")[0]
    found = sorted((CHAPTERS / "solutions").glob(f"{chapter:0>2}_*.ipynb"))
    if not found:
        raise ValueError(f"the solutions of chapter {chapter} are not in {CHAPTERS.name}/solutions.")
    return found[0]


def tagged_cells(notebook: Path, *tags: str) -> Iterable[str]:
    """Return the sources of the code cells that have one of the tags, in order."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code" and set(tags) & set(cell["metadata"].get("tags", [])):
            yield "".join(cell["source"])


@contextlib.contextmanager
def _undisturbed():
    """Leave the reader's random numbers as they are."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002


def same(a: Any, b: Any) -> bool:
    """Whether two results agree: numbers and tensors up to rounding, sequences item by item."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        a, b = torch.as_tensor(a), torch.as_tensor(b)
        return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-6)
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float | np.number) and isinstance(b, int | float | np.number):
        return bool(abs(a - b) <= 1e-6 * max(abs(a), abs(b)))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(a == b)


def _brief(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}" if value.numel() > 8 else str(value.tolist())
    if isinstance(value, float):
        return f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
