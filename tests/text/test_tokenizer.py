"""The tokenizer against the text itself: what goes in comes out, and its tokens spell its bytes."""

import json
import re

import numpy as np
import pytest
from configurations import examples
from hypothesis import example, given
from hypothesis import strategies as st

from minids.text.tokenizer import END_OF_TEXT, Tokenizer

TEXTS = [
    "def add(a, b):\n    return a + b  # 127 and 128\n" * 5,
    "Return the sum of two numbers, 2024 for example.\n\n" * 5,
    "12+7=19\n100-99=1\n127*3=381\n" * 5,
    "über Größe, 深度求索, <|end_of_text|> 👩‍👩‍👧\r\n" * 5,
]
# Any character, and more often those that could go wrong: parts of words that were learned, digits of several
# scripts, control characters, and the special token spelled out, whole or in part.
parts = st.sampled_from(
    [*"aénr 0129.\n\t深👩\u200d\0\x1b½²٣", "e\u0301", " numbers", "127", END_OF_TEXT, END_OF_TEXT[:-1], "<|", "|>"]
)
any_text = st.lists(st.characters(exclude_categories=["Cs"]) | parts, max_size=40).map("".join)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 320)


@pytest.fixture(scope="module")
def loaded(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "tokenizer.json"
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    return Tokenizer.load(path)


@examples(200)
@given(any_text)
@example(END_OF_TEXT)
@example(f"a{END_OF_TEXT}{END_OF_TEXT} 12")
@example("👩‍👩‍👧 e\u0301 \ufeff \ufffd \U0010ffff")
@example("\0\x01\x1b[0m\x7f\x85\u2028\r\n\t \r")
@example("  a  \n\n   b   ")
@example("1234567890 ½²٣ 一二三 Ⅷ")
def test_any_text_comes_back_and_its_tokens_spell_its_bytes(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.end_of_text not in ids
    token_bytes = tokenizer.token_bytes()
    assert b"".join(token_bytes[i] for i in ids) == text.encode()


@examples(100)
@given(st.text("0123456789ab .=\n٣", max_size=60) | any_text)
def test_every_digit_stands_alone(tokenizer, text):
    token_bytes = tokenizer.token_bytes()
    pieces = [token_bytes[i] for i in tokenizer.encode(text)]
    assert all(len(piece) == 1 for piece in pieces if re.search(rb"\d", piece))


def test_no_token_of_the_vocabulary_joins_a_digit_to_anything(tokenizer):
    assert all(len(piece) == 1 for piece in tokenizer.token_bytes() if re.search(rb"\d", piece))


def test_merges_make_text_shorter_than_its_bytes(tokenizer):
    assert len(tokenizer.encode(TEXTS[1])) < len(TEXTS[1].encode()) / 2


def test_token_bytes_hold_each_byte_once_and_nothing_for_end_of_text(tokenizer):
    token_bytes = tokenizer.token_bytes()
    assert len(token_bytes) == tokenizer.vocab_size == len(set(token_bytes))
    assert token_bytes[tokenizer.end_of_text] == b""
    assert {bytes([b]) for b in range(256)} <= set(token_bytes)


def test_end_of_text_is_token_0_and_shows_itself_when_decoded(tokenizer):
    assert tokenizer.end_of_text == 0
    assert tokenizer.decode([0]) == END_OF_TEXT


def test_a_cut_off_character_decodes_to_the_replacement_sign():
    tokenizer = Tokenizer.train([], 257)
    assert len(tokenizer.encode("深")) == 3
    assert set(tokenizer.decode(tokenizer.encode("深")[:2])) == {"\ufffd"}


def test_ids_beyond_the_vocabulary_decode_to_nothing(tokenizer):
    """A model may have room for more tokens than a short text yields."""
    assert tokenizer.decode([*tokenizer.encode("ab"), tokenizer.vocab_size, 10**6]) == "ab"


@examples(30)
@given(st.lists(any_text, max_size=6))
def test_documents_stand_between_end_of_text_tokens(tokenizer, texts):
    expected = [0]
    for text in texts:
        expected += [*tokenizer.encode(text), 0]
    stream = tokenizer.encode_documents(texts)
    assert stream.dtype == np.uint16
    assert stream.tolist() == expected


def test_saved_and_loaded_it_is_the_same_tokenizer(tokenizer, loaded):
    assert loaded.to_json() == tokenizer.to_json()
    assert (loaded.vocab_size, loaded.end_of_text) == (tokenizer.vocab_size, tokenizer.end_of_text)
    assert loaded.token_bytes() == tokenizer.token_bytes()


@examples(100)
@given(any_text)
@example(END_OF_TEXT)
def test_saved_and_loaded_it_gives_any_text_the_same_ids(tokenizer, loaded, text):
    ids = loaded.encode(text)
    assert ids == tokenizer.encode(text)
    assert loaded.decode(ids) == text
    assert loaded.encode_documents([text]).tolist() == [0, *ids, 0]


def test_training_twice_gives_the_same_file(tokenizer):
    assert Tokenizer.train(TEXTS, 320).to_json() == tokenizer.to_json()


def test_the_file_is_plain_json_with_the_vocabulary_in_it(tokenizer):
    vocabulary = json.loads(tokenizer.to_json())["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(tokenizer.vocab_size))


def test_training_stops_at_the_vocabulary_asked_for(tokenizer):
    assert tokenizer.vocab_size == 320


def test_a_short_text_yields_fewer_tokens_than_asked_for():
    assert 257 <= Tokenizer.train(["abcabc"], 2048).vocab_size < 270


@pytest.mark.parametrize("size", [-1, 0, 256])
def test_a_vocabulary_without_room_for_the_bytes_is_refused(size):
    with pytest.raises(ValueError, match=rf"vocab_size={size} is too small"):
        Tokenizer.train(TEXTS, size)


def test_257_tokens_are_enough_for_any_text():
    tokenizer = Tokenizer.train(TEXTS, 257)
    assert tokenizer.vocab_size == 257
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in TEXTS)


def test_a_vocabulary_beyond_uint16_is_refused():
    """Token streams are uint16."""
    with pytest.raises(ValueError, match="vocab_size=65537"):
        Tokenizer.train(TEXTS, 65_537)


@pytest.mark.parametrize("content", [None, "", "{}", "not JSON", '{"version": "1.0"'])
def test_a_missing_or_damaged_file_is_told_in_one_sentence(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json") as error:
        Tokenizer.load(path)
    assert "\n" not in str(error.value)
