"""FP8 with scales. Oracles: the authors' casts, restated; a loop over blocks; the dequantisation of transformers."""

import pytest
import torch
from configurations import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from minids.quantization.fp8 import Quantized, block_size, dequantize, quantize, scale_shape

FP8, HUGE = torch.float8_e4m3fn, (2**62, 2**62)
tiles = st.sampled_from([None, (1, 128), (128, 1), (128, 128), (16, 8), (3, 5), (1, 1)])
sides = st.integers(1, 40) | st.sampled_from([127, 128, 129, 257])
kinds, switches = st.sampled_from(["normal", "outlier", "zero", "tiny", "wide", "bfloat16"]), st.booleans()


def numbers(kind: str, *shape: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if kind == "outlier":
        x.view(-1)[x.numel() // 2] = -1e4
    factor = {"zero": 0, "tiny": 1e-6, "wide": torch.exp2(torch.arange(shape[-1]) % 40 - 20)}.get(kind, 1)
    return (x * factor).to(torch.bfloat16 if kind == "bfloat16" else torch.float32)


def cast(x: Tensor, tile: tuple[int, int] | None, powers: bool, way: str = "DeepGEMM") -> Quantized:
    """DeepGEMM's per_token_cast_to_fp8 and per_block_cast_to_fp8, for any tile; and how two others scale."""
    rows, columns = x.shape
    down, across = tile or x.shape
    padded = x.new_zeros(-(-rows // down) * down, -(-columns // across) * across)
    padded[:rows, :columns] = x
    view = padded.view(-1, down, padded.shape[1] // across, across).float()
    amax = view.abs().amax(dim=(1, 3), keepdim=True).clamp(1e-4)
    scale = amax / 448.0
    if powers:
        bits = scale.view(torch.int32)
        scale = ((bits >> 23) + (bits & 0x7FFFFF).bool().int() << 23).view(torch.float32)
    inverse = 1.0 / scale if powers else 448.0 / amax
    scaled = {"DeepGEMM": view * (1.0 / scale), "V3": view / scale, "TileKernels": view * inverse}[way]
    return Quantized(scaled.to(FP8).view_as(padded)[:rows, :columns], scale[:, 0, :, 0], (down, across))


def assert_same(ours: Quantized, theirs: Quantized) -> None:
    assert (ours.values.dtype, ours.scales.dtype, ours.tile) == (FP8, torch.float32, theirs.tile)
    assert torch.equal(ours.values.view(torch.uint8), theirs.values.view(torch.uint8))
    assert torch.equal(ours.scales, theirs.scales)


@examples(100)
@given(kinds, sides, sides, tiles, switches)
def test_values_and_scales_are_those_of_deepgemms_casts(kind, rows, columns, tile, powers):
    x = numbers(kind, rows, columns)
    ours = quantize(x, tile, power_of_two_scales=powers)
    assert_same(ours, cast(x, tile, powers))
    assert ours.scales.shape == scale_shape(x.shape, tile or (rows, columns))


def test_the_authors_three_casts_differ_by_one_code_near_ties_and_not_with_powers_of_two():
    codes = torch.randint(1, 126, (400, 128), dtype=torch.uint8)
    middle = (codes.view(FP8).float() + (codes + 1).view(FP8).float()) / 2
    middle[:, 0] = 448
    x, tile = middle * torch.rand(400, 1), (1, 128)  # over their scales in the middle of two codes, up to rounding
    assert_same(ours := quantize(x, tile), cast(x, tile, False))
    for way in ("V3", "TileKernels"):
        assert_same(quantize(x, tile, power_of_two_scales=True), cast(x, tile, True, way))
        steps = ours.values.view(torch.uint8).int() - cast(x, tile, False, way).values.view(torch.uint8).int()
        assert set(steps.unique().tolist()) == {-1, 0, 1}


@examples(30)
@given(kinds, sides, sides, tiles, switches)
def test_each_matrix_of_a_stack_has_its_own_tiles_and_a_transposed_one_the_transposed(
    kind, rows, columns, tile, powers
):
    x = numbers(kind, 2, 3, rows, columns) * torch.tensor([1, 1e-5, 1e5])[:, None, None]  # the experts of two layers
    ours = quantize(x, tile, power_of_two_scales=powers)
    for i, j in ((0, 0), (0, 1), (1, 2)):
        one = Quantized(ours.values[i, j], ours.scales[i, j], ours.tile)
        assert_same(one, quantize(x[i, j], tile, power_of_two_scales=powers))
        assert torch.equal(dequantize(ours)[i, j], dequantize(one))
    assert_same(quantize(x.mT, tile and tile[::-1], power_of_two_scales=powers), ours.mT)
    assert torch.equal(dequantize(ours.mT), dequantize(ours).mT)


@examples(50)
@given(kinds, sides, sides, *[st.integers(1, 16)] * 2)
def test_each_number_is_multiplied_by_the_scale_of_its_block(kind, rows, columns, down, across):
    weight = numbers(kind, rows, columns)
    quantized = quantize(weight, (down, across))
    ours, meant = dequantize(quantized), torch.empty(rows, columns)
    for i, j in torch.cartesian_prod(*map(torch.arange, quantized.scales.shape)).tolist():
        here = (slice(i * down, (i + 1) * down), slice(j * across, (j + 1) * across))
        meant[here] = quantized.values[here].float() * quantized.scales[i, j]
    assert torch.equal(ours, meant)
    assert ((ours - weight).abs() <= weight.abs() / 16 + quantized.scales.max() / 1024).all(), "a mantissa of 3 bits"
    if rows % down == columns % across == 0:
        assert torch.equal(ours, Fp8Dequantize(None)._dequantize_one(quantized.values, quantized.scales))


@pytest.mark.parametrize("scale", [1, 2.0**120, 2.0**-140, torch.inf, torch.nan])
@pytest.mark.parametrize("nan", [127, 255, 0])
def test_every_code_is_dequantised_as_torch_reads_it(nan, scale):
    codes = torch.arange(256).where(torch.arange(256) % 128 != 127, nan).to(torch.uint8).view(16, 16).view(FP8)
    for values in (codes, codes.mT, codes[::2, 3:]):
        ours, theirs = dequantize(Quantized(values, torch.full((1, 1), scale), (16, 16))), values.float() * scale
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        assert torch.equal((ours == 0) & ours.signbit(), (theirs == 0) & theirs.signbit())


@pytest.mark.parametrize("powers", [False, True])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_not_finite_spoils_its_own_tile_and_no_other(bad, powers):
    x, spoiled = torch.randn(5, 9), torch.zeros(5, 9, dtype=torch.bool)
    x[3, 4], spoiled[2:4, 4:8] = bad, True
    assert torch.equal(dequantize(quantize(x, (2, 4), power_of_two_scales=powers)).isnan(), spoiled)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5), (0, 5), (5, 0)])
def test_a_tile_larger_than_the_matrix_needs_no_more_memory_than_the_matrix(shape):
    whole, huge = (quantize(torch.ones(shape), tile) for tile in (None, HUGE))
    assert (huge.tile, huge.scales.shape[-2:]) == (HUGE, scale_shape(shape[-2:], HUGE))
    assert torch.equal(whole.scales, huge.scales)
    assert torch.equal(dequantize(whole), dequantize(huge))
    assert torch.equal(dequantize(huge.mT), dequantize(huge).mT)


def test_130_rows_with_2_rows_of_scales_are_blocks_of_128_and_of_2():
    values, scales = torch.ones(130, 1000).to(FP8), torch.exp2(torch.arange(16.0)).view(2, 8)
    for stored in (scales, scales.to(torch.float8_e8m0fnu)):
        ours = dequantize(Quantized(values, stored, block_size(None)))
        assert ours[[0, 127, 128, 129], 0].tolist() == [1, 1, 2**8, 2**8], "with two blocks of 65: 1, 2^8, 2^8, 2^8"
        assert ours[0, [0, 127, 128, 895, 896]].tolist() == [1, 1, 2, 2**6, 2**7], "not in blocks of 125"


def test_what_cannot_be_a_tile_or_a_matrix_is_refused():
    for tile in ((0, 1), (1.0, 1), (1, 2, 3), [1, 2], 128, (True, 1), (1, -1)):
        with pytest.raises(ValueError, match="tile="):
            quantize(torch.randn(2, 2), tile)
    with pytest.raises(ValueError, match="dimensions of a tensor to quantise=1 is not possible"):
        quantize(torch.randn(4), None)


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
