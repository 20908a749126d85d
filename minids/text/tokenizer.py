"""Byte-level byte-pair encoding (BPE): turns any text into a short sequence of token ids, and back into the same text.

The 256 bytes are the first tokens, so any text can be encoded. Training then repeatedly merges the most frequent
pair of neighbours until the vocabulary is full. DeepSeek-V3 has 128K such tokens, the
miniature 2,048. Here every digit is a token of its own (127 is 1, 2, 7), so that a model can learn to
calculate; V3's tokens have up to three digits.

The id `end_of_text` (0) separates documents and stands for no text. Text that spells "<|end_of_text|>" is encoded
as the characters it consists of, so it cannot be mistaken for the end of a document.

If there are more than 16 MB of text, the merges are learned from a sample that is spread evenly over it. Words of more
than 256 characters are cut into parts, for learning and for encoding (`pieces.py`).

The merges are learned and applied by Hugging Face's `tokenizers` (`backend.py`), whose JSON file the released models
use too.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend

from minids.files import read_json
from minids.text.backend import END_OF_TEXT, LARGEST_FILE, MOST_TOKENS, byte_symbols, learn, rebuild
from minids.text.pieces import pieces, sample
from minids.validation import require, require_whole

LEARNED_FROM = 16_000_000  # bytes of text: a little more than the book's corpus has
BATCH = 1_000_000  # characters given to the backend at a time


class Tokenizer:
    """Turns text into ids and back; `decode(encode(text)) == text` for every text without lone surrogates.

    Made by `Tokenizer.train` or `Tokenizer.load`.
    """

    def __init__(self, backend: Backend):
        self._backend = backend
        self.end_of_text: int = backend.token_to_id(END_OF_TEXT)
        self.vocab_size: int = backend.get_vocab_size()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn merges from `texts` until there are `vocab_size` tokens, or no pair of neighbours is left to merge.

        Without any text the tokens are the bytes and end-of-text. Raises ValueError for a vocabulary that is too small
        for these, or too large for 16-bit ids, and for a text with a lone surrogate.
        """
        require_whole("vocab_size", vocab_size, 257, MOST_TOKENS)  # 256 bytes and end-of-text
        texts = list(texts)
        size = sum(_utf8_size(text, f"texts[{i}]") for i, text in enumerate(texts))
        return cls(learn(sample(texts, share=LEARNED_FROM / max(1, size)), vocab_size))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer.json, or the one in a folder.

        Raises ValueError if there is none, or one that `Tokenizer.train` could not have made.
        """
        path = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
        return cls(rebuild(read_json(path, LARGEST_FILE), path))

    def require_fit(self, vocab_size: int) -> None:
        """Raise ValueError if there are more tokens than a model's vocabulary of this size has."""
        if self.vocab_size > vocab_size:
            raise ValueError(f"the tokenizer has {self.vocab_size} tokens: the model has {vocab_size}.")

    def to_json(self) -> str:
        """Return the content of a tokenizer.json."""
        return self._backend.to_str(pretty=True)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without any special token. Raises ValueError if it has a lone surrogate."""
        _utf8_size(text, "the text")
        encodings = (self._backend.encode(piece, add_special_tokens=False) for piece in pieces(text))
        return [index for encoding in encodings for index in encoding.ids]

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        """Return all documents as one stream of uint16 ids, end_of_text before each of them and after the last.

        Raises ValueError if one has a lone surrogate.
        """
        parts = [np.array([self.end_of_text], dtype=np.uint16)]
        for batch in _batches(texts):
            encodings = self._backend.encode_batch_fast(batch, add_special_tokens=False)
            ids = [index for encoding in encodings for index in encoding.ids or [self.end_of_text]]
            parts.append(np.array(ids, dtype=np.uint16))
        return np.concatenate(parts)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text. Bytes that form no character, such as a part of one, become U+FFFD.

        Ids beyond the tokenizer's vocabulary, which a model with a larger one may sample, are ignored. Raises
        ValueError for an id that is not a whole number of at least 0.
        """
        indices = (_index(place, value) for place, value in enumerate(ids))
        return self._backend.decode([i for i in indices if i < self.vocab_size], skip_special_tokens=False)

    def token_bytes(self) -> list[bytes]:
        """Return the bytes that each id stands for, by id. Those of end_of_text are empty."""
        byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        vocabulary = sorted(self._backend.get_vocab().items(), key=lambda item: item[1])
        return [
            b"" if index == self.end_of_text else bytes(byte_of[symbol] for symbol in token)
            for token, index in vocabulary
        ]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the pieces of all texts, with an empty one at the end of each text, in lists for the backend."""
    batch, size = [], 0
    for i, text in enumerate(texts):
        _utf8_size(text, f"texts[{i}]")
        for piece in chain(pieces(text), [""]):
            batch.append(piece)
            size += len(piece)
            if size >= BATCH:
                yield batch
                batch, size = [], 0
    yield batch


def _utf8_size(text: str, name: str) -> int:
    """Return how many bytes the text has in UTF-8. Raises ValueError if it has a lone surrogate."""
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} has a lone surrogate at character {error.start}: give valid UTF-8.") from None


def _index(place: int, value: Any) -> int:
    try:
        index = operator.index(value)
    except TypeError:
        index = -1
    require(f"ids[{place}]", value, index >= 0, "a whole number of at least 0")
    return index
