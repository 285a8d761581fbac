"""Calls that use the kernel's file position, for descriptors that others may use too. A worker makes each (cursor.c).

lseek(2) waits for a read or write that another process makes through the same open file, so it is made by the worker, in the same request
as the read or write. What was read ahead by an earlier call is given back there too: the position returns to the cursor first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_aio._native import ffi, lib
from trio_aio._requests.base import Request
from trio_aio._requests.transfer import Read, Write
from trio_aio._requests.written import note_write

if TYPE_CHECKING:
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.host import Host
    from trio_aio._lanes.workers import WorkerLane
    from trio_aio._memory.exports import Export
    from trio_aio._native import CData

__all__ = ("ANYWHERE", "CursorRead", "CursorSeek", "CursorWrite", "Position")

ANYWHERE: int = lib.TAIO_ANYWHERE


class Position:
    """What a call needs of the kernel's position, and what it made of it: a struct taio_cursor.

    left: where the last call left the position, bytes, or ANYWHERE. wanted: where it is moved first, if it is still there.
    """

    __slots__ = ("address", "record")

    def __init__(self, left: int, wanted: int) -> None:
        fields = {"left": left, "wanted": wanted, "start": -1, "position": -1, "unit": 1, "buffered_fd": -1}
        self.record: CData = ffi.new("struct taio_cursor *", fields)
        self.address: int = int(ffi.cast("uintptr_t", self.record))

    @property
    def start(self) -> int:
        """Where the call started, bytes; -1 if it did not."""
        start: int = self.record.start
        return start

    @property
    def end(self) -> int:
        """Where it left the position, bytes; -1 if it did not start."""
        end: int = self.record.position
        return end

    def abandon(self) -> bool:
        """Let a read that is in flight leave the position alone. False: its worker has the bytes, and is about to move it."""
        return lib.taio_cursor_abandon(self.record) != 0


class CursorRead(Read):
    """Bytes from the kernel's position on. The result is their number. If it fails, the position has not moved.

    line: read once, and leave the position behind the first newline; the bytes behind it are no part of the result.
    at_offset: move the position when the bytes are there. Such a read may be abandoned before that. Later its task waits for it: otherwise
    the next call could start before the position has moved.
    """

    __slots__ = ("position",)

    worker_operation = lib.TAIO_CURSOR_READ

    def __init__(self, descriptor: Descriptor, position: Position, memory: Export, *, line: bool = False, at_offset: bool = False) -> None:
        Read.__init__(self, descriptor, memory.address, memory.length, 0, 0, memory)
        self.position: Position = position
        record = position.record
        record.line = line
        record.mapped = memory.mapped
        record.at_offset = at_offset or descriptor.o_direct
        record.unit = descriptor.read_worker_path or 1

    def can_submit(self, engine: Host) -> bool | None:
        return False

    def can_abandon(self) -> bool:
        return self.position.abandon()

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        lane.prepare(
            slot, before, self.token, self.worker_operation, self.descriptor.fd, self.address, self.nbytes, extra=self.position.address
        )


class CursorWrite(Write):
    """All bytes to the kernel's position, or to the end of a file that is open with O_APPEND. The result is their number."""

    __slots__ = ("buffered", "position")

    worker_operation = lib.TAIO_CURSOR_WRITE

    def __init__(self, descriptor: Descriptor, position: Position, memory: Export) -> None:
        Write.__init__(self, descriptor, memory.address, memory.length, 0, 0, memory)
        self.position: Position = position
        # Of a direct file, only the worker learns whether the write is one of whole blocks: let no other write pass the gate with it.
        self.buffered: Any = object() if descriptor.o_direct else False
        if descriptor.o_direct:
            record = position.record
            record.mapped = memory.mapped
            record.buffered_fd = descriptor.buffered_fd
            record.append = descriptor.append
            record.unit = max(descriptor.alignment.offset, descriptor.alignment.memory)

    def can_submit(self, engine: Host) -> bool | None:
        return False

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        lane.prepare(
            slot, before, self.token, self.worker_operation, self.descriptor.fd, self.address, self.nbytes, extra=self.position.address
        )

    def chain_key(self) -> object:
        return self.descriptor.shared_file

    def settle(self, engine: Host) -> None:
        engine.bytes_written += self.transferred
        end = self.position.end
        if self.result >= 0:
            self.descriptor.size = max(self.descriptor.size, end)
        note_write(self, end - self.transferred, end, exact=end >= self.transferred)


class CursorSeek(Request):
    """lseek(2), after what was read ahead is given back. The result is the position."""

    __slots__ = ("offset", "position", "whence")

    fault_name = "seek"

    def __init__(self, descriptor: Descriptor, position: Position, offset: int, whence: int) -> None:
        Request.__init__(self, descriptor)
        self.position: Position = position
        self.offset: int = offset
        self.whence: int = whence

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        fd, position = self.descriptor.fd, self.position.address
        lane.prepare(slot, before, self.token, lib.TAIO_CURSOR_SEEK, fd, offset=self.offset, flags=self.whence, extra=position)
