"""Byte-level byte-pair encoding: any text in, a short sequence of token ids out, the same text back.

The 256 bytes are the first tokens, so any text can be encoded. Training then merges the pair of neighbours
that occurs most often, again and again, until the vocabulary is full. DeepSeek-V3 has 128K such tokens, the
miniature 2,048. Here every digit is a token of its own (127 is 1, 2, 7), so that a model can learn to
calculate; V3's tokens have up to three digits.

One id stands for no text: `end_of_text` (0) separates documents. Text that spells "<|end_of_text|>" is encoded
as the characters it consists of, so it cannot be mistaken for the end of a document.

The merges are learned and applied by Hugging Face's `tokenizers`, whose JSON file the released
models use too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from minids.validation import require

END_OF_TEXT = "<|end_of_text|>"


class Tokenizer:
    """Text to ids and back; `decode(encode(text)) == text` for every text without lone surrogates.

    `Tokenizer.train` learns one, `Tokenizer.load` reads one.
    """

    def __init__(self, backend: Backend):
        backend.encode_special_tokens = True  # a special token in the text is text
        self._backend = backend
        self.end_of_text: int = backend.token_to_id(END_OF_TEXT)
        self.vocab_size: int = backend.get_vocab_size()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn merges from `texts` until there are `vocab_size` tokens, or no pair of neighbours is left to merge.

        Raises ValueError for a vocabulary that is too small for the bytes and the end-of-text token, or too large for
        16-bit ids.
        """
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        allowed = "257 (256 bytes and end-of-text) to 65536 (the ids have 16 bits)"
        require("vocab_size", vocab_size, len(alphabet) + 1 <= vocab_size <= 1 << 16, allowed)
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
        )
        backend.train_from_iterator(texts, trainer)
        # Other programs that read tokenizer.json begin a prompt as `minids generate` does.
        backend.post_processor = processors.TemplateProcessing(
            single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, backend.token_to_id(END_OF_TEXT))]
        )
        return cls(backend)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer.json, or the one in a folder. Raises ValueError if there is none, or one of another kind."""
        path = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
        if not path.is_file():
            raise ValueError(f"{path} does not exist: a tokenizer.json is needed there.")
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # the backend raises nothing narrower
            raise ValueError(f"{path} is not a readable tokenizer.json: {error}.") from None
        if backend.token_to_id(END_OF_TEXT) is None:
            raise ValueError(f"{path} is not a tokenizer of minids: it must have the token {END_OF_TEXT}.")
        return cls(backend)

    def to_json(self) -> str:
        """Return the content of a tokenizer.json."""
        return self._backend.to_str(pretty=True)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without any special token. Raises ValueError if it has a lone surrogate."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text has a lone surrogate at character {error.start}: give valid UTF-8.") from None
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        """Return all documents as one stream of uint16 ids, end_of_text before each of them and after the last."""
        end = np.array([self.end_of_text], dtype=np.uint16)
        parts = [end]
        for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False):
            parts += [np.array(encoding.ids, dtype=np.uint16), end]
        return np.concatenate(parts)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text. Bytes that form no character, such as a part of one, become U+FFFD."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def token_bytes(self) -> list[bytes]:
        """Return the bytes that each id stands for, by id. Those of end_of_text are empty."""
        byte_of = {symbol: byte for byte, symbol in enumerate(_byte_symbols())}
        vocabulary = sorted(self._backend.get_vocab().items(), key=lambda item: item[1])
        return [
            b"" if index == self.end_of_text else bytes(byte_of[symbol] for symbol in token)
            for token, index in vocabulary
        ]


def _byte_symbols() -> list[str]:
    """The printable character by which byte-level BPE writes each byte (GPT-2's table), by byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
