"""Hugging Face's `tokenizers`, which learns and applies the merges, wrapped so that it is safe to use.

It learns in one call that cannot be interrupted. A malformed tokenizer.json can make it panic or exhaust memory, in
ways that no except clause catches. So the backend never parses a file: everything in a tokenizer.json of minids follows
from its merges, so the tokenizer is rebuilt from them and compared with the file.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from minids.validation import quoted

END_OF_TEXT = "<|end_of_text|>"
MOST_TOKENS = 1 << 16  # an id has 16 bits
LONGEST_TOKEN = 128  # bytes of a merged token, at most
LARGEST_FILE = 40 << 20  # bytes: more than so many tokens of that length need


def learn(texts: Iterator[str], vocab_size: int) -> Backend:
    """Return a backend with merges learned from the texts."""
    backend = _plain({}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=byte_symbols(), show_progress=False,
        max_token_length=LONGEST_TOKEN,
    )  # fmt: skip
    _train(backend, trainer, texts)
    return _with_end_of_text(backend)


def rebuild(content: dict[str, Any], path: Path) -> Backend:
    """Return the backend that a tokenizer.json describes. Raises ValueError unless `learn` could have made it."""
    try:
        backend = _with_end_of_text(_plain(*_vocabulary_and_merges(content["model"])))
    except (LookupError, TypeError, ValueError, AttributeError):
        raise ValueError(
            f"{path} is not a tokenizer of minids: its vocabulary must be {END_OF_TEXT}, the 256 bytes and the "
            f"merged tokens, at most {MOST_TOKENS:,} tokens."
        ) from None
    expected = json.loads(backend.to_str())
    for key in sorted(content.keys() | expected.keys()):
        if content.get(key) != expected.get(key):
            raise ValueError(f"{path} is not a tokenizer of minids: {quoted(key)} is not as minids writes it.")
    return backend


def _plain(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Backend:
    backend = Backend(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _with_end_of_text(backend: Backend) -> Backend:
    backend.add_special_tokens([END_OF_TEXT])
    backend.encode_special_tokens = True  # a special token in the text is text
    # Other programs that read tokenizer.json then begin a prompt with end-of-text, as `minids generate` does.
    backend.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, backend.token_to_id(END_OF_TEXT))]
    )
    return backend


def _train(backend: Backend, trainer: trainers.BpeTrainer, texts: Iterator[str]) -> None:
    """Train the backend in a thread of its own, because it may take a minute and cannot be interrupted."""
    result, stopped, fed = Future(), threading.Event(), threading.Event()

    def feed() -> Iterator[str]:
        try:
            for text in texts:
                if stopped.is_set():
                    break
                yield text
        finally:
            fed.set()

    def work() -> None:
        try:
            result.set_result(backend.train_from_iterator(feed(), trainer))
        except BaseException as error:
            result.set_exception(error)
        finally:
            fed.set()

    thread = threading.Thread(target=work, daemon=True)
    try:
        thread.start()
        while thread.is_alive():
            thread.join(0.1)  # in short waits: a signal that the other thread receives does not end a wait
    except KeyboardInterrupt:
        stopped.set()
        fed.wait()  # from then on the thread does not call Python, so the interpreter may exit before it ends
        raise
    result.result()


def _vocabulary_and_merges(model: dict[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the vocabulary and merges of a tokenizer.json; some exception if the merges do not give the vocabulary."""
    found, merges = model["vocab"], [(left, right) for left, right in model["merges"]]
    vocabulary = {symbol: index for index, symbol in enumerate([END_OF_TEXT, *sorted(byte_symbols())])}
    for left, right in merges:
        known = left in vocabulary and right in vocabulary and END_OF_TEXT not in (left, right, left + right)
        if not known or found[left + right] != vocabulary.setdefault(left + right, len(vocabulary)):
            raise ValueError
    if len(vocabulary) > MOST_TOKENS:
        raise ValueError
    return vocabulary, merges


def byte_symbols() -> list[str]:
    """Return the printable character by which byte-level BPE writes each byte (GPT-2's table), by byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
