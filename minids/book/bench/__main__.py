"""`make bench`: measure, write figures/data/bench.json, and print the table of the README."""

import argparse
import json
import os
import sys
from pathlib import Path

import torch

from minids.book.bench import decoding, experts, fp8, growth, speculation, training
from minids.book.bench.measure import CPU_TIMES
from minids.book.bench.peak import report_growth
from minids.book.bench.table import table
from minids.device import best_dtype, cpu_name, keep_freed_memory
from minids.files import write_atomically

TARGET = Path(__file__).parents[3] / "figures" / "data" / "bench.json"
PARTS = ("training", "decoding", "speculation", "experts", "fp8", "growth")
CELLS = [(1, 512), (1, 2048), (8, 512), (8, 2048)]  # batch, context
# For `peak_of`: how a process of its own makes the step that the words of the command line name.
PEAK_STEPS = {
    "training": lambda side, name, *setting: training.make_step(side, name, setting),
    "growth": lambda curve, value: growth.CURVES[curve].step(int(value)),
}


def main(quick: bool, parts: list[str]) -> None:
    """Measure and print the tables; unless `quick`, keep each part in figures/data as soon as it is measured."""
    keep_freed_memory()
    data = json.loads(TARGET.read_text()) if TARGET.exists() and not quick else {}
    data["environment"] = environment()
    for part in parts:
        print(f"measuring {part} …", file=sys.stderr, flush=True)
        data[part] = measure(part, quick)
        if not quick:
            write_atomically(TARGET, json.dumps(data, indent=1) + "\n")
    if set(PARTS) - {"growth"} <= data.keys():
        print(table(data))
    if not quick:
        print(f"wrote {TARGET}: `make figures` draws it.")


def measure(part: str, quick: bool) -> list[dict]:
    """Return the results of one part."""
    threads = [1, 2] if (os.cpu_count() or 1) > 1 else [1]
    names = ["16 experts"] if quick else ["16 experts", "64 experts", "mini"]
    last, rounds = threads[-1:] if quick else threads, 3 if quick else 5
    if part == "training":
        return training.measure(names, last, rounds, with_memory=not quick)
    if part == "decoding":
        return decoding.measure("16 experts", CELLS[1:2] if quick else CELLS, [1] if quick else threads, rounds)
    if part == "speculation":
        return speculation.measure([1] if quick else threads, rounds)
    if part == "experts":
        return experts.measure(last, rounds)
    if part == "fp8":
        return fp8.measure(rounds)
    return growth.measure(1, rounds=3)


def environment() -> dict:
    """Return what the times depend on."""
    import transformers

    return {
        "cpu": cpu_name(), "cores": os.cpu_count(), "torch": torch.__version__,
        "transformers": transformers.__version__, "dtype": best_dtype(torch.device("cpu")),
        "tells_others": CPU_TIMES.exists(),
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="the main figures only, in under two minutes; writes no file"
    )
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="measure this part, and keep the others' results"
    )
    parser.add_argument("--peak", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        import transformers  # noqa: F401  (for both sides, so that its memory is not counted)

        what, *rest = arguments.peak
        report_growth(lambda: PEAK_STEPS[what](*rest))
    else:
        main(arguments.quick, arguments.only or [part for part in PARTS if part != "growth" or not arguments.quick])
