"""The KV cache of one attention layer: one row per position, stored once and read by every later decoding step.

In MHA, GQA and MQA a row holds the rotated key and the value of each key-value head (attention.py), in MLA one latent
and one rotated key (mla.py).
"""

import torch
from torch import Tensor


class Cache:
    """A buffer (batch, max_length, width) whose first `length` rows are in use. Lowering `length` drops rows.

    `length` is a number. Where the sequences of the batch differ in length, it is a tensor (B,).
    """

    def __init__(self, batch_size: int, max_length: int, width: int, like: Tensor):
        """Allocate an empty cache with the dtype and device of `like`."""
        self.buffer = like.new_zeros(batch_size, max_length, width)
        self.length: int | Tensor = 0

    @property
    def empty(self) -> bool:
        return isinstance(self.length, int) and self.length == 0

    @property
    def differing_lengths(self) -> Tensor | None:
        """The lengths (B,) where they differ, otherwise None."""
        return None if isinstance(self.length, int) else self.length

    def append(self, rows_BTW: Tensor) -> Tensor:
        """Append the rows of new positions and return all rows, (B, S, W); S is the length of the longest sequence.

        Raises ValueError if they do not fit, and leaves the cache unchanged.
        """
        B, T = rows_BTW.shape[:2]
        if self.buffer.shape[0] != B:
            raise ValueError(f"{B} sequences do not fit: the cache is for {self.buffer.shape[0]}.")
        end = self.length + T
        longest = end if isinstance(end, int) else int(end.max())
        if longest > self.buffer.shape[1]:
            raise ValueError(f"{longest} positions do not fit: the cache has room for {self.buffer.shape[1]}.")
        write_rows(self.buffer, self.length, rows_BTW)
        self.length = end
        rows_BSW = self.buffer[:, :longest]
        # Autograd may save the returned tensor, and the next call writes into the same buffer.
        return rows_BSW.clone() if rows_BSW.requires_grad else rows_BSW


def read_rows(buffer_BSX: Tensor, start: int | Tensor, count: int) -> Tensor:
    """Return rows start ... start + count - 1 of each sequence, (B, count, ...); `start` is a number or (B,)."""
    if isinstance(start, int):  # much faster than with places
        return buffer_BSX[:, start : start + count]
    return buffer_BSX[_places(start, count)]


def write_rows(buffer_BSX: Tensor, start: int | Tensor, rows_BTX: Tensor) -> None:
    """Write rows start ... start + T - 1 of each sequence; `start` is a number or (B,)."""
    if isinstance(start, int):
        buffer_BSX[:, start : start + rows_BTX.shape[1]] = rows_BTX
    else:
        buffer_BSX[_places(start, rows_BTX.shape[1])] = rows_BTX


def _places(start_B: Tensor, count: int) -> tuple[Tensor, Tensor]:
    device = start_B.device
    return torch.arange(len(start_B), device=device)[:, None], start_B[:, None] + torch.arange(count, device=device)


def common(number_B: Tensor) -> int | Tensor:
    """Return the number that all sequences have in common, which is faster than a tensor, or the tensor itself."""
    first = number_B[0]
    return int(first) if bool((number_B == first).all()) else number_B
