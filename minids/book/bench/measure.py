"""Taking times in turn, on a machine that is never quite quiet.

The sides run one after the other, round after round, every second round in reverse, so that a machine
that slows down slows all of them. Each round gives a ratio, and the median of the ratios is the result.

A sample during which other programs were busy is *disturbed*: two threads that wait for each other lose
much more than the share that was taken from them. Disturbed samples are counted, and left out, of times
and of ratios, as long as three others remain.
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
    """`seconds` of one call. `others` is how many cores others kept busy meanwhile; None where the system won't say."""

    seconds: float
    others: float | None

    @property
    def disturbed(self) -> bool:
        return self.others is not None and self.others > DISTURBED


def alternate(
    sides: dict[str, Callable[[], object]], rounds: int, warmup: int = 2, least_seconds: float | None = None
) -> dict[str, list[Sample]]:
    """Return, for each side, a sample of every round."""
    least_seconds = LEAST_SECONDS if least_seconds is None else least_seconds
    repeats = {name: _warm_up(call, warmup, least_seconds) for name, call in sides.items()}
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for i in range(rounds):
        for name in list(sides)[:: 1 if i % 2 == 0 else -1]:
            samples[name].append(_sample(sides[name], repeats[name]))
    return samples


def summary(samples: list[Sample]) -> dict[str, float]:
    """Return median, fastest and slowest in milliseconds, and how many samples there are and how many disturbed."""
    quiet = [sample for sample in samples if not sample.disturbed]
    times = [sample.seconds * 1e3 for sample in (quiet if len(quiet) >= 3 else samples)]
    return {
        "median_ms": statistics.median(times),
        "fastest_ms": min(times),
        "slowest_ms": max(times),
        "samples": len(samples),
        "disturbed": sum(sample.disturbed for sample in samples),
    }


def ratio(slow: list[Sample], fast: list[Sample]) -> dict[str, float]:
    """Return how many times the time of `fast` is that of `slow`: median, lowest and highest of the rounds."""
    rounds = list(zip(slow, fast, strict=True))
    quiet = [pair for pair in rounds if not any(sample.disturbed for sample in pair)]
    ratios = [a.seconds / b.seconds for a, b in (quiet if len(quiet) >= 3 else rounds)]
    return {
        "median": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "rounds": len(ratios),
        "disturbed": len(rounds) - len(quiet),
    }


def _warm_up(call: Callable[[], object], times: int, least_seconds: float) -> int:
    """Call a few times, and return how many calls make a sample."""
    for _ in range(times - 1):
        call()
    began = time.perf_counter()
    call()
    return max(1, round(least_seconds / (time.perf_counter() - began)))


def _sample(call: Callable[[], object], repeats: int) -> Sample:
    busy, own, began = _busy_seconds(), time.process_time(), time.perf_counter()
    for _ in range(repeats):
        call()
    elapsed = time.perf_counter() - began
    others = None if busy is None else (_busy_seconds() - busy - (time.process_time() - own)) / elapsed
    return Sample(elapsed / repeats, others)


def _busy_seconds() -> float | None:
    """Return the seconds that all cores together have been busy since the machine started."""
    if not CPU_TIMES.exists():
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, CPU_TIMES.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
