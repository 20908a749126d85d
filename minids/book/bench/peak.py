"""Peak memory of some training steps, each time in a process of its own: nothing that was there before can count."""

import subprocess
import sys
from collections.abc import Callable

from minids.device import keep_freed_memory, peak_bytes


def peak_of(*arguments: str) -> int:
    """Return by how many bytes a new process grows that runs `python -m minids.book.bench --peak ARGUMENTS`."""
    command = [sys.executable, "-m", "minids.book.bench", "--peak", *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def report_growth(work: Callable[[], object]) -> None:
    """Do the work and print by how many bytes this process has grown beyond what it held before."""
    keep_freed_memory()
    before = peak_bytes()
    work()
    print(peak_bytes() - before)
