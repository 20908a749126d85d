"""Answers of every kind, and what is said of them."""

import json
import random
import sys

import numpy as np
import pytest
import torch

from minids.book.check import Exercise, check, definition, exercise, same


def oracle(x):
    """twice the number"""
    return x + x


DOUBLE = Exercise(
    "9.1", lambda x: 2 * x, oracle=oracle, cases={"three": (3,), "five": (5,)}, mistakes={"it is doubled.": lambda x: x}
)


def a_stub(x): ...


def to_be_done(x):
    raise NotImplementedError


@pytest.mark.parametrize("answer", [..., None, a_stub, to_be_done])
def test_what_is_empty_is_unsolved(answer):
    assert DOUBLE.verdict(answer).status == "unsolved"


def test_a_right_answer_is_told_what_it_was_held_against():
    verdict = DOUBLE.verdict(lambda x: 2.0 * x)
    assert (verdict.status, verdict.text) == ("solved", "solved: agrees with twice the number in 2 cases.")


def test_a_forgotten_return_is_told():
    def forgets(x):
        2 * x

    assert DOUBLE.verdict(forgets).text == "your function returns nothing: is a `return` missing?"


def test_a_known_mistake_gets_its_hint():
    assert DOUBLE.verdict(lambda x: x + 0).text == "it is doubled."


def test_an_unknown_mistake_is_told_where_it_differs():
    assert DOUBLE.verdict(lambda x: x * x - 3).text == "for five yours gives 22, and it should be 10."


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda x: x * x, "for two rows yours has 9 at [1, 0], and it should be 6."),
        (lambda x: x.sum(), "yours gives a tensor of shape (), and it should be a tensor of shape (2, 1)."),
        (lambda x: (2 * x).tolist(), "it should be a Tensor, and it is a list."),
        (lambda x: x * float("nan"), "yours has nan at [0, 0], and it should be 4."),
    ],
)
def test_of_tensors_the_first_difference_is_told(answer, says):
    asked = Exercise("9.5", oracle, oracle=oracle, cases={"two rows": (torch.tensor([[2.0], [3.0]]),)})
    assert says in asked.verdict(answer).text


def test_an_answer_that_raises_is_wrong_and_says_so():
    verdict = DOUBLE.verdict(lambda x: 1 / 0)
    assert verdict.status == "wrong"
    assert "ZeroDivisionError" in verdict.text


@pytest.mark.parametrize("answer", [3, "text", [1], lambda: 1, torch.ones(2)])
def test_an_answer_of_another_kind_is_wrong(answer):
    assert DOUBLE.verdict(answer).status == "wrong"


def test_a_value_is_judged():
    def judge(value):
        """a number above ten"""
        return None if value > 10 else f"{value} is too small."

    above = Exercise("9.2", 11, judge=judge, mistakes={"that is ten itself.": 10})
    assert above.verdict(12).text == "solved: a number above ten."
    assert above.verdict(10).text == "that is ten itself."
    assert above.verdict(3).text == "3 is too small."
    assert above.verdict(...).status == "unsolved"
    assert above.verdict("12").text == "it should be a int, and it is a str."


def test_a_wrong_solution_or_an_unrecognised_mistake_cannot_be_defined():
    with pytest.raises(AssertionError):
        exercise("9.1", lambda x: x, oracle=oracle, cases={"three": (3,)})
    with pytest.raises(AssertionError):
        exercise("9.1", lambda x: 2 * x, oracle=oracle, cases={"none": (0,)}, mistakes={"no": lambda x: x})


def test_check_never_raises(capsys):
    assert check("1.99", 1).status == "unsolved"
    assert check("99.1", 1).status == "unsolved"
    assert check(1.1, None).status == "unsolved"
    assert check(len, "1.1").status == "unsolved"
    assert check("1.1", lambda *_: 1 / 0).status == "wrong"
    assert check("1.1", lambda *_: sys.exit(1)).status == "wrong"
    assert capsys.readouterr().out.count("Exercise") == 6


def test_check_leaves_the_readers_random_numbers_alone(monkeypatch, tmp_path):
    """Also where the solutions seed every generator, as a chapter does."""
    lines = [
        "import random, numpy, torch", "from minids.book import exercise",
        "random.seed(1), numpy.random.seed(1), torch.manual_seed(1)",
        "exercise('1.1', lambda x: x, oracle=abs, cases={'one': (1,)})",
    ]  # fmt: skip
    cell = {"cell_type": "code", "source": "\n".join(lines), "metadata": {"tags": ["ex-1.1"]}}
    (tmp_path / "solutions").mkdir()
    (tmp_path / "solutions" / "01_seeds.ipynb").write_text(json.dumps({"cells": [cell]}))
    monkeypatch.setattr(sys.modules["minids.book.check"], "CHAPTERS", tmp_path)

    def seed():
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        random.seed(5)

    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random(), str(torch.tensor(1 / 3))  # noqa: NPY002

    seed()
    undisturbed = draw()
    seed()
    definition("1.1")
    assert draw() == undisturbed


def test_an_exercise_without_chapters_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["minids.book.check"], "CHAPTERS", tmp_path / "chapters")
    assert "chapters/solutions" in check("1.1", 1).text


def test_an_answer_is_called_once_per_case_and_cannot_change_one():
    calls = []

    def doubles_in_place(x):
        calls.append(x)
        return x.mul_(2)

    def oracle(x):
        """twice the numbers"""
        return 2 * x

    asked = Exercise("9.3", oracle, oracle=oracle, cases={"ones": (torch.ones(2),)}, mistakes={"no.": lambda x: x})
    assert asked.verdict(doubles_in_place).status == "solved"
    assert len(calls) == 1
    assert asked.cases["ones"][0].tolist() == [1, 1]


@pytest.mark.parametrize("asks", [{}, {"oracle": oracle}, {"oracle": lambda x: x, "cases": {"one": (1,)}}])
def test_an_exercise_that_could_not_fail_cannot_be_made(asks):
    with pytest.raises(ValueError, match="needs a judge"):
        Exercise("9.4", None, **asks)


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (1, 1.0, True), (1, 1 + 1e-9, True), (1, 1.001, False), (True, 1, False), (True, True, True),
        (np.float64(2), 2, True), ([1, 2], (1, 2), True), ([1], [1, 2], False), ({"a": 1}, {"a": 1.0}, True),
        (float("inf"), float("inf"), True), (float("nan"), float("nan"), True), (0.1 + 0.2 - 0.3, 0.0, True),
        (np.True_, True, True), (np.ones(2), np.ones(2), True), (np.ones(2), torch.zeros(2), False),
        (torch.tensor(1 + 2j), torch.tensor(1 + 0j), False), (torch.ones(1), "one", False),
        (torch.ones(1), None, False),
        ({"a": 1}, {"b": 1}, False), ("a", "a", True), ("a", 1, False),
        (torch.ones(2), torch.ones(2) + 1e-8, True), (torch.ones(2), torch.ones(1, 2), False),
        (torch.ones(1), 1.0, False),
    ],
)  # fmt: skip
def test_results_agree_up_to_rounding(a, b, equal):
    assert same(a, b) is equal
    assert same(b, a) is equal
