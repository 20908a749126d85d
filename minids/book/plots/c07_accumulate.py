"""Sums of FP8 products in a register of few bits: which bits are cut off, and how the error grows (chapter 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from minids.book.plots.c07_formats import COLORS
from minids.book.plots.diagram import Diagram
from minids.book.plots.helpers import DASHED, label_ends, log_scale
from minids.book.plots.style import INK, LAYERS, MUTED, PALE, PAPER, Picture, new_figure, styled, tint
from minids.quantization.accumulate import INSTRUCTION, Register, accumulate
from minids.validation import require, require_whole

CUTS = ("products", "sums")
FACTORS = ((13, 15), (11, 7.5), (3.25, 9), (1.375, 1.625))  # four products of numbers in E4M3
SUM = (1.375, 1.125)  # the running sum is their product times 2^exponent
HIGHEST, LOWEST = 17, -6  # places of the drawn bits
LOST = LAYERS[2]  # the colour of what is cut off
COLUMN, PITCH, ROW = 124, 17.6, 21  # points: the first bit, bit to bit, row to row
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def next_sum(exponent: int, bits: int, cut: str) -> tuple[float, float]:
    """Return the running sum, and what the library's register holds after the next four products."""
    a_MK, b_KN = torch.zeros(1, 2 * INSTRUCTION), torch.zeros(2 * INSTRUCTION, 1)
    half = exponent // 2
    a_MK[0, 0], b_KN[0, 0] = SUM[0] * 2**half, SUM[1] * 2 ** (exponent - half)  # alone in the first instruction
    for k, factors in enumerate(FACTORS, start=INSTRUCTION):
        a_MK[0, k], b_KN[k, 0] = factors
    register = Register(bits, promote=None, cut=cut)
    return math.prod(SUM) * 2**exponent, accumulate(a_MK, b_KN, register).item()


@styled()
def draw_cut_products(exponent: int = 15, cut: str = "products", bits: int = 14) -> Picture:
    """Draw four products being added to a running sum from 2^exponent on, aligned, and the bits that are cut off.

    Raises ValueError for an exponent that is not from 8 to 16, another `cut`, and bits that are not from 8 to 14.
    """
    require_whole("exponent", exponent, at_least=8, at_most=16)
    require_whole("bits", bits, at_least=8, at_most=14)
    require("cut", cut, cut in CUTS, " or ".join(CUTS))
    running, kept = next_sum(exponent, bits, cut)
    exact = running + sum(math.prod(pair) for pair in FACTORS)
    d = Diagram(height=262, bottom=30)
    added, came = exact - running, kept - running
    finding = f"At a sum of {_number(running)}, {1 - came / added:.1%} of what is added is cut off"
    d.text(14, 268, finding, size=14)
    what = (
        "each product is cut off, then added" if cut == "products" else "the products are added exactly, then cut off"
    )
    d.text(14, 250, f"A register of {bits} bits, “{cut}”: {what}.", color=MUTED)
    top = math.frexp(running if cut == "products" else exact)[1] - 1  # place of the highest bit
    window = range(top, top - bits, -1)
    for place in range(HIGHEST, LOWEST - 1, -1):
        if place % 4 == 0:
            power = "2" + f"{place}".translate(SUPERSCRIPT)
            d.text(_left(place) + PITCH / 2, 228, power, size=10, ha="center", color=MUTED)
    rows = [("running sum", running, 200)]
    rows += [(f"{a:g} · {b:g}", a * b, 200 - 8 - ROW * n) for n, (a, b) in enumerate(FACTORS, start=1)]
    below = rows[-1][2] - ROW - 10
    rows += [("exact sum", exact, below), ("in the register", kept, below - ROW)]
    for name, value, y in rows:
        lost = name == "exact sum" or ("·" in name and cut == "products")
        d.text(14, y + 5, name, weight="bold" if name == "in the register" else "normal")
        _bits(d, y, value, window, lost)
        d.text(634, y + 5, _number(value), size=10.5, ha="right")
    high = 200 + ROW if cut == "products" else below + ROW
    d.outline(_left(top), below - ROW - 3, PITCH * bits, high - below + ROW + 2, linewidth=1.6)
    d.text(_left(top) + 1, 39, f"the {bits} bits of the register", size=10.5)
    d.ax.add_artist(Rectangle((580, 37), 11, 11, facecolor=tint(LOST, 0.6), edgecolor="none"))
    d.text(634, 39, "cut off", size=10.5, ha="right")
    d.figure.alt = (
        f"{finding}, {cut} cut off, {bits} bits: products "
        f"{', '.join(_number(math.prod(pair)) for pair in FACTORS)}; exact sum {_number(exact)}, kept {_number(kept)}"
    )
    return d.figure


def _left(place: int) -> float:
    return COLUMN + PITCH * (HIGHEST - place)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3f}".rstrip("0")


