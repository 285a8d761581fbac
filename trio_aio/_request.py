"""One request: what it asks, what it owns, and its state, which only goes forward.

The kernel or a worker may write to a request's memory, and uses its descriptor, until its completion has been taken. So the request
owns both until then, whatever became of the task that asked. Lanes lie below one another: a request that the kernel lane could not
serve at once goes on to the workers, never back.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trio_aio._batch import Batch
    from trio_aio._descriptor import Descriptor
    from trio_aio._run import Run

__all__ = ("Operation", "Request", "State")


class Operation(enum.IntEnum):
    """What is asked. The engine maps it to an iocb command or a worker's operation."""

    READ = 0
    WRITE = 1
    READV = 2
    WRITEV = 3
    APPEND = 4
    FSYNC = 5
    FDATASYNC = 6
    OPEN = 7
    CLOSE = 8
    STAT = 9
    TRUNCATE = 10
    SEEK = 11
    FALLOCATE = 12
    DESCRIBE = 13
    POPULATE = 14
    POLL = 15
    READ_RUN = 16
    WRITE_RUN = 17
    READ_FILE = 18
    WRITE_FILE = 19


class State(enum.IntEnum):
    """Where a request is. Every step goes to a greater state."""

    CREATED = 0
    HELD = 1  # waits for other requests of its file: a sync for the writes before it, a close for all
    KERNEL_QUEUED = 2  # waits for a slot
    KERNEL_PREPARED = 3  # has a slot and an iocb; io_submit has not been called
    KERNEL_IN_FLIGHT = 4
    WORKER_QUEUED = 5  # waits for a slot
    WORKER_IN_FLIGHT = 6  # handed over; whether a worker has begun it only the slot knows
    WITHDRAWN = 7  # never ran
    COMPLETED = 8


class Request:
    """A request and all it owns."""

    state: State = State.CREATED
    token: int = -1  # of the slot it has, while it has one
    result: int = 0
    transferred: int = 0  # bytes moved by earlier lanes, and once finished in all
    cold: bool = False  # its memory was never touched: page faults are not for the event loop
    begun: bool = False  # the inline lane has read a part of it into the caller's memory
    missed: bool = False  # a small read of a buffered file, which the page cache could not serve at once
    probing: bool = False  # submitted with an RWF_NOWAIT of ours
    cancel_requested: bool = False
    cancel_accepted: bool = False
    abandoned: bool = False  # its task has gone; nobody waits for the result
    counted: bool = False  # among the cancelled, though it goes on
    run: Run | None = None  # of READ_RUN and WRITE_RUN
    pieces: int = 1  # how many requests it counts for
    buffered: bool = False  # a write of a direct file that goes through the page cache
    passed_gate: bool = False  # see _order.Gate
    waits_for: set[Request] | None = None  # of a sync: the writes before it
    leader: Request | None = None  # of a sync that is served by another
    followers: list[Request] = []  # of a sync: those it serves  # noqa: RUF012 - never changed: a sync has its own
    waiter: Any = None  # the backend's: whom to wake
    batch: Batch | None = None  # or what to tell instead

    def __init__(
        self,
        operation: Operation,
        descriptor: Descriptor,
        address: int = 0,
        length: int = 0,
        offset: int = 0,
        flags: int = 0,
        owned: object = None,
        extra: int = 0,
        nbytes: int | None = None,
    ) -> None:
        self.operation: Operation = operation
        self.descriptor: Descriptor = descriptor
        self.address: int = address  # of the bytes, of an iovec array (then `length` counts its parts), of a path
        self.length: int = length
        self.offset: int = offset
        self.flags: int = flags
        self.owned: Any = owned  # kept alive until the completion
        self.nbytes: int = length if nbytes is None else nbytes
        self.extra: int = extra  # address of a struct that the operation fills; of a read or write, how (native.h, TAIO_READ)

    def advance(self, state: State) -> None:
        """Go to a later state."""
        assert state > self.state, f"{self.state!r} -> {state!r}"
        self.state = state

    @property
    def finished(self) -> bool:
        """Whether the request is over and owns nothing any more."""
        return self.state >= State.WITHDRAWN

    @property
    def took_no_effect(self) -> bool:
        """Whether an accepted io_cancel stopped the request (only then may its caller raise Cancelled)."""
        return self.cancel_accepted and self.result == 0

    def __repr__(self) -> str:
        return f"<Request {self.operation.name} fd={self.descriptor.fd} {self.state.name}>"
