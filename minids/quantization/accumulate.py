"""Sums of products in a register of few bits, as tensor cores compute them.

A product of two numbers in E4M3 has 8 significant bits, and an output of a layer is the sum of K such products.
Hopper's tensor cores add 32 of them at a time to a register with an exponent and 14 significant bits (V3 report §3.3.2
and §3.5.2). The larger the sum has become, the more of the next products is cut off, so the error grows with K.

*Promotion* is the remedy: every N_C = 128 products the sum is added to a register of 32 bits and the short register
starts again from zero. The sum has two levels: short runs in 14 bits, and the sum of the runs in FP32. An FP8 product
needs this addition in any case, because each tile of 128 has its own scale.

NVIDIA does not document how the hardware adds 32 products. V3's authors measured it, and others have since published
models that agree with the hardware in every bit. Two ways to add are simulated:

    "products"  Hopper's tensor core (MMA-Sim, 2025): the exponent of a product is the sum of those of its factors. The
                products and the register are shifted to the largest exponent, cut off below 14 bits, and added. The sum
                keeps its highest 14 bits
    "sums"      simpler and faster: the 32 products are added exactly, and only the register is cut off

With K = 4096, random numbers and no promotion, the largest error of a single output, relative to the root mean square
of all, is 1% for normal and 7% to 8% for positive numbers in the tensor core, and 1% and 0.3% with "sums". The report
gives a largest relative error of nearly 2% for two random matrices, and names neither their distribution nor what the
error is relative to.

In float64 the simulation is exact for numbers of E4M3 without scales, or with powers of two as scales that are not too
far apart: a sum of 32 products fits into 53 bits. In float32 it is fast enough for training, and the 32 products are
then added with float32's rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minids.validation import require, require_whole

INSTRUCTION = 32  # products of FP8 numbers that one step of a tensor core adds (K of WGMMA)
OUTPUTS = 2**18  # that are summed at a time: 1 MB in float32


@dataclass(frozen=True)
class Register:
    """A register that keeps `bits` significant bits of a running sum.

    `promote` is N_C, after how many products the sum moves to full precision; None is never. `nearest` rounds instead
    of cutting off. `cut` says what is cut off, see above."""

    bits: int = 14
    promote: int | None = 128
    nearest: bool = False
    cut: str = "sums"

    def __post_init__(self):
        require_whole("bits", self.bits, 2, 24)
        if self.promote is not None:
            require_whole("promote", self.promote)
            require("promote", self.promote, self.promote % INSTRUCTION == 0, f"a multiple of {INSTRUCTION}, or None")
        require("cut", self.cut, self.cut in ("sums", "products"), "sums or products")


def accumulate(a_MK: Tensor, b_KN: Tensor, register: Register) -> Tensor:
    """Return the matrix product (M, N) of two tensors of one dtype, float32 or float64, summed in the register.

    Some rows are computed at a time, so that their registers fit into the cache of a processor, with "products" also 32
    products for each. Raises ValueError for other dtypes.
    """
    dtypes = (a_MK.dtype, b_KN.dtype)
    allowed = dtypes in ((torch.float32, torch.float32), (torch.float64, torch.float64))
    require("dtypes of the factors", dtypes, allowed, "both torch.float32, or both torch.float64")
    out_MN = a_MK.new_zeros(a_MK.shape[0], b_KN.shape[1])
    numbers = 1 if register.cut == "sums" else 1 + INSTRUCTION  # for each output
    rows = max(1, OUTPUTS // max(1, numbers * b_KN.shape[1]))
    for a, out in zip(a_MK.split(rows), out_MN.split(rows), strict=True):
        _add_to(out, a, b_KN, register)
    return out_MN


def _add_to(total_MN: Tensor, a_MK: Tensor, b_KN: Tensor, register: Register) -> None:
    """Add the product to `total_MN`."""
    sum_MN = torch.zeros_like(total_MN)
    add = _add_sums if register.cut == "sums" else _add_products
    for start in range(0, a_MK.shape[1], INSTRUCTION):
        if register.promote and start % register.promote == 0:
            total_MN += sum_MN
            sum_MN.zero_()
        step = slice(start, start + INSTRUCTION)
        sum_MN = add(sum_MN, a_MK[:, step], b_KN[step], register)
    total_MN += sum_MN


def _add_sums(sum_MN: Tensor, a_MK: Tensor, b_KN: Tensor, register: Register) -> Tensor:
    return keep_bits(sum_MN.addmm_(a_MK, b_KN), register.bits, register.nearest, out=sum_MN)


def _add_products(sum_MN: Tensor, a_MK: Tensor, b_KN: Tensor, register: Register) -> Tensor:
    terms = torch.cat([sum_MN[:, None], a_MK[:, :, None] * b_KN], dim=1)  # (M, 1 + K, N)
    exponents = torch.cat([_exponent(sum_MN)[:, None], _exponent(a_MK)[:, :, None] + _exponent(b_KN)], dim=1)
    none = torch.iinfo(exponents.dtype).min  # zeros have no exponent
    largest = exponents.masked_fill_(terms == 0, none).amax(dim=1, keepdim=True)
    largest.masked_fill_(largest == none, 0)
    unit = torch.ldexp(torch.ones_like(terms[:, :1]), largest - (register.bits - 1))
    steps = (terms / unit).round_() if register.nearest else (terms / unit).trunc_()
    return keep_bits((steps * unit).sum(dim=1), register.bits, register.nearest)


def _exponent(x: Tensor) -> Tensor:
    """Return e with |x| = f · 2^e and 1 <= f < 2."""
    return torch.frexp(x).exponent - 1


def keep_bits(x: Tensor, bits: int, nearest: bool = False, out: Tensor | None = None) -> Tensor:
    """Return each x with its highest significant bits only: the others are cut off, or rounded to nearest, ties to
    even.

    x is float32 or float64, and is finite. `out`, which may be x, is written and returned instead of a new tensor.
    Raises ValueError for another dtype, and for fewer than 2 bits or more than the dtype has.
    """
    require("dtype", x.dtype, x.dtype in (torch.float32, torch.float64), "torch.float32 or torch.float64")
    integer, mantissa = (torch.int32, 23) if x.dtype == torch.float32 else (torch.int64, 52)
    require_whole("bits", bits, 2, mantissa + 1)
    dropped = mantissa - (bits - 1)  # the first significant bit of a normal number is not stored
    code = x.view(integer)  # sign, exponent, mantissa: cut off at the right, whatever the sign
    if nearest and dropped:
        code = code + (2 ** (dropped - 1) - 1) + (code >> dropped & 1)
    return torch.bitwise_and(code, -(2**dropped), out=None if out is None else out.view(integer)).view(x.dtype)
