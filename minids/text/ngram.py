"""The baseline to beat: a byte 5-gram with interpolated Witten-Bell smoothing.

It predicts a byte from the four before it by counting. The rarer a context is, the more weight the
next shorter one gets, down to the uniform distribution (Witten & Bell 1991):

    P_n(x | h) = (count(h, x) + kinds(h) · P_{n-1}(x | shorter h)) / (count(h) + kinds(h))

kinds(h) is the number of different bytes that followed h. A transformer that does not clearly beat this has
learned little more than letter statistics.

Symbols are bytes 0-255, and 256 for the end of a text.
"""

from collections.abc import Iterable, Iterator

import numpy as np

END = 256
BASE = END + 1
ORDER = 5
AT_A_TIME = 1 << 22  # symbols counted at a time, so that memory grows with the different 5-grams, not with the text


class ByteNGram:
    """Counts of all 1- to 5-grams of a symbol stream: a 1-D integer array, or consecutive ones."""

    def __init__(self, symbols: np.ndarray | Iterable[np.ndarray]):
        self.tables = [(np.zeros(0, dtype=np.int64),) * 2] * ORDER
        before = np.zeros(0, dtype=np.int64)
        for part in _parts([symbols] if isinstance(symbols, np.ndarray) else symbols):
            for n in range(1, ORDER + 1):
                overlap = before[max(0, len(before) - n + 1) :]  # grams that began in the part before
                self.tables[n - 1] = _add(self.tables[n - 1], _grams(np.concatenate([overlap, part]), n))
            before = np.concatenate([before, part])[-ORDER:]

    def bits(self, symbols: np.ndarray) -> np.ndarray:
        """Return -log2 P of each symbol given those before it, shape of `symbols`, float64.

        The first symbols have shorter contexts.
        """
        probability = np.full(len(symbols), 1 / BASE)
        for n, (grams, counts) in enumerate(self.tables, start=1):
            seen = _grams(symbols, n)
            context_counts, kinds = self._contexts(n, seen // BASE)
            count = _look_up(grams, counts, seen)
            where = slice(n - 1, None)
            total = context_counts + kinds
            known = total > 0  # an unseen context changes nothing
            shorter = probability[where]
            probability[where] = np.where(known, (count + kinds * shorter) / np.maximum(total, 1), shorter)
        return -np.log2(probability)

    def _contexts(self, n: int, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return count(h) and kinds(h) for each context h of n - 1 symbols."""
        grams, counts = self.tables[n - 1]
        prefixes, first, kinds = np.unique(grams // BASE, return_index=True, return_counts=True)
        totals = np.add.reduceat(counts, first)
        return _look_up(prefixes, totals, contexts), _look_up(prefixes, kinds, contexts)


def _grams(symbols: np.ndarray, n: int) -> np.ndarray:
    """Each window of n symbols as one number, in base 257; 257^5 fits easily into 64 bits."""
    symbols = symbols.astype(np.int64)
    windows = max(0, len(symbols) - n + 1)
    grams = np.zeros(windows, dtype=np.int64)
    for i in range(n):
        grams = grams * BASE + symbols[i : i + windows]
    return grams


def _parts(arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the stream again, in parts of fewer than 2 · AT_A_TIME symbols."""
    waiting, size = [], 0
    for array in arrays:
        for start in range(0, len(array), AT_A_TIME):
            waiting.append(array[start : start + AT_A_TIME])
            size += len(waiting[-1])
            if size >= AT_A_TIME:
                yield np.concatenate(waiting)
                waiting, size = [], 0
    if waiting:
        yield np.concatenate(waiting)


def _add(table: tuple[np.ndarray, np.ndarray], grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the table with these grams added: the different grams, sorted, and their counts."""
    kinds, counts = np.unique(grams, return_counts=True)
    seen_before = _look_up(*table, kinds)
    place, new = np.searchsorted(table[0], kinds), seen_before == 0
    table[1][place[~new]] += counts[~new]
    return tuple(np.insert(old, place[new], found[new]) for old, found in zip(table, (kinds, counts), strict=True))


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values[key] for each wanted key, 0 where it is absent; `keys` are sorted."""
    if len(keys) == 0:
        return np.zeros(len(wanted), dtype=np.int64)
    index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[index] == wanted, values[index], 0)
