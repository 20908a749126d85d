"""Cuts long text into pieces, so that the tokenizer's memory and time are proportional to the text.

The tokenizer's backend first cuts a text into words: letters with the space before them, punctuation with the space
before it, a digit, white space. No token spans two words, so cutting a text between words does not change its tokens.
Pieces are needed because the backend uses more than a hundred bytes of memory for each byte of a text, and cannot be
interrupted while it processes one.

A very long word, such as a genome, must be cut, too: the time to learn from a word grows with the square of its length.
So every word of more than LONGEST_WORD characters is cut. This changes the tokens of such a word a little and those of
ordinary text not at all: the longest word of the book's corpus has 148 characters.
"""

import re
from collections.abc import Iterable, Iterator

LONGEST_WORD = 256
PIECE = 1 << 16  # characters

# Character classes, as the backend's rule for words has them.
SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
LETTER, SIGN = r"[^\W\d_]", rf"(?:[^\w{SPACE}]|_)"
END_OF_WORD = re.compile(f"[^{SPACE}](?=[{SPACE}])")
# What may hold a very long word: a long run without white space and the character before it; or a long run of white
# space without its last character, which belongs to the next word.
MANY = f"[^{SPACE}]{{{LONGEST_WORD + 1},}}"
LONG = re.compile(rf"[{SPACE}](?:{MANY}|[{SPACE}]{{{LONGEST_WORD},}}(?=[{SPACE}]))|\A{MANY}")
# A piece of it: up to the last end of a word within LONGEST_WORD characters, else inside a word; 's etc. are words.
SHORT = re.compile(
    rf"(?s).{{0,{LONGEST_WORD - 1}}}(?:\d|{LETTER}(?={SIGN})|(?!'){SIGN}(?={LETTER}))|.{{1,{LONGEST_WORD}}}"
)


def pieces(text: str) -> Iterator[str]:
    """Yield the text in pieces of about 64 K characters at most, cut between words and inside very long ones."""
    start = 0
    for long in LONG.finditer(text):
        yield from _ordinary(text, start, long.start())
        yield from (short[0] for short in SHORT.finditer(text, *long.span()))
        start = long.end()
    yield from _ordinary(text, start, len(text))


def sample(texts: Iterable[str], share: float) -> Iterator[str]:
    """Yield pieces that make up this share of the texts, evenly spread; all pieces for a share of 1 or more."""
    read = taken = 0
    for text in texts:
        for piece in pieces(text):
            read += len(piece)
            if taken < share * read:
                taken += len(piece)
                yield piece


def _ordinary(text: str, start: int, stop: int) -> Iterator[str]:
    """Yield the pieces of a part of the text in which no word is very long."""
    while stop - start > PIECE and (word := END_OF_WORD.search(text, start + PIECE, stop)):
        yield text[start : word.end()]
        start = word.end()
    if start < stop:
        yield text[start:stop]
