"""A DDS domain that no other test session on this machine uses."""

import fcntl
import os
import tempfile
from pathlib import Path

LAST = 101  # above it, the domain's ports are among those that Linux gives to outgoing connections
_locks = []  # open for as long as this process lives


def own_domain() -> str:
    """The number of a domain that is this process's until it ends: a file is locked for it."""
    for number in range(1, LAST + 1):
        domain = 1 + (os.getpid() + number) % LAST
        lock = (Path(tempfile.gettempdir()) / f"omni_ros_domain_{domain}").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _locks.append(lock)
        return str(domain)
    raise RuntimeError(f"all {LAST} domains are in use: is an old test session still running?")
