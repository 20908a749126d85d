"""Peak memory of some training steps, each time in a process of its own, so that no earlier memory counts."""

import subprocess
import sys
from collections.abc import Callable

from minids.device import keep_freed_memory, peak_bytes


def peak_of(*arguments: str) -> int:
    """Return by how many bytes a new process grows that runs `python -m minids.book.bench --peak ARGUMENTS`."""
    command = [sys.executable, "-m", "minids.book.bench", "--peak", *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def report_growth(make_step: Callable[[], Callable[[], object]], steps: int = 3) -> None:
    """Make a step, take it a few times, and print by how many bytes this process grew meanwhile."""
    keep_freed_memory()
    before = peak_bytes()
    step = make_step()
    for _ in range(steps):
        step()
    print(peak_bytes() - before)
