"""Calls on an open descriptor that move no bytes: stat, truncate, seek, allocate. A worker makes each."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trio_aio._native import ffi, lib
from trio_aio._requests.base import Request

if TYPE_CHECKING:
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.host import Host
    from trio_aio._lanes.workers import WorkerLane
    from trio_aio._native import CData

__all__ = ("Allocate", "Seek", "Stat", "Truncate", "status_of")

_SECOND = 10**9
_LARGEST_INODE = (1 << 64) - 1


def status_of(record: CData) -> os.stat_result:
    """Return what a struct taio_stat says, as ``os.stat`` would. Integer fields, floats and nanoseconds are the same as there."""
    mode, inode, device, links, uid, gid, rdev, block_size, blocks, size, atime, mtime, ctime = ffi.unpack(
        ffi.cast("int64_t *", record), 13
    )
    a, a_rest = divmod(atime, _SECOND)
    m, m_rest = divmod(mtime, _SECOND)
    c, c_rest = divmod(ctime, _SECOND)
    return os.stat_result(
        (mode, inode & _LARGEST_INODE, device, links, uid, gid, size, a, m, c),
        {
            "st_atime": a + 1e-9 * a_rest,
            "st_mtime": m + 1e-9 * m_rest,
            "st_ctime": c + 1e-9 * c_rest,
            "st_atime_ns": atime,
            "st_mtime_ns": mtime,
            "st_ctime_ns": ctime,
            "st_blksize": block_size,
            "st_blocks": blocks,
            "st_rdev": rdev,
        },
    )


class Stat(Request):
    """fstat(2)."""

    __slots__ = ("record",)

    fault_name = "stat"

    def __init__(self, descriptor: Descriptor) -> None:
        Request.__init__(self, descriptor)
        self.record: CData = ffi.new("struct taio_stat *")

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        lane.prepare(slot, before, self.token, lib.TAIO_STAT, self.descriptor.fd, extra=int(ffi.cast("uintptr_t", self.record)))

    def status(self) -> os.stat_result:
        """Return what ``os.fstat`` would return."""
        return status_of(self.record)


class Truncate(Request):
    """ftruncate(2) to `size` bytes.

    It fills the rest of the last block with zeros, through the page cache. Beside a direct write of the same page, ext4 then fails the next
    fsync with EIO. So it passes the gate of the file as a write through the page cache does.
    """

    __slots__ = ("passed_gate", "size")

    changes = ordered = gated = True
    fault_name = "truncate"
    buffered: bool = True

    def __init__(self, descriptor: Descriptor, size: int) -> None:
        Request.__init__(self, descriptor)
        self.size: int = size
        self.passed_gate: bool = False  # see `shared_file.Gate`

    def admit(self, engine: Host) -> None:
        Request.admit(self, engine)
        self._note_size()

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        lane.prepare(slot, before, self.token, lib.TAIO_TRUNCATE, self.descriptor.fd, offset=self.size)

    def settle(self, engine: Host) -> None:
        if self.result >= 0:
            self._note_size()
            if self.descriptor.shared_file is not None:
                self.descriptor.shared_file.durability.note_truncated(self.size)

    def _note_size(self) -> None:
        self.descriptor.size = min(self.descriptor.size, self.size)


class Seek(Request):
    """lseek(2). The result is the position."""

    __slots__ = ("offset", "whence")

    fault_name = "seek"

    def __init__(self, descriptor: Descriptor, offset: int, whence: int) -> None:
        Request.__init__(self, descriptor)
        self.offset: int = offset
        self.whence: int = whence

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        lane.prepare(slot, before, self.token, lib.TAIO_SEEK, self.descriptor.fd, offset=self.offset, flags=self.whence)


class Allocate(Request):
    """fallocate(2), mode 0: `size` bytes from `offset`."""

    __slots__ = ("offset", "size")

    changes = ordered = True
    fault_name = "fallocate"

    def __init__(self, descriptor: Descriptor, offset: int, size: int) -> None:
        Request.__init__(self, descriptor)
        self.offset: int = offset
        self.size: int = size

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        lane.prepare(slot, before, self.token, lib.TAIO_FALLOCATE, self.descriptor.fd, length=self.size, offset=self.offset)
