"""Repeated windows against a set of all windows."""

import numpy as np
from configurations import examples
from hypothesis import given
from hypothesis import strategies as st

from minids.text.windows import WINDOW, repeated_windows, window_hashes

texts = st.lists(st.binary(max_size=40) | st.text("ab", max_size=60).map(str.encode), max_size=5)


def windows(text: bytes, width: int) -> list[bytes]:
    return [text[i : i + width] for i in range(len(text) - width + 1)]


@examples(200)
@given(texts, texts, st.integers(1, 13))
def test_a_window_is_repeated_if_it_is_in_a_seen_text(asked, seen, width):
    known = {window for text in seen for window in windows(text, width)}
    found = repeated_windows(asked, iter(seen), width)
    assert [part.tolist() for part in found] == [[w in known for w in windows(text, width)] for text in asked]


def test_a_copied_passage_of_fifty_bytes_is_found_and_one_of_forty_nine_is_not():
    rng = np.random.default_rng(0)
    text, before, after = (rng.bytes(WINDOW) for _ in range(3))
    assert repeated_windows([b"x" + text + b"y"], [before + text + after])[0].tolist() == [False, True, False]
    assert not repeated_windows([b"x" + text[1:] + b"y"], [before + text[1:] + after])[0].any()


def test_different_windows_have_different_hashes():
    text = np.random.default_rng(0).bytes(100_000)
    assert len(np.unique(window_hashes(text))) == len(text) - WINDOW + 1
