"""The puzzle of chapter 8: words that a reader wrote, numbered, drawn in time, or refused with a reason."""

import pytest
from legibility import assert_legible

from minids.book.plots.c08_puzzle import as_schedule, draw_words, reason
from minids.parallel.schedules import zb1p
from minids.parallel.simulate import IllegalSchedule, simulate


def words(*letters: str) -> list[str]:
    return [" ".join(f"{letter}0" for letter in word) for word in letters]


DEADLOCK = words("FIWFIW", "FFIWIW")


def test_letters_are_numbered_as_they_come():
    assert as_schedule(words("FFFIWFIWIWIW", "FFIFIWFIWIWW", "FIFIFIWFIWWW"), 4) == zb1p(3, 4)
    assert str(as_schedule(words("WF"), 1)) == "0: W0.0 F0.0"  # illegal, which simulate says


@pytest.mark.parametrize("letter", ["B0", "F", "F1", "F0.1", "f0"])
def test_other_letters_are_refused(letter):
    with pytest.raises(ValueError, match=f"rank 1: '{letter}' is none of F0, I0 and W0."):
        as_schedule(["F0 I0 W0", f"F0 {letter}"], 1)


def test_a_rank_waits_for_an_input_gradient_where_nobody_does_a_full_backward():
    with pytest.raises(IllegalSchedule) as error:
        simulate(as_schedule(DEADLOCK, 2))
    assert reason(error.value).startswith("a deadlock: rank 0 waits before I0.0 for I0.0 of rank 1, rank 1 waits")


@pytest.mark.parametrize(
    ("drawn", "title"),
    [
        (
            words("FFIWIW", "FIWFIW"),
            "8 units of time, 2 of them idle on every rank; a rank keeps up to 2 micro-batches",
        ),
        (["F0 " * 20 + "I0 W0 " * 20] * 8, "74 units of time, 14 of them idle on every rank; a rank keeps up to 20"),
        (DEADLOCK, "These 2 words cannot run: a deadlock: rank 0 waits before I0.0 for I0.0 of rank 1"),
        (words("FIW", "WFI"), "These 2 words cannot run: rank 1: W0.0 comes before I0.0, which it needs."),
    ],
)
def test_a_picture_of_words_says_how_long_they_take_or_why_they_cannot_run(drawn, title):
    picture = draw_words(drawn)
    assert_legible(picture)
    assert picture.alt.startswith(title)
    assert len(picture.axes[0].collections[1].get_paths()) == sum(len(word.split()) for word in drawn)
