"""FP8 with scales. Oracles: the authors' casts, restated; a loop over blocks; the dequantisation of transformers."""

from functools import partial

import pytest
import torch
from configurations import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from minids.quantization.formats import E2M1, E5M2, E5M6, round_to
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


def cast(
    x: Tensor, tile: tuple[int, int] | None, powers: bool, way: str = "DeepGEMM", floor: float = 1e-4
) -> Quantized:
    """DeepGEMM's per_token_cast_to_fp8 and per_block_cast_to_fp8, for any tile; and how two others scale."""
    rows, columns = x.shape
    down, across = tile or x.shape
    padded = x.new_zeros(-(-rows // down) * down, -(-columns // across) * across)
    padded[:rows, :columns] = x
    view = padded.view(-1, down, padded.shape[1] // across, across).float()
    amax = view.abs().amax(dim=(1, 3), keepdim=True).clamp(floor)
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
@given(kinds, sides, sides, tiles, switches, st.sampled_from([1e-30, 10.0]))
def test_values_and_scales_are_those_of_deepgemms_casts(kind, rows, columns, tile, powers, floor):
    x = numbers(kind, rows, columns)
    assert_same(quantize(x, tile, power_of_two_scales=powers, floor=floor), cast(x, tile, powers, floor=floor))
    assert_same(ours := quantize(x, tile, power_of_two_scales=powers), cast(x, tile, powers))
    assert ours.scales.shape == scale_shape(x.shape, tile or (rows, columns))


@pytest.mark.parametrize("format", [E5M2, E5M6, E2M1], ids=lambda format: format.name)
def test_values_are_numbers_of_the_format_and_the_largest_is_its_largest(format):
    x = numbers("outlier", 6, 40)
    ours = quantize(x, (2, 8), format=format)
    scales = ours.scales.repeat_interleave(2, 0).repeat_interleave(8, 1)
    assert ours.values.dtype == format.dtype
    assert torch.equal(ours.values.float(), round_to(x * (1 / scales), format))
    assert ours.values.float().abs().unflatten(0, (-1, 2)).unflatten(2, (-1, 8)).amax((1, 3)).eq(format.largest).all()


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


@pytest.mark.kills("experts flattened before quantising", shape=(48, 32), tile=(24, 16))
@pytest.mark.kills("scale of the transpose", shape=(48, 32), tile=(24, 16))
@pytest.mark.parametrize(
    ("shape", "tile"), [((48, 32), (24, 16)), ((130, 9), (16, 8)), ((40, 129), (1, 128)), ((5, 3), None)]
)
def test_each_matrix_of_a_stack_has_its_own_tiles_and_a_transposed_one_the_transposed(shape, tile):
    x = numbers("normal", 2, 3, *shape) * torch.tensor([1, 1e-5, 1e5])[:, None, None]  # the experts of two layers
    for powers in (False, True):
        ours = quantize(x, tile, power_of_two_scales=powers)
        alone = [dequantize(quantize(one, tile, power_of_two_scales=powers)) for one in x.flatten(0, 1)]
        assert torch.equal(dequantize(ours).flatten(0, 1), torch.stack(alone))
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


V3 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 8]}


@pytest.mark.parametrize("entry", [None, {}, {"quant_method": "fp8"}, V3])
def test_the_configuration_says_how_large_a_block_is(entry):
    assert block_size(entry) == ((16, 8) if entry is V3 else (128, 128))


ONES = torch.ones(4, 6)
TILES = [(0, 1), (1.0, 1), (1, 2, 3), [1, 2], 128, (True, 1), (1, -1)]
BLOCKS = [None, 128, [128], [128, 128, 1], [0, 128], [128, -1], [128.0, 128.0], ["128", "128"]]
REFUSED = [  # what the sentence begins with
    *[("tile=", partial(quantize, ONES, tile)) for tile in TILES],
    ("dimensions of a tensor to quantise=1 ", partial(quantize, torch.ones(4), None)),
    *[("format=", partial(quantize, ONES, None, format=format)) for format in (FP8, "E4M3", None)],
    *[("shape of the scales=", partial(Quantized, ONES.to(FP8).to(device), torch.ones(shape), (2, 4)))
      for shape in ((2, 3), (4, 6), (2,), (0,)) for device in ("cpu", "meta")],
    *[("weight_block_size=", partial(block_size, V3 | {"weight_block_size": size})) for size in BLOCKS],
    *[("quantization_config .* is not supported: it must be fp8 in e4m3, or absent", partial(block_size, entry))
      for entry in ({"quant_method": "awq", "bits": 4}, V3 | {"fmt": "e5m2"}, {"bits": 4}, "fp8", [1])],
]  # fmt: skip


@pytest.mark.parametrize(("words", "act"), REFUSED)
def test_what_cannot_be_a_tile_a_matrix_or_its_scales_is_refused(words, act):
    with pytest.raises(ValueError, match=f"^{words}"):
        act()
