"""Memory that was freed goes back to the system, as far as the C library is glibc."""

import ctypes
import os

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of malloc.h
LARGE_BLOCK = 8 << 20  # bytes: no step of a reply allocates that much
GROWN = 16 << 20  # bytes of the process, since the last look, from which it is worth while to look for free pages
_libc = ctypes.CDLL(None)


def settle() -> None:
    """To be called before there are threads.

    glibc gives a freed block back if it is larger than its threshold, which grows with what was freed before, up to 32 MB. Left
    to grow, one large picture leaves 130 MB of pieces in the process for ever. And it gives threads heaps of their own: every
    turn has four new threads, and what media and prompts leave in 16 heaps is 60 MB more than in one.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
        _libc.mallopt(M_ARENA_MAX, 1)


class FreePages:
    """Gives back pages that are free in the middle of the heap, after the process has grown: some ms, so not during a turn."""

    def __init__(self) -> None:
        self._kept = 0  # bytes of the process after the last look

    def trim(self) -> None:
        if resident() > self._kept + GROWN and hasattr(_libc, "malloc_trim"):
            _libc.malloc_trim(0)
            self._kept = resident()


def resident() -> int:
    """Bytes of this process that are in memory; 0 where nobody says."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
