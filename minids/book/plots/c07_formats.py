"""What the numbers of a format are: the bits of one, all of them over the magnitude, and tensors upon them (chapter 7).

A *binade* is a factor of two: the numbers from 2^k to below 2^(k + 1).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Polygon, Rectangle
from matplotlib.ticker import FixedLocator
from torch import Tensor

from minids.book.plots.diagram import FAINT, LINE, Diagram
from minids.book.plots.helpers import DASHED, log_scale
from minids.book.plots.style import INK, LAYERS, MUTED, PAPER, Picture, new_figure, styled, tint
from minids.quantization.formats import E4M3, E5M2, E5M6, Format, decode, round_to
from minids.validation import require, require_whole

BF16 = Format("BF16", 8, 7, "IEEE", torch.bfloat16)
COLORS = {"E4M3": LAYERS[1], "E5M2": LAYERS[2], "E5M6": LAYERS[4], "BF16": LAYERS[6], "FP32": LAYERS[0],
          "E2M1": LAYERS[7]}  # fmt: skip
FIELDS = {"sign": "#B4B7BD", "exponent": LAYERS[5], "mantissa": "#F2C45A"}
NAMED = {format.name: format for format in (E4M3, E5M2)}  # of those with 256 codes


# ---------------------------------------------------------------------------------------------------
# One code

LEFT, RIGHT, BIT = 14, 634, 40  # points: the margins, and the width of a bit


@styled()
def draw_code(code: int = 0b0_1000_101, format: str = "E4M3") -> Picture:
    """Draw the bits of a code in E4M3 or E5M2, which interval its exponent is, and its place in the interval.

    Raises ValueError for another format, and a code that is not from 0 to 255.
    """
    require("format", format, format in NAMED, " or ".join(NAMED))
    require_whole("code", code, at_least=0, at_most=255)
    one, d = _Code(code, NAMED[format]), Diagram(height=330)
    finding = f"Code {code} in {format} is {one.described()}"
    d.text(LEFT, 306, finding, size=14)
    _draw_bits(d, one)
    _draw_intervals(d, one)
    _draw_places(d, one)
    parts = f"sign {one.sign}, exponent bits {one.exponent}, mantissa bits {one.mantissa}"
    d.figure.alt = f"{finding}. {parts}: {one.formula(plain=True)}"
    return d.figure


class _Code:
    """A code of 8 bits, taken apart."""

    def __init__(self, code: int, format: Format):
        self.code, self.format, self.bits = code, format, f"{code:08b}"
        E, M = format.exponent_bits, format.mantissa_bits
        self.sign, self.exponent, self.mantissa = code >> 7, code >> M & (2**E - 1), code & (2**M - 1)
        self.value = decode(torch.tensor(code), format).item()

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.value))

    def described(self) -> str:
        """The value, and what is special about it."""
        if not self.is_finite:
            return "not a number (NaN)" if np.isnan(self.value) else f"{'−' * self.sign}infinity"
        size, shown = abs(self.value), _number(self.value).replace("≈", "about")
        if size == 0:
            return f"{'−' * self.sign}0, the subnormal number with mantissa 0"
        if size == self.format.largest:
            return f"{shown}, the number of largest magnitude"
        if size == self.format.smallest:
            return f"{shown}, a subnormal number of the smallest magnitude"
        return f"{shown}, a {'normal' if self.exponent else 'subnormal'} number"

    def formula(self, plain: bool = False) -> str:
        """The equation with the code's own numbers; `plain` is for reading aloud."""
        steps, bias = 2**self.format.mantissa_bits, self.format.bias
        if not self.is_finite:
            return (
                "all exponent bits are 1: no number"
                if self.format.special == "IEEE"
                else "all bits after the sign are 1: no number"
            )
        leading, power = ("1 + ", f"{self.exponent} - {bias}") if self.exponent else ("", f"1 - {bias}")
        mantissa, value = f"{leading}{self.mantissa}/{steps}", _number(self.value)
        if plain:
            return f"(-1)^{self.sign} · 2^({power}) · ({mantissa}) = {value}".replace("= ≈", "≈")
        equal, value = (r"\approx", value[2:]) if value.startswith("≈") else ("=", value)
        digits, _, exponent = value.replace("−", "-").replace(",", "{,}").partition("e")
        shown = rf"{digits} \cdot 10^{{{exponent}}}" if exponent else digits
        return rf"$(-1)^{self.sign} \cdot 2^{{{power}}} \cdot ({mantissa}) {equal} {shown}$"

    def places(self) -> list[float]:
        """The values of this sign and exponent, by mantissa; some may be infinity or NaN."""
        first = self.code - self.mantissa
        return decode(torch.arange(first, first + 2**self.format.mantissa_bits), self.format).tolist()


