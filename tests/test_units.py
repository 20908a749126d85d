"""Numbers and their units, against strings written by hand."""

import pytest

from minids.units import SI, from_to, in_k, in_unit, markdown_table, short


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (671_026_419_200, "671B"), (36.6e9, "36.6B"), (4.0e6, "4.00M"), (2_664_000, "2.66M"), (1.2e15, "1200T"),
        (999.6e6, "1.00B"), (9.996e6, "10.0M"), (999.4, "999"), (999.6, "1.00K"), (7.4, "7"), (0, "0"),
    ],
)  # fmt: skip
def test_a_number_has_three_digits_and_the_unit_that_fits(number, text):
    assert short(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(5.39e9, "5.39G"), (0.9996e9, "1G"), (999.6e9, "1T"), (12.3e6, "12.3M"), (123.4e9, "123G"), (4e3, "4k")],
)
def test_closing_zeros_can_be_left_out_and_units_chosen(number, text):
    assert short(number, SI, zeros=False) == text


def test_a_unit_begins_where_it_leaves_one_and_the_last_has_no_end():
    binary = ("bytes", "KiB", "MiB")
    assert in_unit(1023, 1024, binary) == (1023, "bytes")
    assert in_unit(1024, 1024, binary) == (1, "KiB")
    assert in_unit(5 * 2**30, 1024, binary) == (5 * 1024, "MiB")
    assert [in_k(tokens) for tokens in (512, 1024, 2**17)] == ["512", "1K", "128K"]


def test_an_interval_is_shown_in_the_format_of_its_number():
    assert (from_to([0.1449, 0.175]), from_to((1.75, 1.9116), ".3f")) == ("14.5% to 17.5%", "1.750 to 1.912")


def test_a_table_has_its_first_line_as_header_and_numbers_to_the_right():
    assert markdown_table([["", "bits"], ["full", 1.5]]) == "|  | bits |\n| --- | ---: |\n| full | 1.5 |"
