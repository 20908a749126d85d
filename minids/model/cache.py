"""The KV cache of one attention layer: what decoding keeps of every token, so that no token is computed twice.

Each kind of attention decides what a row of it holds: ordinary attention the rotated key and the value of each
key-value head (attention.py), MLA one latent and one rotated key (mla.py).
"""

from torch import Tensor


class Cache:
    """A buffer (batch, max_length, width) that fills up from the left. Setting `length` back forgets what follows."""

    def __init__(self, batch_size: int, max_length: int, width: int, like: Tensor):
        """Make an empty cache, with the dtype and on the device of `like`."""
        self.buffer = like.new_zeros(batch_size, max_length, width)
        self.length = 0

    def append(self, rows_BTW: Tensor) -> Tensor:
        """Store the rows of new positions and return those of all positions, (B, length, W).

        Raises ValueError when they do not fit; the cache is then as it was.
        """
        if rows_BTW.shape[0] != self.buffer.shape[0]:
            raise ValueError(f"{rows_BTW.shape[0]} sequences do not fit: the cache has {self.buffer.shape[0]}.")
        end = self.length + rows_BTW.shape[1]
        if end > self.buffer.shape[1]:
            raise ValueError(f"{end} positions do not fit: the cache has room for {self.buffer.shape[1]}.")
        self.buffer[:, self.length : end] = rows_BTW
        self.length = end
        rows_BSW = self.buffer[:, :end]
        # Autograd may keep what is returned, and the next rows are written into the same buffer.
        return rows_BSW.clone() if rows_BSW.requires_grad else rows_BSW
