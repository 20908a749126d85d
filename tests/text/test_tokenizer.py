"""The tokenizer against the text itself: what goes in comes out, and its tokens spell its bytes."""

import json
import os
import re
import signal
import threading
from itertools import product, repeat

import numpy as np
import pytest
from configurations import examples
from hypothesis import example, given
from hypothesis import strategies as st

from minids.text.backend import END_OF_TEXT, LARGEST_FILE, LONGEST_TOKEN, MOST_TOKENS, _train
from minids.text.tokenizer import Tokenizer

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
    beyond = [tokenizer.vocab_size, 10**6, 2**32, 10**30]
    assert tokenizer.decode(np.array([0, *tokenizer.encode("ab"), *beyond], dtype=object)) == END_OF_TEXT + "ab"
    bytes_only = Tokenizer.train([], 257)
    assert len(bytes_only.encode("深")) == 3
    assert set(bytes_only.decode(bytes_only.encode("深")[:2])) == {"\ufffd"}


def test_without_text_the_tokens_are_the_bytes():
    for nothing in ([], [""]):
        assert Tokenizer.train(nothing, 300).to_json() == Tokenizer.train(TEXTS, 257).to_json()


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


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda t: t.encode("a\ud800"), "the text has a lone surrogate at character 1"),
        (lambda t: t.encode_documents(["ab", "abc\udfff" * 9]), r"texts\[1\] has a lone surrogate at character 3"),
        (lambda t: Tokenizer.train(["\ud83d\ude42"], 300), r"texts\[0\] has a lone surrogate at character 0"),
        (lambda t: t.decode([-1]), r"ids\[0\]=-1 is not possible: it must be a whole number of at least 0"),
        (lambda t: t.decode([1, 2.0]), r"ids\[1\]=2\.0 is not possible"),
        (lambda t: t.decode(np.array([np.nan])), r"ids\[0\]=.*nan.* is not possible"),
        (lambda t: t.decode(["1"]), r"ids\[0\]='1' is not possible"),
        (lambda t: t.decode([None]), r"ids\[0\]=None is not possible"),
    ],
)
def test_what_is_no_text_and_what_is_no_id_is_refused(tokenizer, call, says):
    with pytest.raises(ValueError, match=says):
        call(tokenizer)


def test_who_interrupts_the_training_does_not_wait_for_its_end():
    """The backend takes no more text, and what it does with the text that it has needs nothing of Python."""
    taken, learned = [], threading.Event()

    class Deaf:
        def train_from_iterator(self, texts, trainer):
            taken.extend(texts)
            learned.wait(60)

    def texts():
        yield "first"
        signal.raise_signal(signal.SIGINT)
        yield from repeat("more")

    with pytest.raises(KeyboardInterrupt):
        _train(Deaf(), None, texts())
    assert set(taken) == {"first", "more"}
    learned.set()


@pytest.mark.parametrize("fails", ["the texts", "the backend"])
def test_who_interrupts_a_training_that_has_failed_does_not_wait_at_all(fails):
    class Failing:
        def train_from_iterator(self, texts, trainer):
            next(texts)
            if fails == "the backend":
                signal.raise_signal(signal.SIGINT)
                raise RuntimeError
            list(texts)

    def texts():
        yield "first"
        signal.raise_signal(signal.SIGINT)
        raise RuntimeError

    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        _train(Failing(), None, texts())


# ---------------------------------------------------------------------------------------------------
# Files


@examples(50)
@given(st.lists(any_text, max_size=4), st.integers(257, 400), st.integers(1, 9))
def test_every_trained_tokenizer_can_be_read_again(tmp_path_factory, texts, vocab_size, times):
    trained = Tokenizer.train([text * times for text in texts], vocab_size)
    path = tmp_path_factory.mktemp("saved") / "tokenizer.json"
    path.write_text(trained.to_json(), encoding="utf-8")
    assert Tokenizer.load(path).to_json() == trained.to_json()


def test_a_file_has_room_for_a_full_vocabulary_of_the_longest_tokens():
    """A symbol takes two bytes at most; it is once in the vocabulary and once in a merge, beside some layout."""
    longest = max(map(len, Tokenizer.train(["-" * 2**12], 1 << 16).token_bytes()))
    assert LONGEST_TOKEN / 2 <= longest <= LONGEST_TOKEN
    layout = len(Tokenizer.train([], 257).to_json()) / 257
    assert MOST_TOKENS * (2 * layout + 2 * 2 * LONGEST_TOKEN) < LARGEST_FILE


