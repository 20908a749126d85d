"""The memory of this process: keep what is freed, and how much was needed at most.

A training step asks for the same large blocks again and again. By default glibc gives them back to the
system each time, and getting them again costs a page fault for every 4 KB. Such settings belong to a
whole process, so no import makes them: the commands do, and the benchmarks for both sides.
"""

import ctypes
import platform
import re
import resource
from pathlib import Path

STATUS = Path("/proc/self/status")


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks; elsewhere nothing changes."""
    if platform.libc_ver()[0] == "glibc":
        mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def peak_bytes() -> int:
    """Return the most memory that this process has held since its program started, in bytes."""
    if STATUS.exists():  # Linux; its `ru_maxrss` would begin with what the parent held
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
