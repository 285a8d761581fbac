"""cachestat(2): how many pages of a file are in the page cache.

Linux has the call since 6.5, and neither Python nor older C libraries have a function for it. Its number is the same on all machines
but Alpha. A seccomp filter may forbid it. Nothing here sleeps.
"""

from __future__ import annotations

import ctypes
import os

__all__ = ("cached_pages", "has_cachestat")

_CACHESTAT = 451


class _Range(ctypes.Structure):
    _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _Counts(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted"))


def cached_pages(fd: int, offset: int, length: int) -> int | None:
    """Return how many pages of a range are in the page cache, None where the call is missing or forbidden."""
    asked, found = _Range(offset, length), _Counts()
    if ctypes.CDLL(None).syscall(_CACHESTAT, fd, ctypes.byref(asked), ctypes.byref(found), 0) < 0:
        return None
    return int(found.cache)


def has_cachestat() -> bool:
    """Return whether the call works here."""
    fd = os.memfd_create("trio_aio doctor")
    try:
        return cached_pages(fd, 0, 0) is not None
    finally:
        os.close(fd)
