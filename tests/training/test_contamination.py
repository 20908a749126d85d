"""Held-out text that occurs in training, against sets of all windows of the same bytes."""

import numpy as np
import pytest

from minids.text.backend import END_OF_TEXT
from minids.text.batches import encode_split
from minids.text.corpus import Corpus
from minids.text.tokenizer import Tokenizer
from minids.text.windows import WINDOW
from minids.training.contamination import contamination
from minids.training.report import validation_rows

LONG = "A line of more than fifty bytes, which is in both of the texts, größer.\n"
ONLY_TRAIN, ONLY_HELD_OUT = ("".join(f"{word} {i * i} times {i}\n" for i in range(40)) for word in ("seen", "new"))


def windows(text: bytes) -> list[bytes]:
    return [text[i : i + WINDOW] for i in range(len(text) - WINDOW + 1)]


def test_repeated_windows_and_rows_are_those_of_a_set_of_all_windows():
    train = {"prose": [ONLY_TRAIN], "code": ["x = 1\n", LONG]}  # the text of every domain counts for every other
    held_out = {
        "prose": [ONLY_HELD_OUT + LONG + ONLY_HELD_OUT, LONG[:40], LONG[40:], "short"],  # the parts are no windows
        "code": [ONLY_HELD_OUT, LONG, LONG[::-1]],
    }
    corpus = Corpus(train, held_out, {"prose": 1, "code": 1})
    tokenizer = Tokenizer.train([*train["prose"], *train["code"], ONLY_HELD_OUT], 300)
    pieces = tokenizer.token_bytes()
    seen = {window for texts in train.values() for text in texts for window in windows(text.encode())}
    rows = validation_rows(encode_split(tokenizer, held_out), 30)
    rng = np.random.default_rng(0)
    scores, base = ({d: (rng.random(len(r)), rng.integers(9, 30, len(r))) for d, r in rows.items()} for _ in range(2))
    found = contamination(corpus, rows, scores, base, pieces)
    for domain, texts in held_out.items():
        all_windows = [window for text in texts for window in windows(text.encode())]
        assert found[domain]["windows"] == np.mean([window in seen for window in all_windows])
        repeated = []
        for row in rows[domain]:
            half, text = (b"".join(pieces[t] or END_OF_TEXT.encode() for t in part) for part in (row[:15], row))
            reaching = [w for i, w in enumerate(windows(text)) if i + WINDOW > len(half)]
            repeated.append(any(window in seen for window in reaching))
        clean = ~np.array(repeated)
        (bits, size), (base_bits, _) = scores[domain], base[domain]
        assert 0 < sum(repeated) < len(repeated)
        assert found[domain] | {"windows": 0} == {
            "windows": 0, "rows": len(repeated), "repeated_rows": sum(repeated),
            "repeated_bits_per_byte": pytest.approx(bits[~clean].sum() / size[~clean].sum()),
            "clean_bits_per_byte": pytest.approx(bits[clean].sum() / size[clean].sum()),
            "clean_below_baseline": pytest.approx(1 - bits[clean].sum() / base_bits[clean].sum()),
        }  # fmt: skip


@pytest.mark.parametrize("half", [40, 60])
def test_a_row_is_repeated_from_the_first_seen_window_that_ends_in_its_second_half(half):
    """One window of training text, in every place of a row of random bytes; each token is a byte, 256 ends a text."""
    seen = LONG.encode()[-WINDOW:]
    rng, width = np.random.default_rng(0), 2 * half + 1
    rows = rng.integers(128, 256, (width - WINDOW + 2, width))
    for at, row in enumerate(rows[:-1]):
        row[at : at + WINDOW] = list(seen)
    rows[-1, -WINDOW:] = [*seen[:-1], 256]  # the end of the text instead of the line break is no repetition
    scores = {"a": (rng.random(len(rows)), np.ones(len(rows)))}
    corpus = Corpus({"a": [LONG]}, {"a": ["short"]}, {"a": 1})
    found = contamination(corpus, {"a": rows}, scores, scores, [*(bytes([i]) for i in range(256)), b""])["a"]
    repeated = np.array([at + WINDOW > half for at in range(len(rows) - 1)] + [False])
    assert (found["rows"], found["repeated_rows"]) == (len(rows), repeated.sum())
    assert found["repeated_bits_per_byte"] == pytest.approx(scores["a"][0][repeated].mean())


def test_without_repeated_rows_or_without_others_there_is_no_score_of_them():
    tokenizer = Tokenizer.train([LONG], 300)
    for held_out, of in ((["new text"], "repeated"), ([LONG], "clean")):
        one = Corpus({"a": [LONG]}, {"a": held_out}, {"a": 1})
        rows = validation_rows(encode_split(tokenizer, one.validation), 99)
        scores = {"a": (np.array([3.0]), np.array([2]))}
        found = contamination(one, rows, scores, scores, tokenizer.token_bytes())["a"]
        assert found["windows"] == (of == "clean"), "a text of fewer than 50 bytes has no window"
        assert found[f"{of}_bits_per_byte"] is None
        assert (found["clean_below_baseline"] is None) == (of == "clean")
