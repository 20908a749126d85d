"""Names in code: against Python's own tokenizer, and a model whose answers are known, asked one token at a time."""

import io
import keyword
import re
import tokenize

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from minids.text.batches import pack
from minids.text.tokenizer import Tokenizer
from minids.training.identifiers import Answer, Followers, identifier_answers, identifier_shares, names
from minids.training.intervals import share_interval, wilson_interval

CODE = """
class größe_2(Base):  # a comment with words, "and" quotes
    x = r'raw \\'string' + f"{hidden}" + 'it is' ; y1 = 1e5 + 0xFF + 1_000j

    def __init__(self, _args=None, *rest):
        self._args, self.args2 = _args, not rest
        return self.args2[y1](lambda a_b: a_b if None else x)
"""
TEXTS = [CODE, "def f(self):\n    return self.args + f(self, x1)\n" * 3, "x = self.other\nfoo = foo_bar\nfoobar = foo"]

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


def test_names_are_those_of_python_s_tokenizer():
    tokens = tokenize.generate_tokens(io.StringIO(CODE).readline)
    expected = [t.string for t in tokens if t.type == tokenize.NAME and not keyword.iskeyword(t.string)]
    if "hidden" in expected:  # Python 3.12 and newer look into f-strings
        expected.remove("hidden")
    found = names(CODE.encode())
    assert [name.text.decode() for name in found] == expected
    for name in found:
        assert CODE.encode()[name.start :].startswith(name.text)
        assert CODE.encode()[: name.start].endswith(name.before)


def test_the_rule_writes_what_followed_above_or_else_in_training_or_else_the_commonest():
    followers = Followers([b"for i in a: b.c", b"b.d; b.d; for k in b", b"import b"])
    text = b"b.x; b.y; b.x; for j in z: import q; for i in z"
    guesses = dict(zip([(name.start, name.text) for name in names(text)], followers.guesses(names(text)), strict=True))
    assert [guess for (_, name), guess in guesses.items() if name in (b"x", b"y")] == [b"d", b"x", b"y"]
    assert [guess for (_, name), guess in guesses.items() if name in (b"j", b"i")] == [b"i", b"j"], "i before k"
    assert [guess for (_, name), guess in guesses.items() if name == b"q"] == [b"b"]
    assert list(Followers([b"b b c"]).guesses(names(b"q"))) == [b"b"]
    assert list(Followers([]).guesses(names(b"q"))) == [b""], "of no code there is no guess"


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
