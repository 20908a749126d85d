"""Tensors in FP8: 8-bit numbers with a scale for each tile (V3 report §3.3.2).

E4M3 holds magnitudes from 2^-9 to 448. Gradients lie far below, and outliers may lie above. So each tile of a matrix is
first divided by a scale of its own, which maps the largest number of the tile, its amax, to 448 (*online* scaling: the
scale is computed from the numbers at hand, not guessed from earlier steps):

    scale = max(amax, 1e-4) / 448
    value = round(x / scale)                in E4M3
    x ≈ value · scale

A tile that holds an outlier loses precision in its small numbers, and no other tile does. The report uses

    1 x 128      tiles for activations and their gradients: a token, 128 channels
    128 x 1      tiles for the same tensors in the product of the weight gradient, whose sum runs over tokens
    128 x 128    blocks for weights: the same block serves W and its transpose

The floor keeps a tile of zeros from dividing by zero. 1e-4 is that of the authors' published code, an inference
kernel and test casts, and fits activations and weights. Gradients are smaller: under the mean loss of a thousand
tokens nearly all of their tiles are below 1e-4, would get the same scale, and would underflow with more tokens. So
`floor` is an argument.

Scales may be rounded up to powers of two (V3.1, UE8M0): then a division by the scale is exact, at the cost of up to one
bit of the range.

**Released files** hold two tensors for a matrix of shape (rows, columns):

    ….weight              (rows, columns)                         float8_e4m3fn
    ….weight_scale_inv    (⌈rows / 128⌉, ⌈columns / 128⌉)         float32; blocks at the edges may be smaller

The second is `scales` here: numbers to multiply by. ("inv" is from the point of view of who divided.) config.json
describes the format, and nothing else does. 2 rows of scales over 130 rows of weights are blocks of 128 rows and of 2,
not two blocks of 65:

    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], …}

Values and scales are bit-equal to those of DeepGEMM's casts, which multiply by 1 / scale. V3's inference kernel
divides by the scale, TileKernels multiplies by 448 / amax: with scales of 32 bits a rare number near the middle of two
codes falls on the other side. With powers of two all three are equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minids.quantization.formats import E4M3, Format, power_of_two_above, round_to
from minids.validation import quoted, require, require_whole

AMAX_FLOOR = 1e-4
Tile = tuple[int, int]


@dataclass(frozen=True)
class Quantized:
    """A matrix, or a stack of them, in FP8: `values` (..., rows, columns) and `scales`, one for each tile.

    Tiles at the lower and right edge may be smaller. Each matrix of a stack has tiles of its own. Raises ValueError for
    scales that are not one for each tile of a matrix.
    """

    values: Tensor
    scales: Tensor
    tile: Tile

    def __post_init__(self):
        given, grid = tuple(self.scales.shape[-2:]), scale_shape(self.values.shape[-2:], self.tile)
        require("shape of the scales", given, given == grid, f"{grid}, one for each tile of {self.tile}")

    @property
    def mT(self) -> Quantized:
        """The transposed matrices: values, scales and tile."""
        return Quantized(self.values.mT, self.scales.mT, self.tile[::-1])


def quantize(
    x: Tensor, tile: Tile | None, *, power_of_two_scales: bool = False, format: Format = E4M3, floor: float = AMAX_FLOOR
) -> Quantized:
    """Return x (..., rows, columns) in tiles of rows x columns; None makes one tile of each whole matrix.

    Each number is rounded to the nearest value, ties to even. A NaN or an infinity makes its whole tile NaN. An amax
    below `floor` counts as `floor`. Raises ValueError for a tile that is not two whole numbers of at least 1, for a
    tensor without rows and columns, and for what is no `Format`.
    """
    require("dimensions of a tensor to quantise", x.ndim, x.ndim >= 2, "at least 2")
    require("format", format, isinstance(format, Format), "a Format (formats.py), such as E4M3")
    require_tile("tile", tile)
    tile = tuple(max(1, n) for n in x.shape[-2:]) if tile is None else tile
    tiles = _in_tiles(x, tile)
    over = dict(dim=(-3, -1), keepdim=True)
    amax = torch.maximum(tiles.amax(**over), -tiles.amin(**over)).float()  # without a copy of all absolute values
    scales = amax.clamp(min=floor) / format.largest
    if power_of_two_scales:
        scales = power_of_two_above(scales)
    values = tiles * (1 / scales)
    if format.bits != 8:  # torch casts to neither 12 bits nor 4
        values = round_to(values, format)
    return Quantized(_whole(values.to(format.dtype), x.shape), scales.squeeze((-3, -1)), tile)


def require_tile(name: str, tile: Tile | None) -> None:
    """Raise ValueError for a tile that is not two whole numbers of at least 1, or None."""
    require(name, tile, tile is None or (isinstance(tile, tuple) and len(tile) == 2), "two whole numbers, or None")
    for n in tile or ():
        require_whole(name, n)


def dequantize(x: Quantized) -> Tensor:
    """Return each value times the scale of its tile, in float32: (..., rows, columns)."""
    numbers, scales = _in_float32(x.values, x.scales.float())
    return _whole(_in_tiles(numbers, x.tile).mul_(scales[..., :, None, :, None]), x.values.shape)


def _in_float32(values: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Return a float32 tensor of its own and scales, which multiply to the same products as these.

    For E4M3 on a CPU this is much faster than torch's cast. Shifted by seven bits to the left, with the sign
    moved to the front, a code of E4M3 is the float16 number that is smaller by 2^8, the difference between the biases
    of the exponents, 15 and 7. So the scales become larger by 2^8. Only NaN would become a number.
    """
    if values.dtype != torch.float8_e4m3fn or values.device.type != "cpu" or values.numel() == 0:
        return values.to(torch.float32, copy=True), scales
    codes = values.view(torch.int8)
    if (codes & 127).amax() == 127 or not scales.amax() < 2.0**119:  # a NaN, or scales that would overflow
        return values.float(), scales
    shifted = codes.to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~(1 << 14))
    return shifted.view(torch.float16).float(), scales * 2.0**8