def _bits(d: Diagram, y: float, value: float, window: range, cut: bool) -> None:
    """Draw the significant bits of a number at their places, those beyond the window in another colour if `cut`."""
    highest, whole = math.frexp(value)[1] - 1, int(value * 2**-LOWEST)
    for place in range(highest, LOWEST - 1, -1):
        if whole % 2 ** (place - LOWEST + 1) == 0:
            break  # only zeros are left
        one = whole >> (place - LOWEST) & 1
        lost = cut and place <= window[-1] - 1
        face = tint(LOST if lost else COLORS["E4M3"], 0.6 if one else 0.22)
        d.ax.add_artist(Rectangle((_left(place) + 1, y), PITCH - 2, 17, facecolor=face, edgecolor="none", zorder=3))
        d.text(_left(place) + PITCH / 2, y + 4.5, f"{one}", size=10, ha="center")


# ---------------------------------------------------------------------------------------------------
# The error over K

LINES = {"never": INK, "512": "#5B3A8C", "128": COLORS["E4M3"], "32": "#2FA37C"}  # N_C
MAXIMA = {"never": 1.0, "128": 0.92}  # whose maxima are drawn, and factors that keep their lines apart
OPERANDS = "operands"
At = tuple[float, float]  # the median of the outputs' errors, and the largest


@styled()
def draw_accumulation_error(
    lengths: Sequence[int], errors: dict[str, dict[str, dict[str, list[At]]]], published: float = 0.02,
    data: str = "normal",
) -> Picture:  # fmt: skip
    """Draw the error of a matrix product over its number K of products, for both ways to cut off.

    `errors[data][cut][name]` has a median and a maximum over the outputs for each length. The names are N_C, never,
    FP32, and "operands", the error of rounding the operands to FP8. Raises ValueError for other data, and lengths
    without 4096.
    """
    require("data", data, data in errors, " or ".join(errors))
    require("lengths", lengths, 4096 in lengths, "some with 4096")
    fig, at = new_figure(height=4.9), list(lengths).index(4096)
    found = errors[data]
    for cut, left in zip(CUTS, (0.095, 0.575), strict=True):
        ax = fig.add_axes((left, 0.125, 0.29, 0.585))
        _errors(ax, lengths, found[cut])
        ax.plot([4096], [published], marker="*", color=PAPER, markersize=15, markeredgecolor=INK, zorder=5)
        whose = "the tensor core: products are cut off" if cut == "products" else "simpler: only sums are cut off"
        fig.note(left - 0.075, 0.735, whose, weight="bold", color=INK)
    most = max(median for cut in found for median, _ in found[cut]["128"])
    share = f"{most:.1%}" if most > 0.001 else f"{most:.2%}"
    fig.title(f"Promoted every 128, the median error is at most {share}; if never, it grows with K", y=0.935)
    fig.note(0.02, 0.81, f"{data.capitalize()} numbers, 14 bits; error over the root mean square of all outputs. Dots: "
             "median.\nThin lines: up to the largest (never, every 128). "
             f"☆: largest in the report, nearly {published:.0%}.", linespacing=1.5)  # fmt: skip
    said = []
    for cut in CUTS:
        each = ", ".join(f"{n} {' to '.join(map(_two_digits, found[cut][n][at]))}" for n in LINES)
        said.append(f"cut off {cut}: {each}")
    fig.alt = f"Relative error of {data} numbers at K = 4096, median to largest; {'; '.join(said)}"
    return fig


def _two_digits(share: float) -> str:
    return f"{float(f'{100 * share:.2g}'):g}%"


def _errors(ax: Axes, lengths: Sequence[int], found: dict[str, list[At]]) -> None:
    """Draw the errors over K of one way to cut off."""
    ends = {}
    for name, color in LINES.items():
        median, most = zip(*found[name], strict=True)
        ax.plot(lengths, median, "o-", color=color, markersize=3.5, linewidth=2.8 if name == "128" else 1.6)
        if name in MAXIMA:
            x = [MAXIMA[name] * k for k in lengths]
            ax.vlines(x, median, most, color=color, linewidth=1)
            ax.plot(x, most, "_", color=color, markersize=6)
        ends[name if name == "never" else f"every {name}"] = (median[-1], color)
    rounding = [median for median, _ in found[OPERANDS]]
    ax.plot(lengths, rounding, color=MUTED, linestyle=DASHED, linewidth=1.4)
    ends["FP8 itself"] = (rounding[-1], MUTED)
    log_scale(ax, "x", lambda k: f"{k:,.0f}", lengths, base=2)
    log_scale(ax, "y", lambda e: f"{100 * e:g}%", [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1])
    ax.set(xlim=(0.75 * lengths[0], 1.2 * lengths[-1]), ylim=(6e-6, 2), xlabel="K")
    ax.tick_params(labelsize=10.5)
    ax.grid(axis="y", color=PALE, linewidth=0.6)
    label_ends(ax, ends, gap=0.34, lowest=-5.1, shift=4, size=10.5)
    highest = max(most for _, most in found["FP32"])
    ax.text(lengths[0], 8e-6, f"FP32: always below {10 ** math.ceil(math.log10(highest)) * 100:g}%", size=10)
