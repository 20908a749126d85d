"""Generated arithmetic: right answers, and no problem on both sides."""

import itertools
import re
from collections import Counter

import pytest

from minids.text.arithmetic import PROBLEMS_PER_DOCUMENT, arithmetic_documents, arithmetic_split
from minids.text.corpus import ARITHMETIC_DOCUMENTS


@pytest.fixture(scope="module")
def problems():
    """(a, operator, b, answer) by split, as text."""
    found = {}
    for split, count in ARITHMETIC_DOCUMENTS.items():
        lines = "".join(arithmetic_documents(split, count)).splitlines()
        found[split] = [re.fullmatch(r"(\d{1,3})([-+*])(\d{1,3})=(\d+)", line).groups() for line in lines]
    return found


def test_every_answer_is_right_and_no_problem_is_in_both_splits_not_even_commuted(problems):
    for a, operator, b, answer in {*problems["train"], *problems["validation"]}:
        assert str(eval(f"{a}{operator}{b}")) == answer
    train = {problem[:3] for problem in problems["train"]}
    for a, operator, b, _ in problems["validation"]:
        assert (a, operator, b) not in train
        assert operator == "-" or (b, operator, a) not in train


def test_a_problem_and_its_mirror_image_fall_on_one_side_and_about_a_fifth_of_all_is_held_out():
    sides = Counter(arithmetic_split(*problem) for problem in itertools.product(range(100), "+-*", range(100)))
    assert 0.18 < sides["validation"] / sides.total() < 0.22
    for a, operator, b in itertools.product(range(60), "+*", range(60)):
        assert arithmetic_split(a, operator, b) == arithmetic_split(b, operator, a)


def test_all_operators_and_lengths_occur(problems):
    operators = Counter(operator for _, operator, _, _ in problems["train"])
    assert min(operators[operator] for operator in "+-*") > 0.3 * operators.total()
    assert {len(a) for a, _, _, _ in problems["train"]} == {1, 2, 3}
    assert {len(b) for _, operator, b, _ in problems["train"] if operator == "*"} == {1}


def test_a_document_has_ten_lines_and_more_documents_begin_with_the_same_ones():
    for split in ("train", "validation"):
        texts = arithmetic_documents(split, 7)
        assert [text.count("\n") for text in texts] == [PROBLEMS_PER_DOCUMENT] * 7
        assert arithmetic_documents(split, 3) == texts[:3]


def test_a_split_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="split='test' is not possible"):
        arithmetic_documents("test", 1)
