"""What of one file must wait for what.

How the kernel works. Nothing orders the requests that are out: a sync may overtake a write, and close(2) takes the descriptor from under
requests that have not been handed over. A write through the page cache and a direct write of the same block, at one time, may lose
either: the one keeps an old copy of its neighbours' bytes and writes it back later.

What we do about it. A sync is held until the writes before it are done, and one that has not begun serves all who ask meanwhile
(group commit): at most one is out, and one waits. A close is held until all requests are done. Of a file that is open for direct I/O,
direct writes are out, or writes through the page cache, and never both.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from trio_aio._request import Operation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_aio._request import Request

__all__ = ("CHANGES", "SYNCS", "Gate", "Order")

# What a sync waits for.
CHANGES = tuple(
    o
    in (
        *(Operation.WRITE, Operation.WRITEV, Operation.APPEND, Operation.WRITE_RUN),
        *(Operation.WRITE_FILE, Operation.TRUNCATE, Operation.FALLOCATE),
    )
    for o in Operation
)
SYNCS = tuple(o in (Operation.FSYNC, Operation.FDATASYNC) for o in Operation)
_FREE = tuple(not (CHANGES[o] or SYNCS[o] or o is Operation.CLOSE) for o in Operation)  # wait for nobody; only a close waits for them


class Gate:
    """Of one inode: lets writes of one kind pass while none of the other is out, first come, first served."""

    __slots__ = ("__weakref__", "_buffered", "_out", "_waiting")

    def __init__(self) -> None:
        self._buffered: bool = False  # the kind that is out
        self._out: int = 0
        self._waiting: deque[Request] = deque()

    def enter(self, request: Request) -> bool:
        """Whether a write may start now; else it waits, and `ready` will give it."""
        self._waiting.append(request)
        return self.ready() == [request]

    def leave(self) -> None:
        """Note that a write is over."""
        self._out -= 1

    def withdraw(self, request: Request) -> None:
        """Forget a write that waits."""
        self._waiting.remove(request)

    def ready(self) -> list[Request]:
        """Give the writes that may start now."""
        ready = []
        waiting = self._waiting
        while waiting and (not self._out or waiting[0].buffered is self._buffered):
            request = waiting.popleft()
            request.passed_gate = True
            self._buffered = request.buffered
            self._out += 1
            ready.append(request)
        return ready


class Order:
    """Of one descriptor: the requests that lease it, and those of them that wait for others."""

    __slots__ = ("_closing", "_syncing", "_syncs", "closing", "gate", "requests", "writes")

    def __init__(self) -> None:
        self.gate: Gate | None = None  # of a file that is written to directly
        self.requests: int = 0  # entered and not yet left, a close not counted; and leases
        self.closing: bool = False  # a close has entered: the number may be another file's soon
        self.writes: set[Request] = set()  # those of them that change the file
        self._syncing: Request | None = None  # is out
        self._syncs: deque[Request] = deque()  # wait; others follow them
        self._closing: Request | None = None

    def enter(self, request: Request) -> bool:
        """Take a new request in. Whether it may start now; else it will come from `leave`, or is completed with the one that it follows."""
        operation = request.operation
        if _FREE[operation]:
            self.requests += 1
            return True
        if operation is Operation.CLOSE:
            self.closing = True
            if self.requests:
                self._closing = request
                return False
            return True
        self.requests += 1
        if CHANGES[operation]:
            self.writes.add(request)
            if self.gate is not None and operation is not Operation.TRUNCATE and operation is not Operation.FALLOCATE:
                return self.gate.enter(request)
            return True
        return self._enter_sync(request)

    def _enter_sync(self, request: Request) -> bool:
        if self._syncs:
            leader = self._syncs[-1]
            assert leader.waits_for is not None
            # It waits for another sync anyway, or for all that we wait for; else those who ask could put it off for ever.
            if self._syncing is not None or leader.waits_for >= self.writes:
                leader.waits_for |= self.writes
                leader.followers.append(request)
                request.leader = leader
                if request.operation is Operation.FSYNC:
                    leader.operation = Operation.FSYNC  # it does what fdatasync does, and more
                return False
        elif self._syncing is None and not self.writes:
            self._syncing = request
            request.followers = []
            return True
        request.waits_for = set(self.writes)
        request.followers = []
        self._syncs.append(request)
        return False

    def check(self) -> None:
        """Raise ValueError if a close has begun."""
        if self.closing:
            raise ValueError("I/O operation on closed file")

    def lease(self) -> None:
        """Let a close wait, as a request does, until `end_lease`; ValueError if one has begun."""
        self.check()
        self.requests += 1

    def end_lease(self) -> Sequence[Request]:
        """End what `lease` began. Give those that may start now."""
        self.requests -= 1
        return self._close()

    def _close(self) -> Sequence[Request]:
        closing = self._closing
        if self.requests or closing is None:
            return ()
        self._closing = None
        return (closing,)

    def leave(self, request: Request) -> Sequence[Request]:
        """Note that a request is over or was withdrawn. Give those that may start now."""
        self.requests -= 1
        if _FREE[request.operation]:
            return () if self.requests or self._closing is None else self._close()
        ready: list[Request] = []
        if CHANGES[request.operation]:
            self.writes.discard(request)
            for sync in self._syncs:
                assert sync.waits_for is not None
                sync.waits_for.discard(request)
            if self.gate is not None:
                if request.passed_gate:
                    self.gate.leave()
                ready = self.gate.ready()
        elif request is self._syncing:
            self._syncing = None
        if self._syncs and self._syncing is None and not self._syncs[0].waits_for:
            self._syncing = self._syncs.popleft()
            ready.append(self._syncing)
        ready.extend(self._close())
        return ready

    def withdraw(self, request: Request) -> None:
        """Forget that a request waits; `leave` follows."""
        if request.leader is not None:
            request.leader.followers.remove(request)
        elif SYNCS[request.operation]:
            self._syncs.remove(request)
        else:
            assert self.gate is not None
            self.gate.withdraw(request)
