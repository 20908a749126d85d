"""Numbers with units, and tables, as the command line, the pictures and the README print them."""

from collections.abc import Sequence

GIB = 2**30  # bytes
COUNT = ("", "K", "M", "B", "T")  # for parameters and dollars: thousand, million, billion, trillion
SI = ("", "k", "M", "G", "T", "P", "E")


def in_unit(value: float, base: int, units: tuple[str, ...]) -> tuple[float, str]:
    """Return the value and the largest unit in which it is at least 1. Each unit is `base` times the one before."""
    for unit in units[:-1]:
        if value < base:
            return value, unit
        value /= base
    return value, units[-1]


def short(number: float, units: tuple[str, ...] = COUNT, zeros: bool = True) -> str:
    """Return a number with three digits and its unit: 671B, 36.6B, 4.00M; without `zeros`, 4M.

    A number below 1,000 is rounded to an integer.
    """
    value, unit = in_unit(float(f"{number:.3g}"), 1000, units)
    if not unit:
        return f"{number:.0f}"
    return f"{value:#.3g}{unit}" if zeros and value < 100 else f"{value:g}{unit}"


def in_k(tokens: float) -> str:
    """Return a context length as usually written: 512, 4K, 128K; 1K is 1,024 tokens."""
    return "{:.0f}{}".format(*in_unit(tokens, 1024, ("", "K")))


def in_gib(size: float) -> str:
    """Return the label of a size in GiB on an axis: 0.5 GiB, 1,000 GiB."""
    return f"{size:,g} GiB"


def from_to(interval: Sequence[float], form: str = ".1%") -> str:
    """Return an interval as text, each end in the given format: 14.5% to 17.5%."""
    return f"{interval[0]:{form}} to {interval[1]:{form}}"


def markdown_table(lines: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table with the first line as header; the first column is aligned to the left, others right."""
    header, *rows = lines
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
