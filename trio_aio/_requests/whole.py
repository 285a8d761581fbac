"""A whole file in one request: a worker opens, reads or writes, and closes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trio_aio._memory.exports import hold
from trio_aio._native import ffi, lib
from trio_aio._requests.base import Request
from trio_aio._requests.opening import CREATION_MODE

if TYPE_CHECKING:
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.host import Host
    from trio_aio._lanes.workers import WorkerLane
    from trio_aio._memory.exports import Export
    from trio_aio._native import CData

__all__ = ("ReadWhole", "WriteWhole")


class _Whole(Request):
    __slots__ = ("memory", "path", "record")

    worker_operation: int
    open_flags: int

    def __init__(self, descriptor: Descriptor, path: bytes, memory: Export, first: int) -> None:
        Request.__init__(self, descriptor)
        self.path: Export = hold(path + b"\0")
        self.memory: Export | None = memory  # held until the request has ended
        fields = {"fd": -1, "memory": memory.address, "capacity": memory.length, "first": min(first, memory.length)}
        self.record: CData = ffi.new("struct taio_whole *", fields)

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        path, record, flags = self.path.address, int(ffi.cast("uintptr_t", self.record)), self.open_flags | os.O_CLOEXEC
        lane.prepare(slot, before, self.token, self.worker_operation, self.descriptor.fd, path, CREATION_MODE, 0, flags, record)

    def release_memory(self, engine: Host) -> None:
        self.memory = None


class ReadWhole(_Whole):
    """Open a file and read it. Of a longer file than expected the first `first` bytes are read, and it is left open."""

    __slots__ = ()

    fault_name = "read"
    worker_operation = lib.TAIO_READ_FILE
    open_flags = os.O_RDONLY

    def settle(self, engine: Host) -> None:
        engine.bytes_read += self.transferred
        if self.result >= 0 and self.record.fd >= 0:
            self.descriptor.own(self.record.fd)
            if engine.orphaned:
                self.descriptor.close_unclaimed()


class WriteWhole(_Whole):
    """Open a file, made or emptied, and write it."""

    __slots__ = ()

    changes = ordered = True
    fault_name = "write"
    tells_written = True
    worker_operation = lib.TAIO_WRITE_FILE
    open_flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC

    def settle(self, engine: Host) -> None:
        engine.bytes_written += self.transferred
