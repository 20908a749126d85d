"""A plugin of pytest for the notebooks: a kernel that died before it was ready is started again.

A kernel's ports are chosen before it starts, and another process, such as the kernel of the notebook that is tested at
the same time, can take one in between.
"""

from collections.abc import Callable
from contextlib import suppress

from nbval import kernel

TIMES = 3


def again(start: Callable) -> Callable:
    """Return `start`, tried up to TIMES times."""

    def start_new_kernel(**options):
        for _ in range(TIMES - 1):
            with suppress(RuntimeError):
                return start(**options)
        return start(**options)

    return start_new_kernel


kernel.start_new_kernel = again(kernel.start_new_kernel)
