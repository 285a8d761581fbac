"""Open, describe and close a descriptor. A worker does each."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trio_aio._engine.descriptor import DescriptionRecord, Descriptor
from trio_aio._memory.exports import hold
from trio_aio._native import lib
from trio_aio._requests.base import Request

if TYPE_CHECKING:
    from trio_aio._engine.host import Host
    from trio_aio._lanes.workers import WorkerLane
    from trio_aio._memory.exports import Export
    from trio_aio._requests.cursor import Position

__all__ = ("AT_FDCWD", "CREATION_MODE", "Close", "Describe", "Open")

AT_FDCWD = -100  # fcntl.h; the os module has no name for it before 3.14
CREATION_MODE = 0o666


class Open(Request):
    """Open a path, and describe what was opened. The descriptor belongs to its `Descriptor` before any task can know of it.

    For direct writing, a second descriptor is opened with it, without O_DIRECT. If that cannot be had, the request fails.
    """

    __slots__ = ("flags", "path", "record", "unwanted")

    fault_name = "open"

    def __init__(self, descriptor: Descriptor, path: bytes, flags: int) -> None:
        Request.__init__(self, descriptor)
        self.path: Export = hold(path + b"\0")
        self.flags: int = flags
        self.record: DescriptionRecord = DescriptionRecord()
        self.unwanted: bool = False  # its call was interrupted, or abandoned it, while it was in flight

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        path, record = self.path.address, self.record.address
        lane.prepare(slot, before, self.token, lib.TAIO_OPEN, self.descriptor.fd, path, CREATION_MODE, 0, self.flags, record)

    def settle(self, engine: Host) -> None:
        description = self.record.value
        if self.flags & os.O_TRUNC:  # also if it has failed: perhaps at the second descriptor
            engine.files.note_change(description.device, description.inode, cut=0)
        if self.result >= 0:
            self.descriptor.own(self.result, description.buffered_fd)
            if engine.orphaned:
                self.descriptor.close_unclaimed()
            elif self.unwanted and self.descriptor.take_unclaimed():
                engine.drops.add(self.descriptor, Close(self.descriptor))


class Describe(Request):
    """Find out what an open descriptor is. `writable`: also open the second descriptor of one with O_DIRECT, as `Open` does."""

    __slots__ = ("record", "writable")

    fault_name = "open"

    def __init__(self, descriptor: Descriptor, *, writable: bool = False) -> None:
        Request.__init__(self, descriptor)
        self.writable: bool = writable
        self.record: DescriptionRecord = DescriptionRecord()

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        fd, record = self.descriptor.fd, self.record.address
        lane.prepare(slot, before, self.token, lib.TAIO_DESCRIBE, fd, flags=int(self.writable), extra=record)

    def settle(self, engine: Host) -> None:
        descriptor, buffered_fd = self.descriptor, self.record.value.buffered_fd
        if self.result < 0 or buffered_fd < 0:
            return
        if descriptor.order.closing:  # it was abandoned, and the close that waits for it closes both
            descriptor.buffered_fd = buffered_fd
            return
        descriptor.own(descriptor.fd, buffered_fd)
        if engine.orphaned:
            descriptor.close_unclaimed()
        elif self.abandoned and descriptor.take_unclaimed():
            engine.drops.add(descriptor, Close(descriptor))


class Close(Request):
    """Close a descriptor, and the second one of a direct file. A borrowed descriptor stays open: its owner closes it.

    position: the kernel's file position, which is set first, because bytes were read ahead. may_be_left: while it waits for abandoned
    requests only, no task waits for it.
    """

    __slots__ = ("may_be_left", "position")

    closes = ordered = True
    fault_name: str | None = "close"

    def __init__(self, descriptor: Descriptor) -> None:
        Request.__init__(self, descriptor)
        self.position: Position | None = None
        self.may_be_left: bool = False

    @property
    def finished(self) -> bool:
        return self.abandoned or super().finished

    def start(self, engine: Host) -> None:
        descriptor = self.descriptor
        descriptor.release_residency()
        plain = descriptor.buffered_fd < 0 and self.position is None
        if (plain and descriptor.borrowed) or (plain and descriptor.closes_inline and lib.taio_inline_close(descriptor.fd) == 0):
            engine.finish(self, 0)
        else:
            engine.dispatch(self)

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        descriptor = self.descriptor
        flags, extra = int(descriptor.borrowed), descriptor.through_cache if descriptor.buffered_fd >= 0 else 0
        position = self.position.address if self.position is not None else 0
        lane.prepare(slot, before, self.token, lib.TAIO_CLOSE, descriptor.fd, position, flags=flags, extra=extra)

    def cancel(self, engine: Host) -> bool:
        """Return False: a close happens whatever becomes of its task."""
        return False
