"""Open, describe and close a descriptor. A worker does each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_aio._engine.descriptor import DescriptionRecord, Descriptor
from trio_aio._memory.exports import export_buffer
from trio_aio._native import lib
from trio_aio._requests.base import Request

if TYPE_CHECKING:
    from trio_aio._engine.host import Host
    from trio_aio._lanes.workers import WorkerLane
    from trio_aio._memory.exports import Export

__all__ = ("AT_FDCWD", "CREATION_MODE", "Close", "Describe", "Open")

AT_FDCWD = -100  # fcntl.h; the os module has no name for it before 3.14
CREATION_MODE = 0o666


class Open(Request):
    """Open a path, and describe what was opened. The descriptor belongs to its `Descriptor` before any task can know of it."""

    __slots__ = ("flags", "path", "record")

    fault_name = "open"

    def __init__(self, descriptor: Descriptor, path: bytes, flags: int) -> None:
        Request.__init__(self, descriptor)
        self.path: Export = export_buffer(path + b"\0", writable=False)
        self.flags: int = flags
        self.record: DescriptionRecord = DescriptionRecord()

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        path, record = self.path.address, self.record.address
        lane.prepare(slot, before, self.token, lib.TAIO_OPEN, self.descriptor.fd, path, CREATION_MODE, 0, self.flags, record)

    def settle(self, engine: Host) -> None:
        if self.result >= 0:
            self.descriptor.own(self.result)
            if engine.orphaned:
                self.descriptor.close_unclaimed()


class Describe(Request):
    """Find out what an open descriptor is."""

    __slots__ = ("record",)

    fault_name = "open"

    def __init__(self, descriptor: Descriptor) -> None:
        Request.__init__(self, descriptor)
        self.record: DescriptionRecord = DescriptionRecord()

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        lane.prepare(slot, before, self.token, lib.TAIO_DESCRIBE, self.descriptor.fd, extra=self.record.address)


class Close(Request):
    """Close a descriptor, and the second one of a direct file. A borrowed descriptor stays open: its owner closes it."""

    __slots__ = ()

    closes = ordered = True
    fault_name = "close"

    def start(self, engine: Host) -> None:
        if self.descriptor.borrowed and not self.descriptor.buffered_fd_address:
            engine.finish(self, 0)
        else:
            engine.dispatch(self)

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        descriptor = self.descriptor
        flags, extra = int(descriptor.borrowed), descriptor.buffered_fd_address
        lane.prepare(slot, before, self.token, lib.TAIO_CLOSE, descriptor.fd, flags=flags, extra=extra)

    def cancel(self, engine: Host) -> bool:
        """Return False: a close happens whatever becomes of its task."""
        return False
