"""The KV cache of one attention layer: one row per position, stored once and read by every later decoding step.

In MHA, GQA and MQA a row holds the rotated key and the value of each key-value head (attention.py), in MLA one latent
and one rotated key (mla.py).
"""

from torch import Tensor


class Cache:
    """A buffer (batch, max_length, width) whose first `length` rows are in use. Lowering `length` drops rows."""

    def __init__(self, batch_size: int, max_length: int, width: int, like: Tensor):
        """Allocate an empty cache with the dtype and device of `like`."""
        self.buffer = like.new_zeros(batch_size, max_length, width)
        self.length = 0

    def append(self, rows_BTW: Tensor) -> Tensor:
        """Append the rows of new positions and return all rows, (B, length, W).

        Raises ValueError if they do not fit, and leaves the cache unchanged.
        """
        if rows_BTW.shape[0] != self.buffer.shape[0]:
            raise ValueError(f"{rows_BTW.shape[0]} sequences do not fit: the cache is for {self.buffer.shape[0]}.")
        end = self.length + rows_BTW.shape[1]
        if end > self.buffer.shape[1]:
            raise ValueError(f"{end} positions do not fit: the cache has room for {self.buffer.shape[1]}.")
        self.buffer[:, self.length : end] = rows_BTW
        self.length = end
        rows_BSW = self.buffer[:, :end]
        # Autograd may save the returned tensor, and the next call writes into the same buffer.
        return rows_BSW.clone() if rows_BSW.requires_grad else rows_BSW
