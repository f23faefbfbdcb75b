"""Memory that was freed goes back to the system."""

import subprocess
import sys
from pathlib import Path

import pytest

from omni_ros.nodes.heap import FreePages, resident

ROOT = Path(__file__).parents[1]
SCRIPT = """
from omni_ros.nodes import heap
import ctypes
heap.settle()
pages, libc = heap.FreePages(), ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
pages.trim()
before = heap.resident()
blocks = [libc.malloc(60000) for _ in range(2000)]
for block in blocks:
    ctypes.memset(ctypes.c_void_p(block), 1, 60000)
for block in blocks[:-1]:  # the last one keeps the heap from shrinking from its end
    libc.free(block)
kept = heap.resident() - before
pages.trim()
print(kept >> 20, (heap.resident() - before) >> 20)
"""


def test_free_pages_in_the_middle_of_the_heap_are_given_back():
    if not sys.platform.startswith("linux") or not resident():
        pytest.skip("no glibc")
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    kept, stays = map(int, done.stdout.split())
    assert kept > 100 and stays < 10


def test_nothing_is_done_while_the_process_has_not_grown(monkeypatch):
    pages, calls = FreePages(), []
    monkeypatch.setattr("omni_ros.nodes.heap._libc", type("Libc", (), {"malloc_trim": staticmethod(calls.append)}))
    sizes = iter([200 << 20, 180 << 20, 190 << 20, 195 << 20, 200 << 20, 185 << 20])
    monkeypatch.setattr("omni_ros.nodes.heap.resident", lambda: next(sizes))
    pages.trim()  # grown from nothing; 180 stay
    pages.trim()
    pages.trim()
    assert calls == [0]
    pages.trim()  # 20 more than stayed
    assert calls == [0, 0]
