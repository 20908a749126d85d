"""Formats by hand. The oracles are torch's 8-bit types, bits of float16, and a search among all numbers of a format."""

import pytest
import torch
from torch import Tensor

from minids.quantization.formats import E2M1, E4M3, E5M2, E5M6, Format, decode, encode, power_of_two_above, round_to

FORMATS = [E4M3, E5M2, E5M6, E2M1]
EIGHT_BITS = [E4M3, E5M2]
NAN = torch.tensor([torch.nan, -torch.nan])
each = pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)


def codes(format: Format) -> Tensor:
    return torch.arange(2**format.bits, dtype=torch.int16)


def magnitudes(format: Format) -> Tensor:
    """The numbers that are not negative. They are in the order of their codes."""
    numbers = decode(codes(format)[: 2 ** (format.bits - 1)], format)
    return numbers[numbers.isfinite()]


def hard_cases(format: Format) -> Tensor:
    """All numbers of the format, the middle between any two neighbours, what is just beside, and what is outside."""
    numbers = magnitudes(format)
    exact = torch.cat([numbers, (numbers[1:] + numbers[:-1]) / 2])
    beside = [exact.nextafter(torch.tensor(end)) for end in (-torch.inf, torch.inf)]
    outside = torch.tensor([format.largest * 1.01, format.largest * 2, torch.inf, format.smallest / 3, 1e-30, 1e-45])
    random = torch.randn(2000) * torch.exp2(torch.randint(-20, 18, (2000,)))
    positive = torch.cat([exact, *beside, outside, random])
    return torch.cat([positive, -positive])


def same(a: Tensor, b: Tensor) -> bool:
    """Equal as numbers, with NaN at the same places and the same sign of each zero."""
    return bool((a.isnan() == b.isnan()).all()) and torch.equal(*(torch.stack([t, 1 / t]).nan_to_num() for t in (a, b)))


@pytest.mark.parametrize("format", EIGHT_BITS, ids=lambda f: f.name)
def test_all_codes_of_8_bits_mean_what_they_mean_in_torch(format):
    theirs = codes(format).to(torch.uint8).view(format.dtype).float()
    assert same(decode(codes(format), format), theirs)
    limits = torch.finfo(format.dtype)
    assert (format.bits, format.largest, 2.0**format.smallest_exponent) == (8, limits.max, limits.tiny)
    assert format.smallest == theirs[theirs > 0].min()
    assert torch.equal(encode(NAN, format), NAN.to(format.dtype).view(torch.uint8).to(torch.int16))


def test_e5m6_is_a_float16_without_its_last_four_bits_and_e2m1_is_a_table():
    assert same(decode(codes(E5M6), E5M6), (codes(E5M6).int() << 4).to(torch.uint16).view(torch.float16).float())
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    assert same(decode(codes(E2M1), E2M1), torch.cat([table, -table]))
    assert (E5M6.largest, E2M1.largest, E5M6.bits, E2M1.bits) == (65024, 6, 12, 4)
    assert torch.stack([decode(encode(NAN, E5M6), E5M6), *(round_to(NAN, format) for format in FORMATS)]).isnan().all()
    assert decode(encode(NAN, E2M1), E2M1).abs().tolist() == [6, 6], "it has no NaN"


@each
def test_rounding_finds_the_nearest_number_and_in_the_middle_the_even_code(format):
    x, numbers = hard_cases(format), magnitudes(format).double()
    size = x.abs().double()
    above = torch.searchsorted(numbers, size).clamp(1, len(numbers) - 1)
    below = above - 1
    to_below, to_above = size - numbers[below], numbers[above] - size
    even = below + below % 2
    nearest = torch.where(to_below < to_above, below, torch.where(to_above < to_below, above, even))
    assert same(round_to(x, format), numbers[nearest].float().copysign(x))
    assert torch.equal(encode(x, format).long(), nearest + 2 ** (format.bits - 1) * x.signbit())
    if format in EIGHT_BITS:
        inside = x[size <= format.largest]  # beyond it torch's cast is not finite
        assert same(round_to(inside, format), inside.to(format.dtype).float())


def test_a_power_of_two_above_is_a_scale_of_torchs_type_and_the_smallest_one_possible():
    powers = torch.arange(255, dtype=torch.uint8).view(torch.float8_e8m0fnu).float()  # the code 255 is NaN
    assert torch.equal(power_of_two_above(powers), powers)
    between = torch.cat([powers[:-1] * 1.0001, powers[:-1] * 1.5, powers[1:].nextafter(torch.zeros(()))])
    assert torch.equal(power_of_two_above(between), powers[1:].repeat(3))
    assert power_of_two_above(torch.tensor([1e-45, 3e38])).tolist() == [2.0**-127, 2.0**127], "ends of the range"
    assert power_of_two_above(torch.tensor([torch.inf, torch.nan])).isnan().all()
