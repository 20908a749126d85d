"""The byte 5-gram against Witten and Bell's formula written as plain loops over the training text."""

import math
from unittest.mock import patch

import numpy as np
import pytest
from configurations import examples
from hypothesis import example, given
from hypothesis import strategies as st

from minids.text import ngram as module
from minids.text.ngram import END, ByteNGram

streams = st.lists(st.sampled_from([0, 97, 98, 255, END]), max_size=40)


def probability(train: list[int], context: list[int], symbol: int) -> float:
    """P(symbol | context), from the uniform distribution up to the 5-gram."""
    p = 1 / 257
    for n in range(min(5, len(context) + 1)):
        history = context[len(context) - n :]
        followers = [train[i + n] for i in range(len(train) - n) if train[i : i + n] == history]
        if followers:
            kinds = len(set(followers))
            p = (followers.count(symbol) + kinds * p) / (len(followers) + kinds)
    return p


@examples(150)
@given(streams, streams)
@example([97, 98, 97, 98, 97, 99, 97, 98], [97, 98, 97, 98, 97, 100, 97])
@example([], [97, 97])
@example([97], [97, 97, 97, 97, 97, 97])
def test_bits_equal_a_brute_force_count(train, text):
    expected = [-math.log2(probability(train, text[:i], symbol)) for i, symbol in enumerate(text)]
    np.testing.assert_allclose(ByteNGram(np.array(train)).bits(np.array(text)), expected, rtol=1e-12)


@examples(100)
@given(st.lists(streams, max_size=8), streams, st.integers(1, 9))
def test_a_stream_in_parts_of_any_length_counts_as_one(parts, text, at_a_time):
    whole, text = np.array([symbol for part in parts for symbol in part], dtype=np.int16), np.array(text)
    with patch.object(module, "AT_A_TIME", at_a_time):
        in_parts = ByteNGram(np.array(part, dtype=np.int16) for part in parts)
    np.testing.assert_array_equal(in_parts.bits(text), ByteNGram(whole).bits(text))


@examples(20)
@given(st.lists(st.sampled_from([0, 97, 98, END]), min_size=1, max_size=40), st.lists(st.integers(0, 256), max_size=6))
def test_the_probabilities_of_all_257_symbols_sum_to_1(train, context):
    ngram = ByteNGram(np.array(train))
    last = [ngram.bits(np.array([*context, symbol]))[-1] for symbol in range(257)]
    assert np.exp2(-np.array(last)).sum() == pytest.approx(1, abs=1e-12)


def test_a_sequence_seen_once_by_hand():
    """After 'a': P_1(a) = (1 + 1/257) / 2, and no longer context was seen."""
    p = (1 + 1 / 257) / 2
    assert ByteNGram(np.array([97])).bits(np.array([97, 97])) == pytest.approx([-math.log2(p)] * 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_five_symbols_fit_into_one_number(dtype):
    """257^5 is about 2^40: in 32 bits, or in the symbols' own type, it would overflow."""
    context = [251, 252, 253, 254]
    train = [symbol for last in range(250) for symbol in (*context, last)]
    for last in (0, 100, 200, 249):
        bits = ByteNGram(np.array(train, dtype=dtype)).bits(np.array([*context, last], dtype=dtype))
        assert bits[-1] == pytest.approx(-math.log2(probability(train, context, last)))
