"""Exercises that check themselves.

A chapter ends an exercise with `check("1.2", answer)`. The exercise is defined in the cells tagged `ex-1.2` of the
chapter's solutions notebook, which end with `exercise("1.2", …)`: the solution, an oracle that computes the same
in an independent way, cases to compare on, and common mistakes, each with a hint.

`check` never raises: an answer is unsolved, wrong or solved. For a wrong function it names the arguments on which it
fails.
"""

from __future__ import annotations

import contextlib
import copy
import html
import inspect
import io
import json
import math
import random
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch

from minids.book.notebook import show_html

CHAPTERS = Path(__file__).parents[2] / "chapters"
MARKS = {"unsolved": ("○", "#6B6F76"), "wrong": ("✗", "#B34700"), "solved": ("✓", "#00724F")}
MOST_NUMBERS, MOST_CHARACTERS = 12, 60  # of an argument that a verdict shows whole
IN_LINE = 60  # characters of arguments that are named before what is wrong, not after it


@dataclass(frozen=True)
class Exercise:
    """What an exercise asks for. Answers are functions, compared with `oracle` on `cases`, or values for `judge`.

    `cases` are arguments by the name under which a difference is reported. `judge` returns what is wrong with a
    value, or None, and `remark` what there is to say of one that is solved. `mistakes` are wrong answers by the hint
    that each deserves. `run` tries a function on a case: by default it calls it, but it can also look at what a call
    leaves behind, or call it often. The oracle is called, and returns what `run` is to return.
    """

    number: str
    solution: Any
    oracle: Callable | None = None
    cases: dict[str, tuple] = field(default_factory=dict)
    judge: Callable[[Any], str | None] | None = None
    remark: Callable[[Any], str] = lambda value: ""
    mistakes: dict[str, Any] = field(default_factory=dict)
    run: Callable[..., Any] = lambda function, *case: function(*case)

    def __post_init__(self):
        against = self.judge or self.oracle
        if not (self.judge or self.cases) or not (against and against.__doc__):
            raise ValueError(f"Exercise {self.number} needs a judge, or an oracle and cases, with a docstring.")

    def verdict(self, answer: Any) -> Verdict:
        """Return the verdict on an answer."""
        if answer is None or answer is ... or _is_stub(answer):
            return self._unsolved()
        try:
            return self._of_value(answer) if self.judge else self._of_function(answer)
        except (Exception, SystemExit) as error:  # of a comparison with something strange: check must not raise
            return self._wrong(f"your answer raises {type(error).__name__}: {error}")

    def _of_value(self, answer: Any) -> Verdict:
        if not isinstance(answer, type(self.solution)):
            return self._wrong(f"it should be a {type(self.solution).__name__}, and it is a {type(answer).__name__}.")
        for hint, mistake in self.mistakes.items():
            if same(answer, mistake):
                shown = _argument(answer)
                return self._wrong(hint, "" if "…" in shown else f"Your answer: {shown}.")
        complaint = self.judge(answer)
        return self._wrong(complaint) if complaint else self._solved(f"{self.judge.__doc__}.", self.remark(answer))

    def _of_function(self, answer: Any) -> Verdict:
        if not callable(answer):
            return self._wrong(f"it should be a function, and it is a {type(answer).__name__}.")
        results = {}
        for name, case in self.cases.items():
            try:
                results[name] = self.run(answer, *copy.deepcopy(case))
            except NotImplementedError:
                return self._unsolved()
            except (Exception, SystemExit) as error:
                return self._wrong_in(name, answer, f"your code raises {type(error).__name__}: {error}")
        if all(result is None for result in results.values()):
            return self._wrong("your function returns nothing: is a `return` missing?")
        for name, case in self.cases.items():
            expected = self.oracle(*copy.deepcopy(case))
            if not same(results[name], expected):
                hint = next((hint for hint, mistake in self.mistakes.items() if self._gives(mistake, results)), "")
                return self._wrong_in(name, answer, f"{_difference(results[name], expected)}.", hint)
        return self._solved(f"agrees with {self.oracle.__doc__} in {len(self.cases)} cases.")

    def _gives(self, function: Callable, results: dict[str, Any]) -> bool:
        """Whether a function gives these results, by case; it stops at the first that differs."""
        return all(
            same(result, self.run(function, *copy.deepcopy(self.cases[name]))) for name, result in results.items()
        )

    def _unsolved(self) -> Verdict:
        return Verdict(self.number, "unsolved", "not solved yet.")

    def _solved(self, text: str, detail: str = "") -> Verdict:
        return Verdict(self.number, "solved", f"solved: {text}", detail)

    def _wrong(self, text: str, detail: str = "", arguments: dict | None = None) -> Verdict:
        return Verdict(self.number, "wrong", text, detail, arguments or {})

    def _wrong_in(self, name: str, answer: Callable, problem: str, hint: str = "") -> Verdict:
        """Say what is wrong in the case of that name, and with which arguments; after the hint, if there is one."""
        arguments = _by_name(answer, self.cases[name])
        whole = ", ".join(f"{parameter}={_argument(value)}" for parameter, value in arguments.items())
        short = len(whole) <= IN_LINE
        found = f"{name} ({whole}) {problem}" if short else f"{name} {problem}"
        more = "" if short else f"There, {whole}."
        if "…" in whole:
            more += f' The arguments: check("{self.number}", …).arguments'
        if hint:
            return self._wrong(hint, f"For {found} {more}".strip(), arguments)
        return self._wrong(f"for {found}", more.strip(), arguments)


