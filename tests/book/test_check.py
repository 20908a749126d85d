"""Answers of every kind, and the verdicts on them."""

import random
import sys

import numpy as np
import pytest
import torch

from minids import ModelConfig
from minids.book.check import Exercise, check, definition, exercise, same


def oracle(x):
    """twice the number"""
    return x + x


def judge(value):
    """a number above ten"""
    return None if value > 10 else f"{value} is too small."


def pair(x):
    """the number and the one after it"""
    return x, x + 1


def dots(x): ...


def to_be_done(x):
    raise NotImplementedError


def no_return(x):
    2 * x


CASES = {"three": (3,), "five": (5,)}
DOUBLE = Exercise("9.1", oracle, oracle=oracle, cases=CASES, mistakes={"it is doubled.": lambda x: x})
ABOVE = Exercise("9.2", 11, judge=judge, mistakes={"that is ten itself.": 10})
PAIR = Exercise("9.4", pair, oracle=pair, cases={"four": (4,)})
TENSOR = Exercise("9.3", oracle, oracle=oracle, cases={"two rows": (torch.tensor([[2.0], [3.0]]),)})


@pytest.mark.parametrize(
    ("asked", "answer", "status", "text"),
    [
        *[(DOUBLE, answer, "unsolved", "not solved yet.") for answer in (..., None, dots, to_be_done)],
        (DOUBLE, lambda x: 2.0 * x, "solved", "solved: agrees with twice the number in 2 cases."),
        (DOUBLE, no_return, "wrong", "your function returns nothing: is a `return` missing?"),
        (DOUBLE, lambda x: x + 0, "wrong", "it is doubled."),
        (DOUBLE, lambda x: x * x - 3, "wrong", "for five (x=5) yours gives 22, and it should be 10."),
        (DOUBLE, lambda x: 1 / 0, "wrong", "for three (x=3) your code raises ZeroDivisionError: division by zero"),
        *[(DOUBLE, answer, "wrong", "") for answer in (3, "text", [1], lambda: 1, torch.ones(2))],
        (TENSOR, lambda x: x * x, "wrong", "for two rows (x=[[2], [3]]) yours has 9 at [1, 0], and it should be 6."),
        (TENSOR, lambda x: x * float("nan"), "wrong", "yours has nan at [0, 0], and it should be 4."),
        (TENSOR, lambda x: x.sum(), "wrong", "yours gives a tensor of shape (), and it should be a tensor of shape (2"),
        (TENSOR, lambda x: x.tolist(), "wrong", "it should be a Tensor, and it is a list."),
        (PAIR, lambda x: (x, 3 * x), "wrong", "in result 2 of 2, yours gives 12, and it should be 5."),
        (ABOVE, 12, "solved", "solved: a number above ten."),
        (ABOVE, 10, "wrong", "that is ten itself."),
        (ABOVE, 3, "wrong", "3 is too small."),
        (ABOVE, ..., "unsolved", "not solved yet."),
        (ABOVE, "12", "wrong", "it should be a int, and it is a str."),
    ],
)
def test_every_kind_of_answer_gets_its_verdict(asked, answer, status, text):
    verdict = asked.verdict(answer)
    assert verdict.status == status
    assert text in verdict.text


def first_above_ten(numbers):
    """a list that begins above ten"""
    return judge(numbers[0])


def test_a_solved_value_can_get_a_remark_and_a_long_wrong_one_is_not_repeated():
    mistakes = {"all ten.": [10] * 50, "that is ten itself.": [10]}
    asked = Exercise(
        "9.7", [11], judge=first_above_ten, remark=lambda numbers: f"{numbers} will do.", mistakes=mistakes
    )
    assert str(asked.verdict([12])) == "✓ Exercise 9.7: solved: a list that begins above ten.\n[12] will do."
    assert asked.verdict([3]).detail == asked.verdict([10] * 50).detail == ""
    assert asked.verdict([10]).detail == "Your answer: [10]."


def count(*arguments):
    """counting them"""
    return len(arguments)


