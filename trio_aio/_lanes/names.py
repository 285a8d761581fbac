"""The inline lane for names: calls on paths that the kernel answers from its caches, on the event loop's own thread.

How the kernel works. RESOLVE_CACHED makes openat2(2) fail with EAGAIN where it would have to ask a disk or a server for a name. That says
nothing of attributes: on a network filesystem, or FUSE, those in memory may be old, and opening a file asks the server.

What we do about it. The lane answers only for mounts that a worker has probed: it asked for attributes twice, the second time never from
memory alone, and did not sleep. Then they do not live on a server. All other answers are dropped, and a worker asks. The lane watches its
own calls: the first 100 after each new mount, then 1 in 16. A mount where a call slept is left to the workers for ten minutes, and then
probed again. A miss costs 1-5 us, so there is no back-off.
"""

from __future__ import annotations

import errno
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
LEFT_FOR = 600.0  # seconds that a mount is left to the workers after a call slept there
_MOST = lib.TAIO_MOUNTS

_ENOENT, _ENOSYS, _EPERM, _EACCES, _EINVAL = -errno.ENOENT, -errno.ENOSYS, -errno.EPERM, -errno.EACCES, -errno.EINVAL
UNKNOWN = lib.TAIO_NAME_UNKNOWN


class NameLane:
    """Names that are in memory, on mounts that are known to be local. Only the event loop's thread uses it."""

    def __init__(self) -> None:
        self.on: bool = True  # False: the kernel has no openat2, or a sandbox forbids it
        self.hits: int = 0
        self.misses: int = 0
        self.slept: int = 0  # calls that slept all the same
        self.record: CData = ffi.new("struct taio_stat *")  # of the last `stat` that returned 0
        self._local: CData = ffi.new("struct taio_local *")
        self._left: dict[int, float] = {}  # mounts that are not local, and until when
        self._watch: int = 0
        self._link: CData = ffi.new("char[]", 4096)
        self.last: int = 0  # the result of the last call
        self.bytes_read: int = 0
        self._view: mmap.mmap | None = None  # for small files, made when it is first needed
        self._memory: CData = ffi.NULL

    @property
    def local_mounts(self) -> int:
        """How many mounts were found to be local."""
        return self._local.count  # type: ignore[no-any-return]

    @property
    def left_mounts(self) -> int:
        """How many mounts are left to the workers."""
        return len(self._left)

    def stat(self, dir: int, path: bytes, flags: int, resolve: int = 0) -> int:
        """Describe a name in `record`. Return 0, or -ENOENT, which is final. After any other negative number a worker must ask."""
        local = self._begin()
        return self._end(lib.taio_inline_stat(local, dir, path, flags, resolve, self.record))

    def access(self, dir: int, path: bytes, mode: int, flags: int) -> int:
        """Check permissions. Return as `stat`; -EACCES is final too."""
        local = self._begin()
        return self._end(lib.taio_inline_access(local, dir, path, mode, flags), _EACCES)

    def readlink(self, dir: int, path: bytes, resolve: int = 0) -> int | bytes:
        """Return the target of a link; otherwise as `stat`. -EINVAL is final too: it is no link."""
        local = self._begin()
        n = self._end(lib.taio_inline_readlink(local, dir, path, resolve, self._link, 4096), _EINVAL)
        return ffi.unpack(self._link, n) if n > 0 else n

    def open(self, dir: int, path: bytes, flags: int, resolve: int, description: CData) -> int:
        """Open and describe a regular file. Return an fd, or as `stat`."""
        local = self._begin()
        return self._end(lib.taio_inline_open(local, dir, path, flags, resolve, description))

    def read_file(self, dir: int, path: bytes, resolve: int = 0) -> bytes | None:
        """Return the bytes of a regular file, at most INLINE_LIMIT. None: a worker must read it."""
        if self._view is None:
            self._view = private_memory(INLINE_LIMIT + 4096)
            self._memory = ffi.from_buffer("char[]", self._view)
        local = self._begin()
        n = self._end(lib.taio_inline_read_file(local, dir, path, resolve, self._memory, INLINE_LIMIT + 1))
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
            self._leave(key)
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
        self._watch = WATCHED_FIRST

    def note_worker_succeeded(self) -> None:
        """Note that a worker could make a call that was EPERM here: a sandbox forbids openat2."""
        if self.last == _EPERM:
            self.on = False

    def _begin(self) -> CData:
        local = self._local
        if self._watch > 0:
            self._watch -= 1
            local.watch = 1
        else:
            local.watch = (self.hits + self.misses) % SAMPLE == 0
        return local

    def _end(self, result: int, also_final: int = 0) -> int:
        local = self._local
        if local.watch and local.slept:
            self.slept += 1
            if local.key:
                self._leave(local.key)
            elif result != UNKNOWN:
                self.on = self.slept < WATCHED_FIRST  # no mount can be named: RESOLVE_CACHED itself sleeps here
        self.last = result
        if result >= 0 or result == _ENOENT or (also_final and result == also_final):
            self.hits += 1
        else:
            self.misses += 1
            if result == _ENOSYS:
                self.on = False
        return result

    def _leave(self, key: int) -> None:
        local = self._local
        self._left[key] = time.monotonic() + LEFT_FOR
        kept = [known for known in ffi.unpack(local.keys, local.count) if known != key]
        local.count = len(kept)
        local.keys = kept
