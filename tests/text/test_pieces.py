"""Text in pieces against the backend's own way with the whole: the same tokens, unless a word is very long."""

from unittest.mock import patch

import numpy as np
import pytest
from configurations import examples
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from minids.text import pieces as module
from minids.text import tokenizer as tokenizer_module
from minids.text.backend import END_OF_TEXT
from minids.text.corpus import load_corpus
from minids.text.pieces import LONG, LONGEST_WORD, pieces, sample
from minids.text.tokenizer import LEARNED_FROM, Tokenizer

WORDS = [
    "a", "hello", "don", "'", "'s", "'ll", "7", "12", "½", "٣", "一二三", "é", "e\u0301", "🙂", "\u200d", "_", "--",
    "(x", "。", " ", " ", "\n", "\n\n", "\t", "\r\n", "\x1c", "\x85", "\xa0", "\u2028", "\u3000", "\0", END_OF_TEXT,
]  # fmt: skip
# Of words with and without white space, so that some texts have long stretches without any.
some_words = st.sampled_from(WORDS) | st.sampled_from([word for word in WORDS if not word.isspace()])
texts = st.lists(some_words, max_size=60).map("".join)
repeated = st.builds(lambda text, times, end: text * times + end, texts, st.integers(1, 30), texts)
monotonous = st.lists(st.builds(str.__mul__, some_words, st.integers(1, 700)), max_size=6).map("".join)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(
        ["Don't say hello--say (x_1) = 12. 一二三。\n\n  hello " * 9, "-" * 300 + "hello" * 100], 300
    )


@pytest.fixture(scope="module")
def backend(tokenizer):
    backend = Backend.from_str(tokenizer.to_json())
    backend.encode_special_tokens = True
    return backend


def words(backend: Backend, text: str) -> list[str]:
    return [text[start:end] for _, (start, end) in backend.pre_tokenizer.pre_tokenize_str(text)]


@examples(200)
@given(repeated, st.integers(1, 300))
@example("x'" + "t" * 257, 1)
@example("hello" * 50 + "x'll" * 100 + "--y" * 200, 1)
@example(" \n" * 128 + "!" * 255 + "a" * 256 + " \t" * 128 + "7" * 1000, 9)
def test_ordinary_text_has_the_tokens_of_the_whole_wherever_it_is_cut(tokenizer, backend, text, size):
    assume(all(len(word) <= LONGEST_WORD for word in words(backend, text)))
    with patch.object(module, "PIECE", size), patch.object(tokenizer_module, "BATCH", size):
        in_pieces, stream = tokenizer.encode(text), tokenizer.encode_documents([text, "", text])
    whole = backend.encode(text, add_special_tokens=False).ids
    assert in_pieces == whole
    assert stream.tolist() == [0, *whole, 0, 0, *whole, 0]


@examples(100)
@given(monotonous)
@example("ACGTTGCA" * 2000)
@example(" " * 2000 + "a" * 2000 + "\n" * 2000)
def test_no_word_of_a_piece_is_very_long_and_nothing_is_lost(tokenizer, backend, text):
    found = list(pieces(text))
    assert "".join(found) == text
    assert "" not in found
    assert all(len(word) <= LONGEST_WORD for piece in found for word in words(backend, piece))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_white_space_is_what_the_backend_takes_for_it(backend):
    """A letter and a sign after it are two words, each apart from it; but a space goes with the word after it."""
    characters = [chr(c) for c in range(0x10FFFF) if not 0xD800 <= c < 0xE000]
    spaces = {c for c in characters if module.END_OF_WORD.match("a" + c)}
    assert spaces == {c for c in characters if c.isspace() and c not in "\x1c\x1d\x1e\x1f"}
    for c in spaces:
        assert words(backend, f"a{c}{c}!") == (["a", c, f"{c}!"] if c == " " else ["a", c, c, "!"])
    for c in "\x1c\x1d\x1e\x1f\x1b\u180e\u200b\ufeff_'":
        assert words(backend, f"!{c}!") == [f"!{c}!"]


def test_the_tokenizer_learns_from_all_of_the_book_s_corpus_and_from_no_part_of_a_word():
    documents = [text for texts in load_corpus().train.values() for text in texts]
    assert sum(len(text.encode()) for text in documents) <= LEARNED_FROM
    assert not any(LONG.search(text) for text in documents)


def test_a_sample_is_the_share_of_the_text_and_spread_over_all_of_it():
    texts = [f"{i:04} " * 20 for i in range(1000)]
    for share in (0.01, 0.25, 0.7, 1, 5):
        taken = list(sample(texts, share))
        assert len(taken) == 1000 * min(1, share)
        places = [int(text[:4]) for text in taken]
        assert max(np.diff(places)) <= np.ceil(1 / share)
        assert taken == list(sample(texts, share))