def _is_stub(answer: Any) -> bool:
    """Whether a function's body is nothing but dots."""
    return isinstance(answer, FunctionType) and answer.__code__.co_code == _stub.__code__.co_code


def _stub(): ...


@dataclass(frozen=True)
class Verdict:
    """`status` is unsolved, wrong or solved; `text` says why. `arguments` are those on which a function fails."""

    number: str
    status: str
    text: str
    detail: str = field(default="", compare=False)
    arguments: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self._headline()}\n{self.detail}" if self.detail else self._headline()

    def _headline(self) -> str:
        return f"{MARKS[self.status][0]} Exercise {self.number}: {self.text}"

    def show(self) -> Verdict:
        """Display the verdict in a notebook, or print it elsewhere, and return it."""
        _, color = MARKS[self.status]
        detail = f"<br>{html.escape(self.detail)}" if self.detail else ""
        page = f"<b>{html.escape(self._headline())}</b>{detail}"
        show_html(str(self), f'<p style="border-left:4px solid {color};padding-left:10px">{page}</p>')
        return self

    def _ipython_display_(self) -> None:
        """Display nothing where a verdict is a cell's last value: `check` has displayed it."""


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
    number = str(number)
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
    """Restore the states of all random number generators afterwards."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def same(a: Any, b: Any) -> bool:
    """Whether two results agree: numbers and tensors up to rounding, sequences item by item."""
    a, b = (_plain(value) for value in (a, b))
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        both = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape == b.shape
        wide = torch.promote_types(a.dtype, b.dtype) if both else None
        return both and torch.allclose(a.to(wide), b.to(wide), rtol=1e-5, atol=1e-6, equal_nan=True)
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b or math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) or (a != a and b != b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(a == b)


def _plain(value: Any) -> Any:
    """Return numpy's numbers as Python's, and its arrays as tensors."""
    if isinstance(value, np.generic):
        return value.item()
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _difference(got: Any, expected: Any) -> str:
    """Say how two results differ; of tensors, where first."""
    if isinstance(expected, tuple) and isinstance(got, tuple) and len(got) == len(expected) > 1:
        at = next(i for i, pair in enumerate(zip(got, expected, strict=True)) if not same(*pair))
        return f"in result {at + 1} of {len(expected)}, {_difference(got[at], expected[at])}"
    if isinstance(expected, torch.Tensor) != isinstance(got, torch.Tensor):
        return f"it should be a {type(expected).__name__}, and it is a {type(got).__name__}"
    if isinstance(expected, torch.Tensor) and expected.ndim and got.shape == expected.shape:
        wrong = ~torch.isclose(got, expected.to(got.dtype), rtol=1e-5, atol=1e-6)
        place = tuple(wrong.nonzero()[0].tolist())
        return f"yours has {got[place].item():.4g} at {list(place)}, and it should be {expected[place].item():.4g}"
    return f"yours gives {_brief(got)}, and it should be {_brief(expected)}"


def _brief(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _by_name(function: Callable, case: tuple) -> dict[str, Any]:
    """Return arguments by the names of the function's parameters."""
    try:
        return dict(inspect.signature(function).bind(*case).arguments)
    except (TypeError, ValueError):  # some of torch's functions have no signature
        return {f"argument {place}": value for place, value in enumerate(case, 1)}


def _argument(value: Any) -> str:
    """Write an argument as short as it can be read; "…" where it is not whole."""
    value = _plain(value)
    if isinstance(value, torch.Tensor):
        return _numbers(value.tolist()) if value.numel() <= MOST_NUMBERS else f"tensor(… {tuple(value.shape)})"
    if isinstance(value, float | complex):
        return f"{value:.6g}"
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    text = repr(value)
    return text if len(text) <= MOST_CHARACTERS else f"{type(value).__name__}(…)"


def _numbers(values: Any) -> str:
    """Write numbers, in lists of lists as a tensor has them, with four digits each."""
    if isinstance(values, list):
        return f"[{', '.join(map(_numbers, values))}]"
    return f"{values:.4g}" if isinstance(values, float | complex) else str(values)
