"""cachestat(2) and mincore(2): how many pages of a file are in the page cache.

Linux has cachestat since 6.5, and neither Python nor older C libraries have a function for it. Its number is the same on all machines
but Alpha. A seccomp filter may forbid it. On overlayfs it always says 0, because the pages belong to the file of a layer. There mincore
of a mapping is right. But mincore says of each page that it is cached, unless the process owns the file or may write to it. Nothing here
sleeps.
"""

from __future__ import annotations

import ctypes
import mmap
import os

__all__ = ("cached_pages", "has_cachestat")

_CACHESTAT = 451


class _Range(ctypes.Structure):
    _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _Counts(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted"))


def cached_pages(fd: int, offset: int, length: int) -> int | None:
    """Return how many pages of a range are in the page cache, None where that cannot be found out. offset: of a page."""
    counted = _by_cachestat(fd, offset, length)
    return counted if counted or not _may_ask_mincore(fd) else _by_mincore(fd, offset, length)


def _may_ask_mincore(fd: int) -> bool:
    return os.geteuid() in (0, os.fstat(fd).st_uid)


def _by_mincore(fd: int, offset: int, length: int) -> int | None:
    c = ctypes.CDLL(None)
    c.mmap.restype = ctypes.c_void_p
    c.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    c.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    c.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    address = c.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
    if address is None or address == ctypes.c_void_p(-1).value:
        return None
    try:
        pages = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
        return sum(page & 1 for page in pages.raw) if c.mincore(address, length, pages) == 0 else None
    finally:
        c.munmap(address, length)


def _by_cachestat(fd: int, offset: int, length: int) -> int | None:
    asked, found = _Range(offset, length), _Counts()
    if ctypes.CDLL(None).syscall(_CACHESTAT, fd, ctypes.byref(asked), ctypes.byref(found), 0) < 0:
        return None
    return int(found.cache)


def has_cachestat() -> bool:
    """Return whether the call works here."""
    fd = os.memfd_create("trio_aio doctor")
    try:
        return _by_cachestat(fd, 0, 0) is not None
    finally:
        os.close(fd)
