"""Timing several sides in turn, on a machine where other programs run, too.

The sides run one after the other, round after round, every second round in reverse, so that a machine
that slows down slows all of them. Each round gives a ratio, and the median of the ratios is the result.

A sample during which other programs were busy is *disturbed*: two threads that wait for each other lose
much more time than the other programs take. Disturbed samples are counted, and left out of times and ratios
as long as three others remain.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LEAST_SECONDS = 0.3  # of a sample: what is faster runs several times
DISTURBED = 0.1  # cores that others used, on average over the sample
CPU_TIMES = Path("/proc/stat")


@dataclass(frozen=True)
class Sample:
    """`seconds` of one call. `others`: how many cores other programs kept busy meanwhile; None where unknown."""

    seconds: float
    others: float | None

    @property
    def disturbed(self) -> bool:
        return self.others is not None and self.others > DISTURBED


def alternate(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[Sample]]:
    """Return, for each side, a sample of every round."""
    for call in sides.values():
        call()  # the first call allocates memory
    repeats = {name: calls_per_sample(_sample(call, 1).seconds) for name, call in sides.items()}
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for i in range(rounds):
        for name in list(sides)[:: 1 if i % 2 == 0 else -1]:
            samples[name].append(_sample(sides[name], repeats[name]))
    return samples


def calls_per_sample(seconds: float) -> int:
    """Return how many calls make a sample that is long enough, if one takes `seconds`."""
    return max(1, round(LEAST_SECONDS / seconds))


def _sample(call: Callable[[], object], calls: int) -> Sample:
    before = clocks()
    for _ in range(calls):
        call()
    return sample_between(before, clocks(), calls)


Clocks = tuple[float, float, float | None]


def clocks() -> Clocks:
    """Return seconds on the wall, processor seconds of this process, and processor seconds of all (None if unknown)."""
    return time.perf_counter(), time.process_time(), busy_seconds()


def sample_between(before: Clocks, after: Clocks, calls: int) -> Sample:
    """Return the sample of some calls that were made between two readings of the clocks."""
    elapsed, own = after[0] - before[0], after[1] - before[1]
    others = None if before[2] is None else (after[2] - before[2] - own) / elapsed
    return Sample(elapsed / calls, others)


def busy_seconds(times: Path = CPU_TIMES) -> float | None:
    """Return the seconds that all cores together have been busy since the machine started; None where unknown."""
    if not times.exists():
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, times.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def summary(samples: list[Sample]) -> dict[str, float]:
    """Return median, fastest and slowest in milliseconds, and how many samples there are and how many disturbed."""
    used, disturbed = _undisturbed([(sample,) for sample in samples])
    times = [sample.seconds * 1e3 for (sample,) in used]
    return {
        "median_ms": statistics.median(times),
        "fastest_ms": min(times),
        "slowest_ms": max(times),
        "samples": len(samples),
        "disturbed": disturbed,
    }


def ratio(slow: list[Sample], fast: list[Sample]) -> dict[str, float]:
    """Return how many times the time of `fast` is that of `slow`: median, lowest and highest of the rounds."""
    used, disturbed = _undisturbed(list(zip(slow, fast, strict=True)))
    ratios = [a.seconds / b.seconds for a, b in used]
    return {
        "median": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "rounds": len(ratios),
        "disturbed": disturbed,
    }


def _undisturbed(rounds: list[tuple[Sample, ...]]) -> tuple[list[tuple[Sample, ...]], int]:
    """Return the rounds to use, the undisturbed ones if there are at least three, and how many were disturbed."""
    quiet = [samples for samples in rounds if not any(sample.disturbed for sample in samples)]
    return quiet if len(quiet) >= 3 else rounds, len(rounds) - len(quiet)