def _draw_bits(d: Diagram, one: _Code) -> None:
    fields = ["sign", *["exponent"] * one.format.exponent_bits, *["mantissa"] * one.format.mantissa_bits]
    x, places = float(LEFT), {}
    for bit, field in zip(one.bits, fields, strict=True):
        x += 10 if field not in places and places else 0
        places.setdefault(field, x)
        d.box(x, 236, BIT - 3, 38, bit, color=FIELDS[field], size=16, weight="bold")
        x += BIT
    numbers = {"sign": one.sign, "exponent": one.exponent, "mantissa": one.mantissa}
    for field, number in numbers.items():
        letter = {"sign": "s", "exponent": "e", "mantissa": "m"}[field]
        d.text(places[field], 221, field)
        d.text(places[field], 206, f"${letter} = {number}$")
    d.text(x + 14, 249, one.formula(), size=14 if one.is_finite else 11)


def _draw_intervals(d: Diagram, one: _Code) -> None:
    """Draw a cell for each exponent: it is an interval of magnitudes, and all but the first are a factor of two."""
    E, bias = one.format.exponent_bits, one.format.bias
    width = (RIGHT - LEFT) / 2**E
    d.text(LEFT, 181, "The exponent bits choose an interval; after the first two, each is twice as wide as the one "
           "before",
           color=MUTED)  # fmt: skip
    for exponent in range(2**E):
        x, chosen = LEFT + exponent * width, exponent == one.exponent
        color = FIELDS["exponent"] if chosen else FAINT
        d.ax.add_artist(Rectangle((x, 152), width - 2, 22, facecolor=color, edgecolor=LINE, linewidth=0.8))
        if exponent == 2**E - 1 and one.format.special == "IEEE":
            d.text(RIGHT, 136, "∞, NaN", ha="right", color=INK if chosen else MUTED)
        elif exponent % (1 if E <= 4 else 5) == 0 and exponent < 2**E - 2 * (E > 4):
            text = f"$2^{{{exponent - bias}}}$" if exponent else "0"
            d.text(x, 136, text, color=INK if chosen else MUTED)


def _draw_places(d: Diagram, one: _Code) -> None:
    """Draw the numbers of the chosen interval on a linear scale, and which of them the mantissa chooses."""
    E, M, bias = one.format.exponent_bits, one.format.mantissa_bits, one.format.bias
    cell = (RIGHT - LEFT) / 2**E
    x0, x1 = LEFT + 24, RIGHT - 24
    corners = [(LEFT + one.exponent * cell, 128), (LEFT + (one.exponent + 1) * cell - 2, 128), (x1, 60), (x0, 60)]
    d.ax.add_artist(Polygon(corners, facecolor=tint(FIELDS["exponent"], 0.22), edgecolor="none"))
    d.ax.plot([x0, x1], [60, 60], color=MUTED, linewidth=1)
    values = one.places()
    for mantissa, value in enumerate(values):
        x, chosen = x0 + (x1 - x0) * mantissa / 2**M, mantissa == one.mantissa
        size, face = (13, FIELDS["mantissa"]) if chosen else (7, PAPER)
        d.ax.plot([x], [60], "o", markersize=size, color=INK, markerfacecolor=face, markeredgewidth=1.2, zorder=4)
        d.text(x, 38, _number(value).removeprefix("≈ "), size=11, ha="center", weight="bold" if chosen else "normal",
               color=INK if chosen else MUTED)  # fmt: skip
    if np.isinf(values[0]):
        words = "Where all exponent bits are 1, mantissa 0 is infinity and the others are NaN (not a number)"
    else:
        spacing = 2.0 ** (max(one.exponent, 1) - bias - M)
        share = f", {spacing / abs(one.value):.1%} of the value" if one.is_finite and one.value else ""
        known = sum(map(np.isfinite, values))
        words = (
            f"The mantissa bits choose one of {known} numbers in it, equally spaced: {_number(spacing)} apart{share}"
        )
    d.text(LEFT, 14, words, color=MUTED)


def _number(value: float) -> str:
    """A value with at most four digits and a true minus; where that rounds it, with a sign that says so."""
    if not np.isfinite(value):
        return "NaN" if np.isnan(value) else "−∞" if value < 0 else "∞"
    size, minus = abs(value), "−" if np.signbit(value) else ""
    if 0 < size < 1e-3:
        text = f"{size:.2e}"
        digits, power = text.split("e")
        shown = f"{digits}e−{-int(power)}"
    else:
        text = f"{size:.4g}" if size < 1000 else f"{size:.0f}"
        shown = text if size < 1000 else f"{size:,.0f}"
    return f"{'' if float(text) == size else '≈ '}{minus}{shown}"


# ---------------------------------------------------------------------------------------------------
# All numbers

WINDOW = (-18, 18)  # powers of two that are drawn
LINES = (E4M3, E5M2, E5M6, BF16)


