"""FP8 blocks. The oracles are one loop over the blocks, and transformers' own dequantisation."""

import pytest
import torch
from configurations import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from minids.quantization.fp8 import Quantized, block_size, dequantize, scale_shape


def quantize(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Scale the largest number of each block to 448, the largest of FP8, and round.

    Return the FP8 values, the inverse scale of each block, and what they stand for.
    """
    rows, columns = (range(0, n, b) for n, b in zip(weight.shape, block, strict=True))
    values, scale = torch.empty(weight.shape, dtype=torch.float8_e4m3fn), torch.empty(len(rows), len(columns))
    meant = torch.empty(weight.shape)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            here = (slice(row, row + block[0]), slice(column, column + block[1]))
            scale[i, j] = weight[here].abs().max() / 448
            values[here] = (weight[here] / scale[i, j]).to(torch.float8_e4m3fn)
            meant[here] = values[here].float() * scale[i, j]
    return values, scale, meant


@examples(50)
@given(*[st.integers(1, 40)] * 2, *[st.integers(1, 16)] * 2)
def test_each_number_is_multiplied_by_the_scale_of_its_block(rows, columns, block_rows, block_columns):
    weight, block = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)), (block_rows, block_columns)
    values, scale, meant = quantize(weight, block)
    ours = dequantize(Quantized(values, scale, block))
    assert scale_shape(weight.shape, block) == scale.shape
    assert ours.dtype == torch.float32
    assert torch.equal(ours, meant)
    row, column = rows * 2 // 3, columns * 2 // 3
    assert ours[row, column] == values[row, column].float() * scale[row // block_rows, column // block_columns]
    assert ((ours - weight).abs() <= weight.abs() / 16 + scale.max() / 1024).all(), "a mantissa of 3 bits"
    if rows % block_rows == columns % block_columns == 0:
        assert torch.equal(ours, Fp8Dequantize(None)._dequantize_one(values, scale))


@pytest.mark.parametrize(
    ("entry", "block"),
    [(None, (128, 128)), ({}, (128, 128)), ({"quant_method": "fp8"}, (128, 128)),
     ({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 8]}, (16, 8))],
)  # fmt: skip
def test_the_configuration_says_how_large_a_block_is(entry, block):
    assert block_size(entry) == block


@pytest.mark.parametrize(
    "entry", [{"quant_method": "awq", "bits": 4}, {"quant_method": "fp8", "fmt": "e5m2"}, {"bits": 4}, "fp8", [1]]
)
def test_another_format_is_refused(entry):
    with pytest.raises(ValueError, match="is not supported: it must be fp8 in e4m3, or absent"):
        block_size(entry)


@pytest.mark.parametrize("size", [None, 128, [128], [128, 128, 1], [0, 128], [128, -1], [128.0, 128.0], ["128", "128"]])
def test_a_block_of_impossible_size_is_refused(size):
    with pytest.raises(ValueError, match="weight_block_size="):
        block_size({"quant_method": "fp8", "weight_block_size": size})
