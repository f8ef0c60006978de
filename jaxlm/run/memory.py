"""How the process holds on to memory."""

import ctypes
import os
import platform


def keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next one, instead of returning it to Linux and faulting it in again.

    XLA takes a CPU program's temporary buffers from `malloc` at every step; by default, large ones are mapped anew each
    time. What is kept is kept by each of malloc's arenas, which new threads choose in turn, so that there are no more of these
    than cores: with the eight a core that glibc would make, a run with many saves grew until each had seen the largest.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for option in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h: no limit
            mallopt(option, -1)
        mallopt(-8, max(2, os.cpu_count() or 1))  # M_ARENA_MAX
