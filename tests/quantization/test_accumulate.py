"""Sums in a register of few bits, against a loop with Python's fractions that adds one number at a time."""

from fractions import Fraction
from functools import partial
from itertools import product
from math import frexp

import pytest
import torch
from configurations import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minids.quantization import accumulate as module
from minids.quantization.accumulate import Register, accumulate, keep_bits

registers = st.builds(
    Register,
    bits=st.integers(2, 24),
    promote=st.sampled_from([None, 32, 64, 128]),
    nearest=st.booleans(),
    cut=st.sampled_from(["sums", "products"]),
)


def e4m3(*shape: int, seed: int = 0, generator: torch.Generator | None = None) -> Tensor:
    """Random codes, and so numbers of all magnitudes from 2^-9 to 448."""
    codes = torch.randint(254, shape, generator=generator or torch.Generator().manual_seed(seed)).to(torch.uint8)
    return (codes + (codes > 126)).view(torch.float8_e4m3fn).double()  # 127 and 255 are NaN


def unit(x: Fraction, bits: int) -> Fraction:
    """What the last of `bits` significant bits of x counts."""
    return Fraction(2) ** (frexp(x)[1] - bits)  # x fits into a float


def exponent(x: Fraction) -> int:
    return frexp(x)[1] - 1


def kept(x: Fraction, bits: int, nearest: bool) -> Fraction:
    last = unit(x, bits)
    return (round(x / last) if nearest else int(x / last)) * last  # round() takes ties to even, int() cuts off


def one_sum(a: list[Fraction], b: list[Fraction], r: Register) -> Fraction:
    total = short = Fraction(0)
    for start in range(0, len(a), 32):
        if r.promote and start % r.promote == 0:
            total, short = total + short, Fraction(0)
        products = [x * y for x, y in zip(a[start : start + 32], b[start : start + 32], strict=True)]
        if r.cut == "sums":
            short = kept(short + sum(products), r.bits, r.nearest)
        else:
            pairs = [pair for pair in zip(a[start : start + 32], b[start : start + 32], strict=True) if all(pair)]
            exponents = [exponent(x) + exponent(y) for x, y in pairs] + [exponent(short)] * bool(short)
            last = Fraction(2) ** (max(exponents, default=0) - r.bits + 1)
            terms = [(round if r.nearest else int)(term / last) * last for term in (short, *products)]
            short = kept(sum(terms), r.bits, r.nearest)
    return total + short


@examples(60)
@given(registers, st.integers(0, 200), st.integers(0, 1000))
def test_in_float64_every_bit_is_that_of_a_loop_with_fractions(register, K, seed):
    a, b = e4m3(2, K, seed=seed), e4m3(K, 3, seed=seed + 1)
    a *= torch.arange(K) % 7 != 3  # some zeros
    exact = [[float(one_sum(*(list(map(Fraction, t.tolist())) for t in (m, n)), register)) for n in b.T] for m in a]
    assert accumulate(a, b, register).tolist() == exact
    if register.cut == "products" and register.promote is None and register.bits <= 18:  # 33 of them fit into 24
        assert accumulate(a.float(), b.float(), register).tolist() == exact


@pytest.mark.parametrize("cut", ["sums", "products"])
def test_rows_that_are_computed_at_different_times_are_those_computed_together(cut, monkeypatch):
    factors, register = (e4m3(7, 64), e4m3(64, 3, seed=1)), Register(cut=cut)
    together = accumulate(*factors, register)
    monkeypatch.setattr(module, "OUTPUTS", 200)
    assert torch.equal(accumulate(*factors, register), together)


# Of the first four rows and columns, by MMA-Sim 2.1.1, WGMMA("Hopper", "m64n8k32.f32.e4m3.e4m3").
HOPPER = [
    [57768.0, 342208.0, 105176.0, 130896.0],
    [-247808.0, 402464.0, -106064.0, -252272.0],
    [103840.0, 505984.0, 172976.0, -8780.0],
    [-143472.0, 418240.0, -58448.0, 118424.0],
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_cut_off_as_in_the_published_model_of_hopper_s_tensor_core(dtype):
    generator = torch.Generator().manual_seed(0)
    a, b = (e4m3(*shape, generator=generator).to(dtype) for shape in ((64, 512), (512, 8)))
    found = accumulate(a, b, Register(14, promote=None, cut="products"))[:4, :4]
    assert found.tolist() == HOPPER
    assert (a @ b)[:4, :4].tolist() != HOPPER


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_highest_bits_are_kept_cut_off_or_rounded_with_ties_to_even(dtype):
    x = torch.cat([torch.randn(100) * 100, torch.randint(-5000, 5000, (100,)) / 64])  # with ties
    for bits, nearest in product((2, 3, 8, 11, 24), (False, True)):
        exact = [float(kept(Fraction(number), bits, nearest)) for number in x.tolist()]
        assert keep_bits(x.to(dtype), bits, nearest).tolist() == exact


def ones(dtype: torch.dtype) -> Tensor:
    return torch.ones(1, 1, dtype=dtype)


REFUSED = [
    *[("bits", partial(Register, bits=bits)) for bits in (1, 25, 8.0, True, None)],
    *[("promote", partial(Register, promote=length)) for length in (0, 31, 33, -32, 64.0, True)],
    *[("cut", partial(Register, cut=cut)) for cut in ("sum", None)],
    *[("bits", partial(keep_bits, ones(torch.float32), bits)) for bits in (0, 1, 25, 8.0)],
    ("bits", partial(keep_bits, ones(torch.float64), 54)),
    ("dtype", partial(keep_bits, ones(torch.bfloat16), 8)),
    *[("dtypes of the factors", partial(accumulate, ones(a), ones(b), Register()))
      for a, b in ((torch.float32, torch.float64), (torch.float16, torch.float16), (torch.int32, torch.int32))],
]  # fmt: skip


@pytest.mark.parametrize(("name", "act"), REFUSED)
def test_what_no_register_could_have_or_sum_is_refused(name, act):
    with pytest.raises(ValueError, match=f"^{name}=.* is not possible: it must be "):
        act()