def test_a_wrong_answer_is_told_on_which_arguments_it_fails_and_can_get_them():
    cases = {
        "none": (),
        "some": (torch.ones(3, 5), torch.tensor([[1 / 3, 2.0]]), 1e12, ModelConfig.preset("tiny"), [True], judge),
    }
    asked = Exercise("9.5", count, oracle=count, cases=cases, mistakes={"one too many.": lambda *x: len(x) + bool(x)})
    shown = "a=tensor(… (3, 5)), b=[[0.3333, 2]], c=1e+12, d=ModelConfig(…), e=[True], f=judge"
    for answer in (lambda a=0, b=0, c=0, d=0, e=0, f=0: 7 * bool(f), lambda a=0, b=0, c=0, d=0, e=0, f=0: 8 * bool(f)):
        verdict = asked.verdict(answer)
        assert f"or some yours gives {answer(f=1)}, and it should be 6." in str(verdict)
        assert f"There, {shown}. The" in str(verdict)  # so many arguments stand after what is wrong
        assert str(verdict).endswith('The arguments: check("9.5", …).arguments')
        assert tuple(verdict.arguments.values()) == cases["some"]
        assert verdict.text.startswith("one too many." if answer(f=1) == 7 else "for some")
    assert asked.verdict(count).arguments == {}


def test_an_answer_is_called_once_per_case_and_cannot_change_one():
    calls = []
    assert TENSOR.verdict(lambda x: calls.append(x) or x.mul_(2)).status == "solved"
    assert len(calls) == 1
    assert TENSOR.cases["two rows"][0].tolist() == [[2], [3]]


def last_three(numbers):
    """what stays in the list"""
    return numbers[-3:]


def test_an_exercise_can_look_at_what_a_call_leaves_behind():
    def left(function, numbers):
        function(numbers)
        return numbers

    def cut(numbers):
        del numbers[:-3]

    cases = {"five": ([1, 2, 3, 4, 5],)}
    mistakes = {"the list itself is to be cut.": lambda numbers: numbers[-3:]}
    asked = Exercise("9.6", cut, oracle=last_three, cases=cases, mistakes=mistakes, run=left)
    assert asked.verdict(cut).text == "solved: agrees with what stays in the list in 1 cases."
    assert asked.verdict(lambda numbers: numbers[2:]).text == "the list itself is to be cut."
    assert asked.verdict(lambda numbers: numbers.pop()).text.endswith("gives [1, 2, 3, 4], and it should be [3, 4, 5].")


@pytest.mark.parametrize(
    ("error", "solution", "asks"),
    [
        (ValueError, oracle, {}),
        (ValueError, oracle, {"oracle": oracle}),
        (ValueError, oracle, {"oracle": lambda x: x, "cases": CASES}),  # no docstring to say what it is held against
        (AssertionError, lambda x: x, {"oracle": oracle, "cases": CASES}),
        (AssertionError, oracle, {"oracle": oracle, "cases": {"0": (0,)}, "mistakes": {"unnoticed": lambda x: x}}),
    ],
)
def test_an_exercise_that_could_not_fail_or_be_solved_cannot_be_defined(error, solution, asks):
    with pytest.raises(error):
        exercise("9.4", solution, **asks)


def test_check_never_raises(capsys):
    asked = [
        ("1.99", 1),
        ("99.1", 1),
        (1.1, None),
        (len, "1.1"),
        ("1.1", lambda *_: 1 / 0),
        ("1.1", lambda *_: sys.exit()),
    ]
    assert [check(*numbered).status for numbered in asked] == ["unsolved"] * 4 + ["wrong"] * 2
    said = capsys.readouterr().out
    assert said.count("Exercise") == 6
    assert "solutions of chapter 99 are not in chapters/solutions" in said


def test_check_leaves_the_readers_random_numbers_alone():
    drawn = []
    for between in (lambda: None, lambda: definition("1.1")):  # whose solutions call start(), which seeds them all
        torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
        between()
        drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))  # noqa: NPY002
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (1, 1.0, True), (1, 1 + 1e-9, True), (1, 1.001, False), (True, 1, False), (True, True, True),
        (np.float64(2), 2, True), ([1, 2], (1, 2), True), ([1], [1, 2], False), ({"a": 1}, {"a": 1.0}, True),
        (float("inf"), float("inf"), True), (float("nan"), float("nan"), True), (0.1 + 0.2 - 0.3, 0.0, True),
        (np.True_, True, True), (np.ones(2), np.ones(2), True), (np.ones(2), torch.zeros(2), False),
        (torch.tensor(1 + 2j), torch.tensor(1 + 0j), False), (torch.ones(1), "one", False),
        (torch.ones(1), None, False), (torch.ones(1), 1.0, False), ({"a": 1}, {"b": 1}, False),
        ("a", "a", True), ("a", 1, False),
        (torch.ones(2), torch.ones(2) + 1e-8, True), (torch.ones(2), torch.ones(1, 2), False),
    ],
)  # fmt: skip
def test_results_agree_up_to_rounding(a, b, equal):
    assert same(a, b) is same(b, a) is equal