def positive_numbers(format: Format) -> np.ndarray:
    """Return all finite numbers above 0, in order."""
    values = decode(torch.arange(2 ** (format.bits - 1)), format).double().numpy()
    return np.sort(values[np.isfinite(values) & (values > 0)])


@styled()
def draw_number_lines() -> Picture:
    """Draw all numbers of E4M3, E5M2, E5M6 and BF16 over the magnitude, and the largest error of rounding to them."""
    fig = new_figure(height=6.4)
    upper, lower = (fig.add_axes((0.085, y, 0.895, 0.355)) for y in (0.515, 0.1))
    said = [_draw_line(upper, -row, format) for row, format in enumerate(LINES)]
    upper.set(ylim=(-3.25, 1.05), yticks=[])
    upper.spines["left"].set_visible(False)
    for format in LINES:
        _draw_rounding_error(lower, format)
    log_scale(lower, "y", lambda share: f"{share:.0%}" if share >= 0.01 else f"{share:.1%}", (1e-3, 1e-2, 1e-1, 1))
    lower.set(ylim=(1e-3, 1.4), xlabel="magnitude")
    for ax in (upper, lower):
        log_scale(ax, "x", lambda value: f"$2^{{{round(np.log2(value))}}}$", [2.0**k for k in range(-18, 19, 3)], 2)
        ax.set_xlim(*(2.0**k for k in WINDOW))
    upper.tick_params(labelbottom=False)
    fig.note(0.085, 0.482, "Largest error of rounding, relative to the number:")
    for x, y, becomes in ((2.0**-14.8, 0.62, "0"), (2.0**10.6, 0.42, f"{E4M3.largest:.0f}")):
        lower.text(x, y, f"E4M3 gives {becomes}", size=11, color=COLORS["E4M3"], va="center")
    spans = {f.name: np.log2(f.largest / f.smallest) for f in LINES}
    finding = (
        f"E5M2 spans {spans['E5M2']:.0f} factors of two and E4M3 only {spans['E4M3']:.0f}, "
        "but E4M3 rounds twice as finely"
    )
    fig.title(finding, y=0.945)
    fig.note(0.02, 0.9, "One line for each number. FP32 has BF16’s range and 65,536 numbers where BF16 has one.")
    fig.alt = f"{finding}. " + "; ".join(said)
    return fig


def _draw_line(ax: Axes, row: int, format: Format) -> str:
    """Draw the numbers of a format as strokes, and return what is written above them."""
    numbers, color, steps = positive_numbers(format), COLORS[format.name], 2**format.mantissa_bits
    seen = numbers[(numbers > 2.0 ** WINDOW[0]) & (numbers < 2.0 ** WINDOW[1])]
    ax.vlines(seen, row, row + 0.42, color=color, linewidth=0.9 if steps < 16 else 0.6)
    ax.text(-0.012, row + 0.2, format.name, transform=ax.get_yaxis_transform(), ha="right", va="center", color=color,
            weight="bold")  # fmt: skip
    low, high = int(np.log2(format.smallest)), f"{format.largest:,.0f}" if format.largest < 1e6 else "3.4e38"
    words = f"{steps} numbers in each factor of two, fewer below $2^{{{format.smallest_exponent}}}$"
    text = f"{words}; from $2^{{{low}}}$ to {high}"
    ax.text(2.0 ** WINDOW[0], row + 0.5, text, size=11, color=MUTED, va="bottom")
    return f"{format.name}: {steps} numbers in each factor of two, from 2^{low} to {high}"


def _draw_rounding_error(ax: Axes, format: Format) -> None:
    """Draw half the distance of the neighbours over the magnitude, 100% below the smallest number, and what is cut."""
    numbers, color = positive_numbers(format), COLORS[format.name]
    x = np.repeat(numbers, 2)[1:-1]
    error = np.repeat(np.diff(numbers) / 2, 2) / x
    x, error = np.append([2.0**-140, format.smallest / 2], x), np.append([1, 1], error)
    beyond = np.geomspace(format.largest / (1 - error[-1]), format.largest * 2.0**40, 400)  # saturates
    x, error = np.append(x, beyond), np.append(error, 1 - format.largest / beyond)
    ax.plot(x, error, color=color, linewidth=1.5)
    top, above = 2.0 ** -(format.mantissa_bits + 1), format.name in ("E5M2", "E5M6")
    ax.text(1, top * 1.15 if above else top / 2.3, format.name, size=11, color=color, ha="center", weight="bold",
            va="bottom" if above else "top")  # fmt: skip


# ---------------------------------------------------------------------------------------------------
# Tensors upon the number line

DRAWN = (-38, 12)  # powers of two


