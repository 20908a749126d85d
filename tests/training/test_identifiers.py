"""Names that a model writes: against a model whose answers are known, asked one token at a time."""

import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from minids.text.batches import pack
from minids.text.identifiers import Followers, names
from minids.text.tokenizer import Tokenizer
from minids.training.identifiers import Answer, identifier_answers, identifier_shares
from minids.training.intervals import share_interval, wilson_interval

TEXTS = [
    "class größe_2(Base):  # größe_2\n    x = r'raw' + größe_2\n    y1 = 1e5 + x\n    return self.größe[y1](x)\n",
    "def f(self):\n    return self.args + f(self, x1)\n" * 3,
    "x = self.other\nfoo = foo_bar\nfoobar = foo",
]

PART = rb"[\w\x80-\xff]"  # of a name


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS * 3, 330)


class Bigram(nn.Module):
    """Stands for a model: after each token comes the one that last followed it; after every n-th, another.

    Its vocabulary is larger than the tokenizer's, and the other token may be one that the tokenizer does not have.
    """

    def __init__(self, stream: np.ndarray, every: int = 10**6, other: int = 70):
        super().__init__()
        self.embed_tokens = nn.Embedding(1, 1)
        self.next_token = torch.zeros(1000, dtype=torch.long)
        self.next_token[stream[:-1].astype(int)] = torch.from_numpy(stream[1:].astype(int))
        self.next_token[::every] = other

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return nn.functional.one_hot(self.next_token[tokens_BT], len(self.next_token)).float()


@pytest.mark.parametrize(("every", "other"), [(5, 70), (5, 999), (7, 70), (10**6, 70)])
@pytest.mark.parametrize("context", [1, 9])
def test_a_name_is_written_where_greedy_decoding_writes_it_and_ends_it(tokenizer, every, other, context):
    stream = tokenizer.encode_documents(TEXTS)
    rows, model = pack(stream, 40), Bigram(stream, every, other)
    pieces = [piece or b"\n" for piece in tokenizer.token_bytes()]
    expected = []
    for i, row in enumerate(rows.tolist()):
        text, ends = b"".join(pieces[t] for t in row), np.cumsum([len(pieces[t]) for t in row]).tolist()
        for name in names(text):
            name_end = name.start + len(name.text)
            first, last = (next(t for t, end in enumerate(ends) if end > at) for at in (name.start, name_end - 1))
            if first < context or name_end == len(text):
                continue
            written, asked = b"", row[:first]
            while len(written) < len(text):
                asked = [*asked, model(torch.tensor([asked]))[0, -1].argmax().item()]
                written += pieces[asked[-1]] if asked[-1] < len(pieces) else b"\n"
            wanted = text[ends[first - 1] : ends[last]]  # with what the tokens hold beside the name
            goes_on = wanted.endswith(name.text) and re.match(PART, written[len(wanted) :])
            above = re.search(b"(?<!%s)%s(?!%s)" % (PART, name.text, PART), text[: name.start])
            expected.append((i, name.text.decode(), bool(above), written.startswith(wanted) and not goes_on))
    found = identifier_answers(model, rows, tokenizer.token_bytes(), Followers([]), context)
    assert [(a.row, a.name, a.above, a.model) for a in found] == expected
    assert {right for *_, right in expected} == {above for *_, above, _ in expected} == {True, False}


def test_a_name_occurs_above_as_a_whole_word_in_the_same_row_also_in_a_comment(tokenizer):
    texts = ["# note it\nnot_it = it + no\n", "no = it\n"]
    rows = [[tokenizer.end_of_text, *tokenizer.encode(text)] for text in texts]
    width = max(map(len, rows))
    padded = np.array([row + [tokenizer.end_of_text] * (width - len(row)) for row in rows])
    model = Bigram(padded.flatten())
    found = identifier_answers(model, padded, tokenizer.token_bytes(), Followers([b"no"]))
    assert [(a.row, a.name, a.above, a.rule) for a in found] == [
        (0, "not_it", False, False), (0, "it", True, False), (0, "no", False, True),
        (1, "no", False, True), (1, "it", False, False),
    ]  # fmt: skip


def test_shares_are_counted_apart_for_names_above_and_new_ones():
    answers = [Answer(row, "x", above=row < 3, model=row % 2 == 0, rule=row == 1) for row in (0, 0, 1, 2, 5)]
    shares = identifier_shares(answers, rows=8)
    right, asked = np.array([2, 0, 1, 0, 0, 0, 0, 0]), np.array([2, 1, 1, 0, 0, 0, 0, 0])
    interval = share_interval(right, asked)
    assert shares["above"] == {"asked": 4, "model": 3 / 4, "interval": interval, "rule": 1 / 4}
    assert shares["new"] == {"asked": 1, "model": 0, "interval": wilson_interval(0, 1), "rule": 0}
    empty = identifier_shares([], rows=2)["new"]
    assert empty == {"asked": 0, "model": None, "interval": None, "rule": None}
