"""`ColdRead`: the most frequent request of a buffered file, a small read of pages that are not cached.

The inline lane has just found that they are missing. Such reads come in numbers, one for each task of a database or a server, so what the
general way does in thirty calls this does in four. All that is not usual (a test's faults, a close, no free slot, the end of the file)
takes the general way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_aio._engine.mending import mend
from trio_aio._lanes.protocols import State
from trio_aio._memory.exports import new_bytes
from trio_aio._native import ffi
from trio_aio._requests.transfer import Read

if TYPE_CHECKING:
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.host import Host

__all__ = ("ColdRead",)

_CREATED, _COMPLETED = State.CREATED, State.COMPLETED
_from_buffer, _cast = ffi.from_buffer, ffi.cast


class ColdRead(Read):
    """A read of at least 2 bytes into new memory, by a worker. When it has completed, `data` has them, and undefined bytes after them."""

    __slots__ = ("data",)

    # The same for all of them: one store less for each request.
    flags: int = 0
    worker_path: int = 0
    may_chain: bool = True
    partly_read: bool = False
    offload: bool = False
    probing: bool = False

    def __init__(self, descriptor: Descriptor, size: int, offset: int) -> None:
        # As the constructors of the base classes, in one function.
        self.descriptor = descriptor
        self.state = _CREATED
        self.token = -1
        self.result = self.transferred = 0
        self.waiter = self.group = None
        self.cancel_requested = self.cancel_accepted = self.abandoned = self.outstanding = False
        self.data: Any = new_bytes(size)
        self.owned = held = _from_buffer("char[]", self.data)
        self.address = int(_cast("uintptr_t", held))
        self.nbytes = size
        self.offset = offset

    def start_short(self, engine: Host) -> bool:
        """Start: `Engine.submit` and what it calls, in one function, for the usual case. All others go the usual way.

        Return True only if the request has not ended.
        """
        try:
            descriptor, lane = self.descriptor, engine.workers
            order = descriptor.order
            if engine.hook is not None or order.closing or lane.queue or not lane.free:
                return engine.submit(self)
            order.leases, engine.outstanding, self.outstanding = order.leases + 1, engine.outstanding + 1, True
            engine.submitted_workers += 1
            if lane.start_read(self, descriptor.read_device, descriptor.fd, self.address, self.nbytes, self.offset) and not engine.plugged:
                engine.ask_for_flush()
            return True
        except BaseException as error:
            mend(engine, error, self)
            raise

    def take(self) -> bytes:
        """Return the bytes of a read that has completed. OSError if it failed."""
        if self.result < 0:
            raise self.error()
        data: bytes = self.data
        return data if self.result == self.nbytes else data[: self.result]

    def complete_worker(self, engine: Host, result: int, transferred: int) -> None:
        """Take the completion: what the base classes and `Engine.finish` do, in one function, for the usual case."""
        order = self.descriptor.order
        if result != self.nbytes or self.abandoned or order.closing or engine.hook is not None or self.group is not None:
            super().complete_worker(engine, result, transferred)
            return
        self.transferred = self.result = result
        engine.completed += 1
        engine.bytes_read += result
        self.owned, self.state = None, _COMPLETED
        order.leases, engine.outstanding, self.outstanding = order.leases - 1, engine.outstanding - 1, False
        if self.waiter is not None:
            engine.wake(self)
