"""The FP8 format of DeepSeek-V3's released weights: matrices of 8-bit numbers with one scale per block.

The numbers are in E4M3: 1 sign bit, 4 exponent bits, 3 mantissa bits. The largest value is 448, and there is no
infinity. Each block of 128 x 128 numbers is scaled to this range before it is rounded (V3 report §3.3):

    value = round(weight · 448 / amax)          amax: the largest absolute value in the block
    weight ≈ value · scale_inv                  scale_inv = amax / 448

The file holds two tensors for a matrix of shape (rows, columns):

    ….weight              (rows, columns)                         float8_e4m3fn
    ….weight_scale_inv    (⌈rows / 128⌉, ⌈columns / 128⌉)         float32; blocks at the edges may be smaller

and config.json describes the format:

    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], …}

In V3, the matrices of attention and of the feed-forward layers are in FP8; embedding, head, gates and norms have 16 or
32 bits.
"""

from torch import Tensor

from minids.validation import quoted, require, require_whole


def block_size(quantization_config: object) -> tuple[int, int]:
    """Return the rows and columns of a block, from the `quantization_config` of a config.json.

    For None or {} (weights that are not quantised) this is 128 x 128, too. Raises ValueError for other formats.
    """
    entry = quantization_config or {}
    is_fp8 = isinstance(entry, dict) and (entry.get("quant_method"), entry.get("fmt", "e4m3")) == ("fp8", "e4m3")
    if entry and not is_fp8:
        raise ValueError(f"quantization_config {quoted(entry)} is not supported: it must be fp8 in e4m3, or absent.")
    block = entry.get("weight_block_size", [128, 128])
    require("weight_block_size", block, isinstance(block, list) and len(block) == 2, "two whole numbers")
    for number in block:
        require_whole("weight_block_size", number)
    return tuple(block)


def scale_shape(shape: tuple[int, int], block: tuple[int, int] = (128, 128)) -> tuple[int, int]:
    """Return the shape of a matrix's scales: one per block, including smaller blocks at the edges."""
    return tuple(-(-n // b) for n, b in zip(shape, block, strict=True))


def dequantize_blocks(values: Tensor, scale_inv: Tensor, block: tuple[int, int] = (128, 128)) -> Tensor:
    """Return each value times the scale of its block, in float32: (rows, columns), like `values`."""
    rows, columns = values.shape
    scale = scale_inv.float().repeat_interleave(min(block[0], rows), dim=0)[:rows]
    return values.float() * scale.repeat_interleave(min(block[1], columns), dim=1)[:, :columns]
