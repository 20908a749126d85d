"""Devices and dtypes against what the system says, and the memory of a process as a child of this one sees it."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minids.device import best_dtype, choose_device, peak_bytes

CHILD = """
import json, os, torch
from resource import RUSAGE_SELF, getrusage
from minids.device import keep_freed_memory, peak_bytes

def faults(rounds):  # blocks of 40 MB, larger than any that glibc keeps of its own accord: 9,766 pages each
    before = getrusage(RUSAGE_SELF).ru_minflt
    for _ in range(rounds): torch.ones(10**7)
    return getrusage(RUSAGE_SELF).ru_minflt - before

peaks, (reading, writing) = [peak_bytes()], os.pipe()
if os.fork() == 0:  # a process that keeps nothing
    os.write(writing, str(faults(10)).encode())
    os._exit(0)
keep_freed_memory()
faults(20)
told = {"given back": int(os.read(reading, 20)), "kept": faults(10)}
torch.ones(2**27)
print(json.dumps(told | {"peaks": [*peaks, peak_bytes()]}))
"""


@pytest.fixture(scope="module")
def child():
    """What a process tells whose parent, this one, has held a gigabyte."""
    torch.ones(2**28)
    return json.loads(subprocess.run([sys.executable, "-c", CHILD], capture_output=True, check=True).stdout)


def test_a_process_does_not_inherit_the_peak_of_its_parent(child):
    assert child["peaks"][0] < 2**30 <= peak_bytes()


def test_the_peak_stays_when_memory_is_freed(child):
    assert child["peaks"][1] > max(child["peaks"][0], 2**29)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_freed_memory_is_kept_and_asked_for_again_without_page_faults(child):
    assert child["given back"] > 90_000
    assert child["kept"] < 1000


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the system does not say what the processor can do")
@pytest.mark.parametrize("seconds", [{"bfloat16": 1, "float32": 2}, {"bfloat16": 2, "float32": 2}])
def test_bfloat16_is_chosen_only_where_the_cpu_multiplies_in_it_and_faster(seconds, monkeypatch):
    monkeypatch.setattr("minids.device.product_seconds", seconds.get)
    native = "avx512_bf16" in Path("/proc/cpuinfo").read_text().split()
    faster = native and seconds["bfloat16"] < seconds["float32"]
    assert best_dtype(torch.device("cpu")) == ("bfloat16" if faster else "float32")
    assert best_dtype(torch.device("mps")) == "float32"


def test_a_device_that_is_not_there_is_refused_with_those_that_are():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device() == torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="device 'abacus' is not available here: choose cpu"):
        choose_device("abacus")


@pytest.mark.skipif(platform.system() != "Linux", reason="torch has another OpenMP there")
@pytest.mark.parametrize(
    ("reader_s", "spins"), [({}, 2000), ({"GOMP_SPINCOUNT": "7"}, 7), ({"OMP_WAIT_POLICY": "passive"}, 0)]
)
def test_threads_of_torch_spin_as_long_as_minids_says_unless_the_reader_does(reader_s, spins):
    """The oracle is OpenMP itself, which tells its settings when it is loaded."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    told = subprocess.run(
        [sys.executable, "-c", "import minids, torch"], capture_output=True, text=True, check=True,
        env=environment | reader_s | {"OMP_DISPLAY_ENV": "verbose"},
    ).stderr  # fmt: skip
    assert f"GOMP_SPINCOUNT = '{spins}'" in told