def _in_tiles(x: Tensor, tile: Tile) -> Tensor:
    """Return x (..., rows, columns) as (..., tiles down, rows of a tile, tiles across, columns of a tile).

    Incomplete tiles at the edges are filled up with zeros.
    """
    rows, columns = x.shape[-2:]
    down, across = (min(n, max(1, size)) for n, size in zip(tile, x.shape[-2:], strict=True))  # an edge, if larger
    if rows % down or columns % across:
        x = F.pad(x, (0, -columns % across, 0, -rows % down))
    return x.unflatten(-2, (-1, down)).unflatten(-1, (-1, across))


def _whole(tiles: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_in_tiles`."""
    padded = tiles.flatten(-4, -3).flatten(-2, -1)
    return padded if padded.shape == shape else padded[..., : shape[-2], : shape[-1]].contiguous()


def scale_shape(shape: Tile, block: Tile) -> Tile:
    """Return the shape of a matrix's scales: one per block, including smaller blocks at the edges."""
    return tuple(-(-n // b) for n, b in zip(shape, block, strict=True))


def quantization_config(block: Tile, power_of_two_scales: bool = False) -> dict:
    """Return the entry of config.json for weights in blocks of this size: V3's, or with powers of two V3.1's."""
    entry = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": list(block)}
    return entry | ({"scale_fmt": "ue8m0"} if power_of_two_scales else {})


def block_size(quantization_config: object) -> Tile:
    """Return the rows and columns of a block, from the `quantization_config` of a config.json.

    For None or {} (weights that are not quantised) this is 128 x 128, too. Raises ValueError for other formats.
    """
    entry = quantization_config or {}
    is_fp8 = isinstance(entry, dict) and (entry.get("quant_method"), entry.get("fmt", "e4m3")) == ("fp8", "e4m3")
    if entry and not is_fp8:
        raise ValueError(f"quantization_config {quoted(entry)} is not supported: it must be fp8 in e4m3, or absent.")
    block = entry.get("weight_block_size", [128, 128])
    require("weight_block_size", block, isinstance(block, list), "two whole numbers")
    require_tile("weight_block_size", tuple(block))
    return tuple(block)
