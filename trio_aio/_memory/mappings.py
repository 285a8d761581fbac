"""Whose memory a caller's buffer is, and whether it belongs to a mapped file.

How the kernel works. A page of a mapped file is read from its disk or server when it is first touched, however long that takes. If another
program has made the file shorter, touching the page is SIGBUS, and the process dies. Memory that belongs to no file ("anonymous") does
neither. Only /proc/self/maps says which is which.

What we do about it. Memory that may belong to a file is touched by workers only, and the kernel makes the copies from and to it: then a
page that is gone is EFAULT. For most buffers the type of the object at the end of the chain of views says that the memory is anonymous:
bytes, bytearray, arrays of NumPy. For any other (``mmap.mmap``, which may be either) the kernel is asked, once per object that takes a weak
reference: by one ioctl(2), or, before Linux 6.11, by a worker that reads /proc/self/maps. Until it has, the memory counts as a file's.

`exports` calls this for each buffer, and the engine lets a worker answer the questions that are left.
"""

from __future__ import annotations

import array
import ctypes
import io
import mmap
import os
import sys
import threading
import weakref
from typing import Any

__all__ = ("Question", "is_anonymous", "look_up", "owner_of")

# Types whose objects have their bytes on the heap. The last is that of the object behind a view of a BytesIO.
_ON_HEAP = frozenset({bytes, bytearray, array.array, type(memoryview(io.BytesIO().getbuffer()).obj)})
_CTYPES: Any = ctypes.c_int.__mro__[-2]
# Ranges of one object that are remembered: more than one where an object has no buffer of its own, only arrays of it have.
_MOST_RANGES = 64

_UNKNOWN = object()


def owner_of(buffer: Any) -> Any:
    """Return the object that the memory of a buffer belongs to, which may be a mapped file's. None: the memory is anonymous."""
    while type(buffer) not in _ON_HEAP:
        if type(buffer) is memoryview:
            # None: C code has made it of an address.
            buffer = _UNKNOWN if buffer.obj is None else buffer.obj
        elif type(buffer) is mmap.mmap:
            return buffer
        elif isinstance(buffer, _arrays or _numpy_arrays()):
            base: Any = buffer.base
            if base is None:
                return None if buffer.flags.owndata else buffer
            buffer = base
        elif isinstance(buffer, _CTYPES):
            if buffer._b_base_ is None:
                return None if buffer._b_needsfree_ else buffer
            buffer = buffer._b_base_
        else:
            return buffer
    return None


# The classes of NumPy that have memory, once the program has imported it.
_arrays: tuple[Any, ...] = ()


def _numpy_arrays() -> tuple[Any, ...]:
    global _arrays
    numpy: Any = sys.modules.get("numpy")
    if hasattr(numpy, "generic"):
        _arrays = numpy.ndarray, numpy.generic
    return _arrays


class Question:
    """Whether a range of memory belongs to a file. When a worker answers, the memory may be gone."""

    def __init__(self, known: _Known, key: _Key, address: int, length: int) -> None:
        self._known: _Known = known
        self._key: _Key = key
        self.address: int = address
        self.length: int = length

    def take(self) -> bool:
        """Return whether the caller is to ask a worker: True for the first."""
        with _lock:
            if self._key in self._known:
                return False
            if len(self._known) >= _MOST_RANGES:
                self._known.clear()
            self._known[self._key] = None
            return True

    def answer(self, result: int) -> None:
        """Remember what was found: 0: anonymous; 1: of a file; negative: the memory is gone, so ask again if it comes back."""
        with _lock:
            if result < 0:
                self._known.pop(self._key, None)
            else:
                self._known[self._key] = result == 1


# A range (address, length) of an object; or None for all that it will ever have.
_Key = tuple[int, int] | None
# Of one object: whether each range belongs to a file. None: a worker was asked.
_Known = dict[_Key, bool | None]
# What is known of the objects that live, by their ids. Event loops in several threads share it.
_owners: dict[int, tuple[weakref.ref[Any], _Known]] = {}
# Held to change what is known. Reentrant: the collector may call `_forget` inside.
_lock = threading.RLock()


def _known_of(owner: object) -> _Known:
    """Return what is known of an object. TypeError if it takes no weak reference."""
    number = id(owner)
    entry = _owners.get(number)
    if entry is not None and entry[0]() is owner:
        return entry[1]

    def forget(_: object) -> None:
        with _lock:
            _owners.pop(number, None)

    reference = weakref.ref(owner, forget)
    with _lock:
        return _owners.setdefault(number, (reference, {}))[1]


def _start_afresh() -> None:
    """Forget all in a child of fork: workers that were asked do not answer there, and another thread may have held the lock."""
    global _lock
    _lock = threading.RLock()
    _owners.clear()


os.register_at_fork(after_in_child=_start_afresh)


def is_anonymous(owner: mmap.mmap) -> bool:
    """Return whether a mapping is known to belong to no file."""
    entry = _owners.get(id(owner))
    return entry is not None and entry[0]() is owner and entry[1].get(None) is False


def look_up(owner: object, address: int, length: int) -> tuple[bool, Question | None]:
    """Return whether a range of an object's memory counts as a file's, and the question if that is not known.

    A ``mmap.mmap`` has one mapping for all its life, wherever `resize` moves it. Others are remembered by range.
    """
    key = None if type(owner) is mmap.mmap else (address, length)
    try:
        known = _known_of(owner)
    except TypeError:  # it takes no weak reference: what is found is forgotten
        return True, Question({}, key, address, length)
    mapped = known.get(key, _UNKNOWN)
    return mapped is not False, Question(known, key, address, length) if mapped is _UNKNOWN else None
