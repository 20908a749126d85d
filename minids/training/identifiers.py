"""Identifiers in held-out code: does the model write the name that a programmer wrote?

Bits per byte are a mean over everything, and much of a program is easy: spaces, brackets, `return`. Names carry the
meaning. Some occur **above** in the same text and can be copied from there, which induction heads do. Others are
**new**, and the model can know them only from training, such as `ValueError` after `raise`.

The measure is a cloze test: given the true text before a name, does greedy decoding write exactly this name? As with
arithmetic (evaluate.py), it does if and only if each token of the name is the likeliest one given the right tokens
before, so a single pass over the true text decides all names. In addition, the name must end where it ends: the
likeliest next token must not continue it.

The comparison is a rule that only counts. It writes the name that last followed the same word and the same signs
above: after `self.` it writes `args` if the last `self.` was followed by `args`. If they do not occur above, it writes
what most often followed them in the training code, or else the commonest name of that code.

A row is a piece of a program, which no parser can read. A regular expression skips comments and strings of one line;
words in longer strings count as names. Python's keywords do not count.
"""

import keyword
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from minids.model.deepseek import DeepSeek
from minids.training.evaluate import batches_of
from minids.training.intervals import share_interval

WORD = rb"(?<![\w\x80-\xff])[A-Za-z_\x80-\xff][\w\x80-\xff]*"  # in bytes; those above \x7f are parts of letters
STRINGS = rb"""(?:\b[rbfuRBFU]{1,2})?(?:"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')"""
CODE = re.compile(rb"#[^\n]*|" + STRINGS + rb"|(?P<word>" + WORD + rb")")
KEYWORDS = {word.encode() for word in keyword.kwlist}


@dataclass(frozen=True)
class Name:
    """A name in a row's text. `before` is the word before it and what stands between, as bytes: b"self."."""

    text: bytes
    start: int
    before: bytes


@dataclass(frozen=True)
class Answer:
    """What became of one name: the `row` it is in, whether it occurs `above`, and who wrote it exactly."""

    row: int
    name: str
    above: bool
    model: bool
    rule: bool


class Followers:
    """What followed each word with its signs in the training code, and how often."""

    def __init__(self, texts: Iterable[bytes]):
        counts: dict[bytes, Counter[bytes]] = defaultdict(Counter)
        everywhere: Counter[bytes] = Counter()
        for text in texts:
            for name in names(text):
                counts[name.before][name.text] += 1
                everywhere[name.text] += 1
        self.commonest = _commonest(everywhere)
        self.after = {before: _commonest(counter) for before, counter in counts.items()}

    def guesses(self, found: list[Name]) -> Iterator[bytes]:
        """Yield the rule's guess of each name of a text, from the names before it."""
        last: dict[bytes, bytes] = {}
        for name in found:
            yield last.get(name.before) or self.after.get(name.before, self.commonest)
            last[name.before] = name.text


def _commonest(counter: Counter[bytes]) -> bytes:
    """Return the commonest text, of equally common ones the first in the alphabet; b"" if there is none."""
    return min(counter, key=lambda text: (-counter[text], text), default=b"")


def names(text: bytes) -> list[Name]:
    """Return all names of a piece of Python, in order, without keywords and without words in comments and strings."""
    found, word_before = [], 0
    for match in CODE.finditer(text):
        if match["word"] is None:
            continue
        if match["word"] not in KEYWORDS:
            found.append(Name(match["word"], match.start(), text[word_before : match.start()]))
        word_before = match.start()
    return found


def row_text(row: np.ndarray, token_bytes: list[bytes]) -> tuple[bytes, np.ndarray]:
    """Return the text of a row, and where each token begins in it, with the text's length as one more entry.

    End of text becomes a line break, which belongs to no token of a name.
    """
    pieces = [token_bytes[token] or b"\n" for token in row]
    return b"".join(pieces), np.cumsum([0, *map(len, pieces)])


@torch.no_grad()
def identifier_answers(
    model: DeepSeek, rows: np.ndarray, token_bytes: list[bytes], followers: Followers, context: int = 1
) -> list[Answer]:
    """Return an answer for each name in rows of code (B, T + 1), in order.

    Asked are the names whose first token is not among the first `context` ones. A token may hold more than the name:
    the space or a sign before it, which the model must then write, too. A name at the very end of a row is left out,
    because its end is not known.
    """
    model.eval()
    answers = []
    continues = {token for token, piece in enumerate(token_bytes) if re.match(rb"[\w\x80-\xff]", piece)}
    choices_BT = np.concatenate(
        [model(tokens[:, :-1]).argmax(dim=-1).cpu().numpy() for tokens in batches_of(rows, model)]
    )
    for i, (row, choices) in enumerate(zip(rows, choices_BT, strict=True)):
        text, starts = row_text(row, token_bytes)
        right = choices == row[1:]  # right[t] is about token t + 1
        first_seen: dict[bytes, int] = {}
        for match in re.finditer(WORD, text):
            first_seen.setdefault(match.group(), match.start())
        found = names(text)
        for name, guess in zip(found, followers.guesses(found), strict=True):
            end = name.start + len(name.text)
            first, last = np.searchsorted(starts, [name.start, end - 1], side="right") - 1  # its first and last token
            if first < context or end == len(text):
                continue
            # The last token may reach beyond the name; if it does not, the next choice must not continue the name.
            stops = starts[last + 1] > end or choices[last] not in continues
            answers.append(
                Answer(
                    i, name.text.decode(errors="replace"), first_seen[name.text] < name.start,
                    bool(right[first - 1 : last].all() and stops), guess == name.text,
                )
            )  # fmt: skip
    return answers


def identifier_shares(answers: list[Answer], rows: int) -> dict[str, dict]:
    """Return the shares written exactly, for names that occur `above` and for `new` ones, from answers in so many rows.

    For each: how many were `asked`, the share of the `model` with its 95% `interval`, and the share of the `rule`. If
    none was asked, the three are None.
    """
    shares = {}
    for kind in ("above", "new"):
        of_kind = [answer for answer in answers if answer.above == (kind == "above")]
        places, right = ([a.row for a in of_kind], [a.model for a in of_kind])
        asked_B, right_B = (np.bincount(places, weights, minlength=rows) for weights in (None, right))
        n = len(of_kind)
        shares[kind] = {
            "asked": n,
            "model": sum(right) / n if n else None,
            "interval": share_interval(right_B, asked_B),
            "rule": sum(a.rule for a in of_kind) / n if n else None,
        }
    return shares
