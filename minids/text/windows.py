"""Contamination: which windows of a held-out text occur in the training text?

A model may have memorised what it was trained on, so held-out text that repeats training text flatters its score. The
measure here is a window of 50 bytes: long enough that two equal ones are rarely a coincidence, and short enough to find
a copied line.

Every window of the held-out text is compared with every window of the training text by its hash, a polynomial in the
window's bytes modulo 2⁶⁴. This is the hash of Rabin and Karp's string search (1987). They compute it as a *rolling
hash*, each window's from that of the window before. Here the hashes of all windows of a text are computed at once by
doubling: a window of 32 bytes is two of 16 side by side, and 50 = 32 + 16 + 2.
"""

from collections.abc import Iterable, Sequence

import numpy as np

WINDOW = 50  # bytes
MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that no byte is lost modulo 2⁶⁴
BITS = 22  # of the filter's table: 4 MB


def repeated_windows(asked: Sequence[bytes], seen: Iterable[bytes], width: int = WINDOW) -> list[np.ndarray]:
    """Return for each asked text which of its windows occur in a seen text, as booleans; window i begins at byte i.

    A text of n bytes has n - width + 1 windows, or none. No window is missed; one in some 10¹² may be found wrongly,
    because another has its hash. Of the seen texts, only one at a time is in memory.
    """
    hashes = [window_hashes(text, width) for text in asked]
    wanted, places = np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *hashes]), return_inverse=True)
    found = np.zeros(len(wanted), dtype=bool)
    shift = np.uint64(64 - BITS)
    # By the hash's first bits, like a Bloom filter with a single hash function: most seen windows need no search.
    may_be_wanted = np.zeros(1 << BITS, dtype=bool)
    may_be_wanted[wanted >> shift] = True
    for text in seen:
        candidates = window_hashes(text, width)
        candidates = candidates[may_be_wanted[candidates >> shift]]
        index = np.searchsorted(wanted, candidates).clip(max=len(wanted) - 1)
        found[index[wanted[index] == candidates]] = True
    return np.split(found[places], np.cumsum([len(part) for part in hashes], dtype=int))[:-1]


def window_hashes(text: bytes, width: int = WINDOW) -> np.ndarray:
    """Return the hash of each window of `width` bytes, uint64; equal windows have equal hashes in every text."""
    count = len(text) - width + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64)
    power = np.frombuffer(text, dtype=np.uint8).astype(np.uint64)  # hashes of windows of 1, 2, 4, … bytes
    hashes, done, size = np.zeros(count, dtype=np.uint64), 0, 1
    while True:
        if width & size:  # the next `size` bytes of the window
            hashes = hashes * _multiplier(size) + power[done : done + count]
            done += size
        if done == width:
            return hashes
        power = power[:-size] * _multiplier(size) + power[size:]
        size *= 2


def _multiplier(size: int) -> np.uint64:
    """What a hash is multiplied by when `size` bytes come after."""
    return np.uint64(pow(MULTIPLIER, size, 1 << 64))
