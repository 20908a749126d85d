"""Identifiers: the names in a piece of Python, and a rule that guesses them by counting.

A row of tokens is a piece of a program, which no parser can read. A regular expression skips comments and strings of
one line; words in longer strings count as names. Python's keywords do not count.

The rule writes the name that last followed the same word and the same signs above: after `self.` it writes `args` if
the last `self.` was followed by `args`. If they do not occur above, it writes what most often followed them in the
training code, or else the commonest name of that code.
"""

import keyword
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

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