@styled()
def draw_magnitudes(tensors: Mapping[str, Tensor], power: int = 0) -> Picture:
    """Draw how the magnitudes of each kind of tensor, times 2^power, lie in the range of E4M3.

    Shares are of the numbers that are not 0. The error is that of rounding, as root mean squares.
    """
    fig = new_figure(height=6.2)
    shares = {}
    for row, (kind, tensor) in enumerate(tensors.items()):
        ax = fig.add_axes((0.03, 0.63 - 0.255 * row, 0.945, 0.165))
        shares[kind] = _draw_histogram(ax, tensor[tensor != 0].float() * 2.0**power)
        ax.text(0, 1.08, kind, size=12, transform=ax.transAxes, weight="bold")
        ax.text(1, 1.08, _fate(shares[kind]), size=11, transform=ax.transAxes, ha="right")
        ax.tick_params(labelbottom=row == len(tensors) - 1)
    ax.set_xlabel(
        f"magnitude times $2^{{{power}}}$ (each bar: the share within a factor of two; the outermost: all beyond, too)"
        if power
        else "magnitude (each bar: the share of the numbers within a factor of two)",
        size=11,
    )
    kind = list(tensors)[-1]
    lost = shares[kind]
    fate = max(("become 0", "saturate"), key=lost.__getitem__)
    finding = f"{_percent(lost[fate])} of the {kind} {fate} in E4M3: error {lost['error']:.1%}"
    fig.title((f"Times $2^{{{power}}}$, " if power else "Without a scale, ") + finding, y=0.945)
    _draw_key(fig)
    rows = "; ".join(f"{kind}: {_fate(share)}" for kind, share in shares.items())
    fig.alt = f"{f'Times 2^{power}' if power else 'Without a scale'}, {finding}. {rows}"
    return fig


def _draw_histogram(ax: Axes, numbers: Tensor) -> dict[str, float]:
    """Draw the share of the numbers in each binade, and return the shares that E4M3 does not hold, and the error."""
    rounded = round_to(numbers, E4M3)
    sizes = numbers.abs()
    lowest, highest = DRAWN
    powers = sizes.log2().floor().long().clamp(lowest, highest - 1)  # what lies beyond is in the last bars
    counts = powers.sub(lowest).bincount(minlength=highest - lowest).numpy() / len(numbers)
    for power, share in enumerate(counts, start=lowest):
        if share:
            ax.bar(power + 0.5, share, width=0.86, **_look(power))
    for power in (np.log2(E4M3.smallest / 2), np.log2(E4M3.largest)):
        ax.axvline(power, color=MUTED, linewidth=1, linestyle=DASHED)
    ax.set(xlim=DRAWN, ylim=(0, max(0.01, 1.12 * counts.max())), yticks=[])
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(FixedLocator(range(-36, 13, 6)))
    ax.xaxis.set_major_formatter(lambda power, _: f"$2^{{{power:.0f}}}$")
    subnormal = (rounded != 0) & (sizes < 2.0**E4M3.smallest_exponent)
    error = (rounded - numbers).double().norm() / numbers.double().norm()
    shares = {"become 0": rounded == 0, "are subnormal": subnormal, "saturate": sizes > E4M3.largest}
    return {name: share.double().mean().item() for name, share in shares.items()} | {"error": error.item()}


def _look(power: int) -> dict:
    """How a bar looks: hollow where E4M3 has only 0, pale where it has fewer bits, black beyond the largest number."""
    color = COLORS["E4M3"]
    if power >= np.ceil(np.log2(E4M3.largest)):
        return {"facecolor": INK}
    if power >= E4M3.smallest_exponent:
        return {"facecolor": color}
    if power >= np.log2(E4M3.smallest / 2):
        return {"facecolor": tint(color, 0.4)}
    return {"facecolor": PAPER, "edgecolor": INK, "linewidth": 1}


def _fate(shares: Mapping[str, float]) -> str:
    lost = ", ".join(f"{_percent(share)} {name}" for name, share in shares.items() if name != "error")
    return f"{lost}; error {shares['error']:.1%}"


def _percent(share: float) -> str:
    return "none" if share == 0 else "under 0.1%" if share < 5e-4 else f"{share:.1%}"


def _draw_key(fig: Picture) -> None:
    low, high = f"$2^{{{np.log2(E4M3.smallest / 2):.0f}}}$", f"{E4M3.largest:.0f}"
    texts = (
        f"below {low}: becomes 0",
        "subnormal: fewer bits",
        "normal: 4 significant bits",
        f"above {high}: saturates",
    )
    for x, power, text in zip((0.03, 0.28, 0.505, 0.77), (-20, -8, 0, 12), texts, strict=True):
        fig.add_artist(Rectangle((x, 0.886), 0.016, 0.022, transform=fig.transFigure, **_look(power)))
        fig.text(x + 0.023, 0.887, text, size=11, color=MUTED)
