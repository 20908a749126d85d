"""The peak of a process's memory, and that freed memory is kept."""

import platform
import subprocess
import sys

import pytest
import torch

from minids.device import peak_bytes


def test_the_peak_stays_when_memory_is_freed():
    before = peak_bytes()
    torch.ones(3 * before // 4)
    assert peak_bytes() > 3 * before


def test_a_process_does_not_inherit_the_peak_of_its_parent():
    held = torch.ones(2**30 // 4)
    print_peak = "from minids.device import peak_bytes; print(peak_bytes())"
    child = subprocess.run([sys.executable, "-c", print_peak], capture_output=True, text=True, check=True)
    assert int(child.stdout) < 2**30 <= peak_bytes()
    assert len(held)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_freed_memory_is_kept_and_asked_for_again_without_page_faults():
    """Blocks of 64 MB, larger than any that glibc keeps of its own accord: 16,384 pages each."""

    def faults(first: str) -> int:
        lines = [
            "import torch", "from resource import getrusage", "from minids.device import keep_freed_memory",
            first, "for _ in range(5): torch.ones(2**24)", "before = getrusage(0).ru_minflt",
            "for _ in range(20): torch.ones(2**24)", "print(getrusage(0).ru_minflt - before)",
        ]  # fmt: skip
        child = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
        return int(child.stdout)

    assert faults("keep_freed_memory()") < 1000
    assert faults("") > 100_000
