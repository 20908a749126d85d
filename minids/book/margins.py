"""Checks whether what the chapters assert about live training holds for other seeds, too: `make margins`.

A chapter trains with one seed, on the reader's processor. Another processor rounds differently, which after a hundred
steps changes a result as much as another seed does. So such an assert needs a margin: over ten seeds, its mean slack
must be at least three standard deviations, or the chapter must not assert it.

Cells that train, or that use what was trained, are tagged `live`, and one of them sets `SEED = 0`. A chapter runs here
up to its last live cell, and then its live cells again with every other seed. The slack of `assert a < b - 1` is
b - 1 - a, and `b - 1` is its bound. Where nothing is compared by size, true is 1, false is 0, and the bound is 0.5.
"""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import json
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from minids.book.check import CHAPTERS
from minids.validation import require

SEEDS, LEAST = 10, 3.0
SIGNS = {ast.Lt: 1, ast.LtE: 1, ast.Gt: -1, ast.GtE: -1}


class Sides(NamedTuple):
    """What an assert compares, with one seed. It holds where the slack is above 0."""

    value: float
    bound: float
    slack: float


def facts_of(chapter: Path, seeds: int = SEEDS) -> dict[str, list[Sides]]:
    """Return what the live cells of a chapter assert, each with its sides for every seed; in a loop, the tightest.

    A failing assert does not stop the run; other errors do. Raises ValueError for what is not a finite number.
    """
    cells = list(_code_cells(chapter))
    live = [cell for cell in cells if cell[1]]
    last = max((place for place, cell in enumerate(cells) if cell[1]), default=-1)
    facts: dict[str, list[Sides]] = {}
    namespace: dict = {"__name__": "__main__"}
    for seed in range(seeds if live else 0):
        found: dict[str, Sides] = {}
        namespace["__note"] = lambda *sides, found=found: _note(found, *sides)
        for source, is_live in cells[: last + 1] if seed == 0 else live:
            tree = _WithSeed(seed).visit(ast.parse(source)) if is_live else ast.parse(source)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.chdir(chapter.parent):
                exec(compile(ast.fix_missing_locations(tree), chapter.name, "exec"), namespace)
        for text, sides in found.items():
            facts.setdefault(text, []).append(sides)
    return facts


def margin(sides: list[Sides]) -> float:
    """Return the mean slack in standard deviations; infinite where it is the same for all seeds."""
    slacks = [side.slack for side in sides]
    mean, sd = statistics.mean(slacks), statistics.stdev(slacks)
    return mean / sd if sd else float("inf") if mean > 0 else float("-inf")


def _code_cells(chapter: Path) -> Iterator[tuple[str, bool]]:
    for cell in json.loads(chapter.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            yield "".join(cell["source"]), "live" in cell["metadata"].get("tags", [])


def _note(found: dict[str, Sides], text: str, value, bound=0.5, sign: int = -1) -> None:
    sides = Sides(float(value), float(bound), sign * (float(bound) - float(value)))
    require(text, sides.slack, math.isfinite(sides.slack), "a finite difference")
    found[text] = min(sides, found.get(text, sides), key=lambda known: known.slack)


class _WithSeed(ast.NodeTransformer):
    """Gives SEED another value, and turns every assert into calls of `__note`."""

    def __init__(self, seed: int):
        self.seed = seed

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        if "SEED" in [target.id for target in node.targets if isinstance(target, ast.Name)]:
            node.value = ast.Constant(self.seed)
        return node

    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
        return ast.parse("\n".join(_notes(node.test))).body


def _notes(test: ast.expr) -> Iterator[str]:
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        for part in test.values:
            yield from _notes(part)
    elif isinstance(test, ast.Compare) and all(type(op) in SIGNS for op in test.ops):
        for (left, right), op in zip(itertools.pairwise([test.left, *test.comparators]), test.ops, strict=True):
            text = ast.unparse(ast.Compare(left, [op], [right]))
            yield f"__note({text!r}, {ast.unparse(left)}, {ast.unparse(right)}, {SIGNS[type(op)]})"
    else:
        yield f"__note({ast.unparse(test)!r}, {ast.unparse(test)})"


if __name__ == "__main__":
    print(f"{SEEDS} seeds, {torch.backends.cpu.get_cpu_capability()}; means ± standard deviations")
    narrow = False
    for chapter in [Path(name).resolve() for name in sys.argv[1:]] or sorted(CHAPTERS.glob("*.ipynb")):
        for text, sides in facts_of(chapter).items():
            columns = [f"{statistics.mean(c):.3g} ± {statistics.stdev(c):.2g}" for c in zip(*sides, strict=True)]
            print(f"{chapter.stem[:2]}  {text}")
            print("    {}, bound {}, slack {}: {:.1f}".format(*columns, margin(sides)), flush=True)
            narrow |= margin(sides) < LEAST
    sys.exit(f"A slack is less than {LEAST:g} standard deviations." if narrow else 0)
