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
    folder = tmp_path_factory.mktemp("saved")
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    return Tokenizer.load(folder)


@examples(200)
@given(any_text)
@example(END_OF_TEXT)
@example(f"a{END_OF_TEXT}{END_OF_TEXT} 12")
@example("👩‍👩‍👧 e\u0301 \ufeff \ufffd \U0010ffff")
@example("\0\x01\x1b[0m\x7f\x85\u2028\r\n\t \r")
@example("  a  \n\n   b   ")
@example("1234567890 ½²٣ 一二三 Ⅷ")
def test_any_text_comes_back_and_its_tokens_spell_its_bytes_also_after_saving_and_loading(tokenizer, loaded, text):
    ids = tokenizer.encode(text)
    assert ids == loaded.encode(text)
    assert tokenizer.decode(ids) == loaded.decode(ids) == text
    assert tokenizer.end_of_text not in ids
    token_bytes = tokenizer.token_bytes()
    assert b"".join(token_bytes[i] for i in ids) == text.encode()


@examples(30)
@given(st.lists(any_text, max_size=6))
def test_documents_stand_between_end_of_text_tokens(tokenizer, loaded, texts):
    expected = [0]
    for text in texts:
        expected += [*tokenizer.encode(text), 0]
    for stream in (tokenizer.encode_documents(texts), loaded.encode_documents(texts)):
        assert stream.dtype == np.uint16
        assert stream.tolist() == expected


def test_token_bytes_hold_each_byte_once_no_digit_beside_another_character_and_nothing_for_end_of_text(tokenizer):
    token_bytes = tokenizer.token_bytes()
    assert len(token_bytes) == tokenizer.vocab_size == len(set(token_bytes)) == 320
    assert token_bytes[tokenizer.end_of_text] == b""
    assert {bytes([b]) for b in range(256)} <= set(token_bytes)
    assert all(len(piece) == 1 for piece in token_bytes if re.search(rb"\d", piece))
    assert len(tokenizer.encode(TEXTS[1])) < len(TEXTS[1].encode()) / 2, "merges make a text shorter than its bytes"


def test_decoding_shows_end_of_text_and_cut_off_characters_and_skips_ids_beyond_the_vocabulary(tokenizer):
    """A model may have room for more tokens than a short text yields."""
    assert tokenizer.end_of_text == 0
    assert tokenizer.decode([0, *tokenizer.encode("ab"), tokenizer.vocab_size, 10**6]) == END_OF_TEXT + "ab"
    bytes_only = Tokenizer.train([], 257)
    assert len(bytes_only.encode("深")) == 3
    assert set(bytes_only.decode(bytes_only.encode("深")[:2])) == {"\ufffd"}


def test_training_twice_gives_the_same_file_which_has_the_vocabulary_in_it(tokenizer, loaded):
    assert Tokenizer.train(TEXTS, 320).to_json() == tokenizer.to_json() == loaded.to_json()
    vocabulary = json.loads(tokenizer.to_json())["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(320))


def test_the_vocabulary_has_257_to_65536_tokens_and_fewer_than_asked_for_if_the_text_is_short():
    assert Tokenizer.train(TEXTS, 257).vocab_size == 257
    assert 257 < Tokenizer.train(["abcabc"], 65_536).vocab_size < 270
    for size in (-1, 256, 65_537):
        with pytest.raises(ValueError, match=f"vocab_size={size} is not possible"):
            Tokenizer.train(TEXTS, size)


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(ValueError, match="lone surrogate at character 1"):
        tokenizer.encode("a\ud800")


@pytest.mark.parametrize("content", [None, "", "{}", '{"version": "1.0"', "without end of text"])
def test_a_missing_or_damaged_file_is_named(tokenizer, tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content == "without end of text":
        content = tokenizer.to_json().replace(END_OF_TEXT, "<|other|>")
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        Tokenizer.load(path)
