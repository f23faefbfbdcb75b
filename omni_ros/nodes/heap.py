"""Memory that was freed goes back to the system, as far as the C library is glibc."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of malloc.h
LARGE_BLOCK = 8 << 20  # bytes: no step of a reply allocates that much
_libc = ctypes.CDLL(None)


def settle() -> None:
    """To be called before there are threads.

    glibc gives a freed block back if it is larger than its threshold, which grows with what was freed before, up to 32 MB. Left
    to grow, one large picture leaves 130 MB of pieces in the process for ever; fixed, it also gives back all but 128 KB of the
    heap's end at once, and each picture of a camera would ask for its pages again, so that is fixed, too. And it gives
    threads heaps of their own: every turn has four new threads, and what media and prompts leave in 16 heaps is 60 MB more
    than in one.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
        _libc.mallopt(M_ARENA_MAX, 1)
        _libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGE_BLOCK)


def give_back() -> None:
    """What was freed below something that is still used: glibc itself gives back only what is free above everything.

    A flood of texts of 1.5 MB left 33 MB there. 40 to 500 us; what is used again must be asked for again, so not within a turn.
    """
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
