"""The inline lane for names: calls on paths that the kernel answers from its caches, on the event loop's own thread.

How the kernel works. RESOLVE_CACHED makes openat2(2) fail with EAGAIN where it would have to ask a disk or a server for a name. That says
nothing of attributes: on a network filesystem, or FUSE, those in memory may be old, and opening a file asks the server.

What we do about it. The lane answers only for mounts that a worker has probed: it asked for attributes twice, the second time never from
memory alone, and did not sleep. Then they do not live on a server. All other answers are dropped, and a worker asks. The lane watches its
own calls: the first 100 after each new mount, then 1 in 16. A mount where a call slept is left to the workers, and then probed again. It
may have been an accident: an open sleeps when the table of fds grows, at 256, 512, 1024. So the mount is left for a second, and for twice
as long each further time, up to ten minutes. One with a server is left for ten minutes at once. A miss costs 1-5 us, so there is no
back-off.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from typing import TYPE_CHECKING

from trio_aio._lanes.inline import INLINE_LIMIT
from trio_aio._memory.exports import private_memory
from trio_aio._native import ffi, lib

if TYPE_CHECKING:
    import mmap

    from trio_aio._native import CData

__all__ = ("UNKNOWN", "NameLane")

WATCHED_FIRST = 100  # calls that are watched after a mount was found local
SAMPLE = 16  # of the later calls, one in so many is watched: watching costs 0.8 us
FIRST_LEFT_FOR, LEFT_FOR = 1.0, 600.0  # seconds that a mount is left to the workers after a call slept there, and at most
_MOST = lib.TAIO_MOUNTS

_ENOENT, _ENOSYS, _EPERM = -errno.ENOENT, -errno.ENOSYS, -errno.EPERM
UNKNOWN = lib.TAIO_NAME_UNKNOWN
_SLEPT = lib.TAIO_NAME_SLEPT

_stat = lib.taio_inline_stat
_fields = struct.Struct("=6Q4q3d3q3Q").unpack  # struct taio_status
_stat_result = os.stat_result


class NameLane:
    """Names that are in memory, on mounts that are known to be local. Only the event loop's thread uses it."""

    def __init__(self) -> None:
        self.on: bool = True  # False: the kernel has no openat2, or a sandbox forbids it
        self.slept: int = 0  # calls that slept all the same
        self._local: CData = ffi.new("struct taio_local *", {"sample": SAMPLE})
        self._status: CData = ffi.new("struct taio_status *")  # of the last `stat` that returned 0
        self._status_view: memoryview = memoryview(ffi.buffer(self._status))
        self.description: CData = ffi.new("struct taio_description *", {"buffered_fd": -1})  # of the last file that `open` has opened
        self._left: dict[int, float] = {}  # mounts that are left to the workers, and until when
        # Of mounts where a call slept: how long they were left the last time, and until when.
        self._spans: dict[int, tuple[float, float]] = {}
        self._link: CData = ffi.new("char[]", 4096)
        self.bytes_read: int = 0
        self._view: mmap.mmap | None = None  # for small files, made when it is first needed
        self._memory: CData = ffi.NULL

    @property
    def hits(self) -> int:
        """How many calls were answered."""
        return self._local.hits  # type: ignore[no-any-return]

    @property
    def misses(self) -> int:
        """How many calls were left to a worker."""
        return self._local.misses  # type: ignore[no-any-return]

    @property
    def last(self) -> int:
        """The result of the last call."""
        return self._local.last  # type: ignore[no-any-return]

    @property
    def local_mounts(self) -> int:
        """How many mounts were found to be local."""
        return self._local.count  # type: ignore[no-any-return]

    @property
    def left_mounts(self) -> int:
        """How many mounts are left to the workers."""
        return len(self._left)

    def stat(self, dir: int, path: bytes, flags: int, resolve: int = 0) -> int:
        """Describe a name for `status`. Return 0, or -ENOENT, which is final. After any other negative number a worker must ask."""
        answer: int = _stat(self._local, dir, path, flags, resolve, self._status)
        return answer if answer == 0 or answer == _ENOENT else self._judged(answer)

    def stat_open(self, fd: int) -> bool:
        """Describe an open fd for `status`. False: a worker must ask."""
        return self._judged(lib.taio_inline_fstat(self._local, fd, self._status)) == 0

    def status(self) -> os.stat_result:
        """Return what the last `stat` has found, as ``os.stat`` would."""
        return _stat_result(_fields(self._status_view))

    @property
    def mode(self) -> int:
        """st_mode of what the last `stat` has found."""
        return self._status.mode  # type: ignore[no-any-return]

    def access(self, dir: int, path: bytes, mode: int, flags: int) -> int:
        """Check permissions. Return as `stat`; -EACCES is final too."""
        return self._judged(lib.taio_inline_access(self._local, dir, path, mode, flags))

    def readlink(self, dir: int, path: bytes, resolve: int = 0) -> int | bytes:
        """Return the target of a link; otherwise as `stat`. -EINVAL is final too: it is no link."""
        n = self._judged(lib.taio_inline_readlink(self._local, dir, path, resolve, self._link, 4096))
        return ffi.unpack(self._link, n) if n > 0 else n

    def open(self, dir: int, path: bytes, flags: int, resolve: int) -> int:
        """Open a regular file, and describe it in `description`. Return an fd, or as `stat`."""
        return self._judged(lib.taio_inline_open(self._local, dir, path, flags, resolve, self.description))

    def read_file(self, dir: int, path: bytes, resolve: int = 0, offset: int = 0, size: int = -1) -> bytes | None:
        """Return `size` bytes of a regular file, fewer only at its end; -1: to the end; at most INLINE_LIMIT. None: a worker must."""
        if self._view is None:
            self._view = private_memory(INLINE_LIMIT + 4096)
            self._memory = ffi.from_buffer("char[]", self._view)
        most, whole = (INLINE_LIMIT, 1) if size < 0 else (size, 0)
        n = lib.taio_inline_read_file(self._local, dir, path, resolve, self._memory, most, offset, whole)
        if n < 0:
            n = self._judged(n)
            if n < 0:
                return None
        self.bytes_read += n
        return self._view[:n]

    def should_probe(self) -> bool:
        """Return whether a worker should find out if the mount of the last call is local: that call returned UNKNOWN."""
        key = self._local.key
        until = self._left.get(key)
        if until is None:
            return True
        if time.monotonic() < until:
            return False
        del self._left[key]
        return True

    def note_probe(self, key: int, slept: bool) -> None:
        """Note what a worker has found out about a mount."""
        if not key:
            return
        if slept:
            self._leave(key, LEFT_FOR)
            return
        local = self._local
        known = ffi.unpack(local.keys, local.count)
        if key in known or key in self._left:
            return
        if local.count == _MOST:  # forget the oldest; it is found again when it is used
            local.keys = [*known[1:], key]
        else:
            local.keys[local.count] = key
            local.count += 1
        local.first = WATCHED_FIRST

    def note_worker_succeeded(self) -> None:
        """Note that a worker could make a call that was EPERM here: a sandbox forbids openat2."""
        if self._local.last == _EPERM:
            self.on = False

    def _judged(self, answer: int) -> int:
        """Return the result of a call, and note what it says of the kernel and the mount."""
        local = self._local
        if answer == _SLEPT:
            answer = local.last
            self.slept += 1
            if local.key:
                self._leave_longer(local.key)
            elif answer != UNKNOWN:
                self.on = self.slept < WATCHED_FIRST  # no mount can be named: RESOLVE_CACHED itself sleeps here
        if answer == _ENOSYS:
            self.on = False
        return answer

    def _leave_longer(self, key: int) -> None:
        """Leave a mount where a call slept: twice as long as the last time, unless that is long ago."""
        span, until = self._spans.get(key, (0.0, 0.0))
        now = time.monotonic()
        span = min(2 * span, LEFT_FOR) if span and now - until < LEFT_FOR else FIRST_LEFT_FOR
        self._spans[key] = span, now + span
        self._leave(key, span)

    def _leave(self, key: int, span: float) -> None:
        local = self._local
        self._left[key] = time.monotonic() + span
        kept = [known for known in ffi.unpack(local.keys, local.count) if known != key]
        local.count = len(kept)
        local.keys = kept
