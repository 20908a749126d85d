"""The machine and this process: devices, the dtypes that are fast there, and memory.

**Dtypes.** Training multiplies matrices in bfloat16 where that is faster. Emulated bfloat16 is slower than float32, and
so is that of some processors with instructions for it: on one with AVX-512 BF16 a product took 1.3 to 1.9 times as long
as in float32, on another half as long. So it is measured, once.

**Memory.** Every training step allocates the same large blocks. By default glibc returns them to the system after each
step, and allocating them again costs a page fault per 4 KB. `keep_freed_memory` changes that for the whole process, so
it is not called on import but by the commands, and by the benchmarks for both of the programs compared.

**Waiting threads.** GOMP_SPINCOUNT is how often a waiting thread spins before it sleeps. `import minids` sets it unless
it is set already. Torch reads it on import, so minids must be imported before torch. Median times of a training step of
`mini` (1,024 tokens, two threads on two cores with AVX-512 BF16), in ms:

    spins                     10,000   5,000   3,000   2,000   1,000       0    one thread
    quiet, bfloat16              239     242     256     266     328     382           380
    beside a busy program        820     686     570     530     471     404           380
    quiet, float32, AVX2         205                     221     254     329           353
    beside a busy program        782                     489     443     405           344
"""

import ctypes
import functools
import os
import platform
import re
import resource
import time
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def choose_device(name: str | None = None) -> torch.device:
    """Return the named device, by default CUDA if there is one, else the CPU; ValueError if it is not available."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = name or ("cuda" if available["cuda"] else "cpu")
    if not available.get(name, False):
        usable = ", ".join(device for device, there in available.items() if there)
        raise ValueError(f"device {name!r} is not available here: choose {usable}.")
    return torch.device(name)


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """Return a context manager in which matrix products run in bfloat16, if `dtype` is "bfloat16".

    With "float32" and "fp8" products stay in float32, also within another autocast: those of a model in FP8 are its own
    (quantization/products.py).
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def best_dtype(device: torch.device) -> str:
    """Return "bfloat16" if the hardware multiplies in it, on a CPU clearly faster than in float32, else "float32"."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    native = torch.cpu._is_avx512_bf16_supported() if device.type == "cpu" else False
    faster = native and product_seconds("bfloat16") < 0.8 * product_seconds("float32")
    return "bfloat16" if faster else "float32"


@functools.cache
def product_seconds(dtype: str) -> float:
    """Return the seconds of a matrix product on this CPU, measured once: the least of some."""
    x, seconds = torch.ones(512, 512, dtype=getattr(torch, dtype)), []
    for _ in range(8):
        began = time.perf_counter()
        torch.mm(x, x)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def cpu_name() -> str:
    """Return the processor's name, or its architecture if the system gives no name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def total_memory(device: torch.device) -> int:
    """Return the memory of the GPU, or of the machine, in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def keep_freed_memory() -> None:
    """Make glibc keep large freed blocks for reuse. Does nothing with other C libraries."""
    if platform.libc_ver()[0] == "glibc":
        mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def peak_bytes() -> int:
    """Return the peak memory of this process since its program started, in bytes."""
    if STATUS.exists():  # Linux, where `ru_maxrss` would include the parent's
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
