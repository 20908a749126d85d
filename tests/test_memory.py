"""The peak of a process's memory; that freed memory is kept is a matter of speed alone."""

import subprocess
import sys

import torch

from minids.memory import keep_freed_memory, peak_bytes


def test_the_peak_stays_when_memory_is_freed():
    before = peak_bytes()
    torch.ones(3 * before // 4)
    assert peak_bytes() > 3 * before


def test_a_process_does_not_inherit_the_peak_of_its_parent():
    held = torch.ones(2**30 // 4)
    print_peak = "from minids.memory import peak_bytes; print(peak_bytes())"
    child = subprocess.run([sys.executable, "-c", print_peak], capture_output=True, text=True, check=True)
    assert int(child.stdout) < 2**30 <= peak_bytes()
    assert len(held)


def test_keeping_freed_memory_changes_no_result():
    x = torch.randn(300, 300)
    before = x @ x
    keep_freed_memory()
    assert torch.equal(x @ x, before)
