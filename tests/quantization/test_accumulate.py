"""Sums in a register of few bits, against a loop with Python's fractions that adds one number at a time."""

from fractions import Fraction
from math import floor

import pytest
import torch
from configurations import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minids.quantization.accumulate import Register, accumulate, keep_bits
from minids.quantization.fp8 import dequantize, quantize

registers = st.builds(
    Register,
    bits=st.integers(2, 24),
    promote=st.sampled_from([None, 32, 64, 128]),
    nearest=st.booleans(),
    reading=st.sampled_from(["sums", "products"]),
)


def e4m3(*shape: int, seed: int = 0) -> Tensor:
    """Random codes, and so numbers of all magnitudes from 2^-9 to 448."""
    codes = torch.randint(254, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    return (codes + (codes > 126)).view(torch.float8_e4m3fn).double()  # 127 and 255 are NaN


def unit(x: Fraction, bits: int) -> Fraction:
    """What the last of `bits` significant bits of x counts."""
    power = Fraction(1)
    while power <= abs(x):
        power *= 2
    while 0 < 2 * abs(x) < power:
        power /= 2
    return power / 2**bits


def kept(x: Fraction, bits: int, nearest: bool) -> Fraction:
    last = unit(x, bits)
    return (round(x / last) if nearest else int(x / last)) * last  # round() takes ties to even, int() cuts off


def one_sum(a: list[Fraction], b: list[Fraction], r: Register) -> Fraction:
    total = short = Fraction(0)
    for start in range(0, len(a), 32):
        if r.promote and start % r.promote == 0:
            total, short = total + short, Fraction(0)
        products = [x * y for x, y in zip(a[start : start + 32], b[start : start + 32], strict=True)]
        if r.reading == "sums":
            short = kept(short + sum(products), r.bits, r.nearest)
        else:
            last = unit(max(map(abs, [short, *products])), r.bits)
            terms = [(round if r.nearest else floor)(term / last) * last for term in (short, *products)]
            short = kept(sum(terms), r.bits, r.nearest)
    return total + short


@examples(60)
@given(registers, st.integers(0, 200), st.integers(0, 1000))
def test_in_float64_every_bit_is_that_of_a_loop_with_fractions(register, K, seed):
    a, b = e4m3(2, K, seed=seed), e4m3(K, 3, seed=seed + 1)
    a *= torch.arange(K) % 7 != 3  # some zeros
    exact = [[one_sum(*([Fraction(x) for x in t.tolist()] for t in (m, n)), register) for n in b.T] for m in a]
    assert accumulate(a, b, register).tolist() == [[float(x) for x in row] for row in exact]


@examples(20)
@given(registers, st.integers(1, 5))
def test_to_promote_once_at_the_end_is_never_to_promote(register, steps):
    K = 32 * steps
    a, b = e4m3(4, K).float(), e4m3(K, 4).float()
    once, never = (Register(register.bits, n, register.nearest, register.reading) for n in (K, None))
    assert torch.equal(accumulate(a, b, once), accumulate(a, b, never))


@pytest.mark.parametrize("reading", ["sums", "products"])
def test_the_error_grows_with_the_length_of_the_sum_unless_it_is_promoted(reading):
    def error(K: int, **register) -> float:
        torch.manual_seed(0)
        a, b = (dequantize(quantize(torch.rand(shape), None)) for shape in ((12, K), (K, 12)))
        exact = a.double() @ b.double()
        ours = accumulate(a, b, Register(reading=reading, **register))
        return ((ours - exact).abs() / exact).median().item()

    assert error(4096, promote=None) > 4 * error(512, promote=None) > 8 * error(128, promote=None)
    assert error(4096) < 1.5 * error(128) < error(4096, promote=None) / 4
    assert error(4096, promote=None, nearest=True) < error(4096, promote=None) / 4, "cutting off is biased"


def test_8_bits_rounded_to_nearest_are_bfloat16_and_11_are_float16():
    x = torch.cat([torch.rand(4000) + 1e-4, torch.randn(4000) * 100])
    x = torch.cat([x, x.bfloat16() * (1 + 2.0**-8), x.half() * (1 + 2.0**-11), torch.zeros(1)])
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(keep_bits(x.to(dtype), 8, nearest=True), x.bfloat16().to(dtype))
        assert torch.equal(keep_bits(x.to(dtype), 11, nearest=True), x.half().to(dtype))
        assert torch.equal(keep_bits(x.to(dtype), 24, nearest=True), x.to(dtype)), "all that float32 has"
        cut = keep_bits(x.to(dtype), 8)
        assert torch.equal(cut, keep_bits(cut, 8, nearest=True))
        assert ((x.abs() - cut.abs() >= 0) & (x.abs() - cut.abs() <= x.abs() * 2.0**-7)).all(), "towards zero"


@pytest.mark.parametrize(
    ("name", "values"),
    [("bits", (1, 25, 8.0, True, None)), ("promote", (0, 31, 33, -32, 64.0, True)), ("reading", ("sum", None))],
)
def test_a_register_that_no_tensor_core_could_have_is_refused(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{name}="):
            Register(**{name: value})
