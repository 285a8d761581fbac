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

__all__ = ("Allocate", "Seek", "Stat", "Truncate")


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
        s = self.record
        times = {"atime": s.atime_ns, "mtime": s.mtime_ns, "ctime": s.ctime_ns}
        more = {"st_blksize": s.block_size, "st_blocks": s.blocks, "st_rdev": s.rdev}
        for name, nanoseconds in times.items():
            more[f"st_{name}"] = nanoseconds * 1e-9
            more[f"st_{name}_ns"] = nanoseconds
        seconds = [nanoseconds // 10**9 for nanoseconds in times.values()]
        return os.stat_result([s.mode, s.inode, s.device, s.links, s.uid, s.gid, s.size, *seconds], more)


class Truncate(Request):
    """ftruncate(2) to `size` bytes."""

    __slots__ = ("size",)

    changes = ordered = True
    fault_name = "truncate"

    def __init__(self, descriptor: Descriptor, size: int) -> None:
        Request.__init__(self, descriptor)
        self.size: int = size

    def admit(self, engine: Host) -> None:
        Request.admit(self, engine)
        self._note_size()

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        lane.prepare(slot, before, self.token, lib.TAIO_TRUNCATE, self.descriptor.fd, offset=self.size)

    def settle(self, engine: Host) -> None:
        if self.result >= 0:
            self._note_size()

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
