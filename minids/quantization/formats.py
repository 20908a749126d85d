"""Floating-point numbers of few bits, encoded and decoded by hand.

A floating-point code has a sign bit s, exponent bits e and mantissa bits m, read as whole numbers:

    value = (-1)^s · 2^(e - bias) · (1 + m / 2^M)        normal numbers, e > 0
    value = (-1)^s · 2^(1 - bias) · m / 2^M              subnormal numbers, e = 0: equally spaced down to 0

with M mantissa bits and bias = 2^(E - 1) - 1 for E exponent bits. One more exponent bit about squares the ratio
of largest and smallest number; one more mantissa bit halves the distance between neighbours.

    E4M3    1 + 4 + 3 bits    up to 448      no infinity: only the code with all bits set is NaN, so 448 is a number
    E5M2    1 + 5 + 2 bits    up to 57,344   as IEEE: the largest exponent is infinity and NaN. A truncated float16
    E5M6    1 + 5 + 6 bits    up to 65,024   12 bits, for a single kind of activation in V3 (report §3.3.3)
    E2M1    1 + 2 + 1 bits    up to 6        4 bits, without NaN: the numbers of MXFP4, for V4's experts

Rounding is to the nearest number, in the middle between two to the one whose last mantissa bit is 0 (*ties to even*).
What is larger than the largest number becomes the largest (*saturation*). NaN stays NaN, except in the codes of E2M1,
which has none: `encode` gives the largest number. The report names E5M6 and says no more: its bias and its infinities
are those of IEEE formats here.

Scales need range and no precision: UE8M0 has 8 exponent bits and nothing else, so it holds the powers of two from
2^-127 to 2^127 (V3.1; OCP microscaling formats).

torch has float8_e4m3fn, float8_e5m2 and float8_e8m0fnu, which everything else in the library uses. The tests hold these
pages against them on every code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Format:
    """A format of floating-point numbers: bits of exponent and mantissa, and whether it has infinities."""

    name: str
    exponent_bits: int
    mantissa_bits: int
    special: str  # "IEEE": the largest exponent is infinity or NaN; "NaN": only its last mantissa is; "none"
    dtype: torch.dtype  # a type of torch's that holds its numbers and can be cast to

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def smallest_exponent(self) -> int:
        """That of the smallest normal number, and of all subnormal ones."""
        return 1 - self.bias

    @property
    def largest(self) -> float:
        """The largest finite number."""
        top = 2**self.exponent_bits - 1 - self.bias - (self.special == "IEEE")
        last = 2**self.mantissa_bits - 1 - (self.special == "NaN")
        return 2.0**top * (1 + last * 2.0**-self.mantissa_bits)

    @property
    def smallest(self) -> float:
        """The smallest positive number, a subnormal one, and the distance between subnormal neighbours."""
        return 2.0 ** (self.smallest_exponent - self.mantissa_bits)


E4M3 = Format("E4M3", 4, 3, "NaN", torch.float8_e4m3fn)
E5M2 = Format("E5M2", 5, 2, "IEEE", torch.float8_e5m2)
E5M6 = Format("E5M6", 5, 6, "IEEE", torch.float16)
E2M1 = Format("E2M1", 2, 1, "none", torch.float8_e4m3fn)


def round_to(x: Tensor, format: Format) -> Tensor:
    """Return the nearest number of the format to each x, in float32."""
    x = x.float()
    spacing = torch.ldexp(torch.ones_like(x), _exponent(x, format) - format.mantissa_bits)  # of the neighbours of x
    nearest = (x / spacing).round() * spacing  # exact: divided by a power of two; round() takes ties to even
    return nearest.clamp(-format.largest, format.largest)


def encode(x: Tensor, format: Format) -> Tensor:
    """Return the code of the nearest number of the format to each x, a whole number (int16)."""
    nearest, M = round_to(x, format), format.mantissa_bits
    exponent = _exponent(nearest, format)
    steps = torch.ldexp(nearest.abs(), M - exponent).nan_to_num()  # 2^M + m for normal numbers, m for subnormal ones
    code = (exponent + format.bias - 1) * 2**M + steps.long()  # a normal number's leading 1 adds 1 to the exponent bits
    sign = 2 ** (format.bits - 1)
    return (torch.where(nearest.isnan(), sign - 1, code) + sign * nearest.signbit()).to(torch.int16)


def _exponent(x: Tensor, format: Format) -> Tensor:
    """Return the exponent of each x, at least that of the subnormal numbers: |x| is below 2^(exponent + 1)."""
    _, above = torch.frexp(x)  # |x| = f · 2^above, with f from 1/2 to 1; for 0 it is 0
    return (above - 1).where(x != 0, format.smallest_exponent).clamp(min=format.smallest_exponent)


def decode(codes: Tensor, format: Format) -> Tensor:
    """Return the value of each code, in float32."""
    M, E = format.mantissa_bits, format.exponent_bits
    codes = codes.long()
    mantissa, exponent = codes % 2**M, codes // 2**M % 2**E
    sign = 1.0 - 2.0 * (codes // 2 ** (M + E) % 2)
    normal = exponent > 0
    fraction = mantissa / 2**M + normal
    value = torch.ldexp(fraction, exponent.clamp(min=1) - format.bias)
    top = exponent == 2**E - 1
    if format.special == "IEEE":
        value = torch.where(top, torch.where(mantissa == 0, torch.inf, torch.nan), value)
    elif format.special == "NaN":
        value = torch.where(top & (mantissa == 2**M - 1), torch.nan, value)
    return sign * value


def power_of_two_above(x: Tensor) -> Tensor:
    """Return the smallest power of two that is at least x > 0, as UE8M0 holds it, in float32.

    Above 2^127, the largest that there is, this is 2^127, and so below x. For infinity and NaN it is NaN: UE8M0 has no
    infinity. 0 and negative numbers need no scale; what they give means nothing.
    """
    fraction, exponent = torch.frexp(x.float())
    exponent = exponent - (fraction == 0.5).int()  # x is a power of two itself
    return torch.ldexp(torch.ones_like(fraction), exponent.clamp(-127, 127)).where(fraction.isfinite(), torch.nan)