def of(*path: str | int, put: object):
    """A change of one entry of a tokenizer.json."""

    def change(content: dict) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = put(content[path[-1]]) if callable(put) else put

    return change


def with_merge(left: str, right: str):
    def change(content: dict) -> None:
        content["model"]["merges"].append([left, right])
        content["model"]["vocab"].setdefault(left + right, len(content["model"]["vocab"]))

    return change


STRIDE = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 5}
PADDING = {
    "strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None,
    "pad_id": 0, "pad_type_id": 0, "pad_token": "a",
}  # fmt: skip
VOCABULARY = "its vocabulary must be <|end_of_text|>, the 256 bytes and the merged tokens, at most 65,536"
FOREIGN = [
    (of("padding", put=PADDING), "'padding' is not as minids writes it"),
    (of("truncation", put=STRIDE), "'truncation' is not"),
    (of("model", "continuing_subword_prefix", put="##"), "'model' is not"),
    (of("model", "dropout", put=0.5), "'model' is not"),
    (of("model", "ignore_merges", put=True), "'model' is not"),
    (of("model", "type", put="Unigram"), "'model' is not"),
    (of("normalizer", put={"type": "Lowercase"}), "'normalizer' is not"),
    (of("pre_tokenizer", "pretokenizers", put=lambda both: both[1:]), "'pre_tokenizer' is not"),
    (of("decoder", put=None), "'decoder' is not"),
    (of("post_processor", put=None), "'post_processor' is not"),
    (of("added_tokens", 0, "special", put=False), "'added_tokens' is not"),
    (of("added_tokens", put=[]), "'added_tokens' is not"),
    (of("\n" * 500, put=1), r"'(\\n)+\\? … is not"),
    (of("model", put=None), VOCABULARY),
    (of("model", "vocab", put=[1]), VOCABULARY),
    (of("model", "vocab", put=lambda vocab: vocab | {"more": 320}), "'model' is not"),
    (of("model", "vocab", put=lambda vocab: vocab | {"more": 10**9}), "'model' is not"),
    (of("model", "vocab", put=lambda vocab: {token: index + 1 for token, index in vocab.items()}), VOCABULARY),
    (of("model", "vocab", put=lambda vocab: dict(list(vocab.items())[:-1])), VOCABULARY),
    (of("model", "vocab", "a", put="5"), "'model' is not"),
    (of("model", "merges", put=lambda merges: merges[:-1]), "'model' is not"),
    (of("model", "merges", put=lambda merges: merges[::-1]), VOCABULARY),
    (of("model", "merges", put=lambda merges: [*merges, merges[0]]), "'model' is not"),
    (with_merge("a", END_OF_TEXT), VOCABULARY),
    (of("model", "merges", put=lambda merges: [" ".join(pair) for pair in merges]), VOCABULARY),
    (of("model", "merges", 0, put=[["a"], "b"]), VOCABULARY),
    (of("model", "merges", 0, put=7), VOCABULARY),
    (with_merge("absent", "a"), VOCABULARY),
]


@pytest.mark.parametrize(("change", "says"), FOREIGN)
def test_a_tokenizer_of_another_kind_is_refused(tokenizer, tmp_path, change, says):
    content = json.loads(tokenizer.to_json())
    change(content)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is not a tokenizer of minids: {says}"):
        Tokenizer.load(path)


def test_a_tokenizer_of_more_tokens_than_ids_have_bits_for_is_refused(tokenizer, tmp_path):
    content = json.loads(tokenizer.to_json())
    model = content["model"]
    some = [token for token in model["vocab"] if token != END_OF_TEXT][:260]
    for pair in product(some, some):
        if "".join(pair) not in model["vocab"]:
            model["merges"].append(pair)
            model["vocab"]["".join(pair)] = len(model["vocab"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=VOCABULARY):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist"),
        *[(text, "is not a readable JSON file") for text in (b"", b'{"version": "1.0"', b"\xff", b"[" * 10**5)],
        (b'{"version": ' + b"9" * 5000 + b"}", "is not a readable JSON file"),
        *[(text, "it must be one JSON object") for text in (b"null", b"1", b"[]", b'"text"')],
        (b"{}", VOCABULARY),
        (os.mkfifo, "it is not a regular file"),
        (lambda path: path.touch() or os.truncate(path, 1 << 30), "it has more than 41,943,040 bytes"),
    ],
)
def test_a_missing_or_damaged_file_is_named(tmp_path, content, says):
    path = tmp_path / "tokenizer.json"
    if callable(content):
        content(path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{says}"):
        Tokenizer.load(path)
