"""What of one descriptor must wait for what.

How the kernel works. Nothing orders the requests in flight: a sync may overtake a write, and close(2) takes the descriptor away from
requests that were not submitted yet.

What we do about it. A sync is held until the writes before it have ended. One that has not started serves all that are asked for meanwhile
(group commit): at most one is in flight, and one waits. It starts at the end of a tick (`gathered_syncs`) where that pays. A close is held
until all other requests have ended. Of a file either direct writes are in flight or writes through the page cache, never both
(`shared_file.Gate`).

An exception (no memory) may come between any two lines. So each step that counts a lease also notes its request, in one statement, and
`leave` may be called again.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, cast

from trio_aio._engine.sync_cost import SyncCost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trio_aio._engine.protocols import CloseRequest, Request, SyncRequest, WriteRequest
    from trio_aio._engine.shared_file import Gate

__all__ = ("Order",)

_SMALL = 128 << 10  # bytes: to write them to the page cache takes some microseconds, to sync them milliseconds


class Order:
    """Of one descriptor: how many requests lease it, and which of them wait for others."""

    __slots__ = ("_close", "_cost", "_syncing", "_syncs", "abandoned", "closing", "gate", "gather", "leases", "syncs", "writes")

    def __init__(self) -> None:
        self.leases: int = 0  # requests that have not ended, and calls between two requests
        self.abandoned: int = 0  # those of the leases that are of requests that no task waits for
        self.closing: bool = False  # a close was asked for: nothing may be submitted any more
        self.gate: Gate | None = None  # of the file
        self.gather: Callable[..., None] | None = None  # lets the first sync start at the end of a tick; None: at once
        self.writes: set[Request] = set()  # not ended: the next sync waits for them
        self.syncs: set[Request] = set()  # not ended
        self._syncing: SyncRequest | None = None  # in flight
        self._cost: SyncCost | None = None  # not known yet
        self._syncs: deque[SyncRequest] = deque()  # wait; others follow them
        self._close: CloseRequest | None = None  # waits for all leases

    def enter(self, request: Request) -> bool:
        """Take in a request that changes, syncs or closes. Return whether it may start now.

        Otherwise `leave` of another request returns it later, or it completes with the sync that it follows.
        """
        if request.closes:
            self.closing = True
            if self.leases:
                self._close = cast("CloseRequest", request)
                return False
            return True
        if request.changes:
            self.leases, _ = self.leases + 1, self.writes.add(request)
            return not request.gated or self.gate is None or self.gate.enter(cast("WriteRequest", request))
        return self._enter_sync(cast("SyncRequest", request))

    def _enter_sync(self, request: SyncRequest) -> bool:
        if self._syncs:
            leader = self._syncs[-1]
            # Joins it only if it waits for another sync anyway, or for all writes that we wait for: otherwise a stream of syncs and writes
            # could put it off for ever.
            if self._syncing is not None or leader.waits_for >= self.writes:
                leader.waits_for |= self.writes
                leader.data_only = leader.data_only and request.data_only  # fsync does what fdatasync does, and more
                self.leases, request.leader, _, _ = self.leases + 1, leader, self.syncs.add(request), leader.followers.append(request)
                return False
        elif self._syncing is None and not self.writes:
            if self.gather is not None and (self._cost is None or self._cost.pays):
                self.gather(self, later=False)  # first: what is on the list and not there does no harm
                self.leases, _, _ = self.leases + 1, self.syncs.add(request), self._syncs.append(request)
                return False
            self._note_start(1)
            self.leases, self._syncing, _ = self.leases + 1, request, self.syncs.add(request)
            return True
        request.waits_for = set(self.writes)
        self.leases, _, _ = self.leases + 1, self.syncs.add(request), self._syncs.append(request)
        return False

    def check(self) -> None:
        """Raise ValueError if a close was asked for."""
        if self.closing:
            raise ValueError("I/O operation on closed file")

    def lease(self) -> None:
        """Let a close wait, as a request does, until `end_lease`. ValueError if one was asked for."""
        self.check()
        self.leases += 1

    def end_lease(self) -> Sequence[Request]:
        """End a lease. Return the close, if it may start now."""
        self.leases -= 1
        ready: list[Request] = []
        self.close_if_idle(ready)
        return ready

    @property
    def left_close(self) -> CloseRequest | None:
        """The close, if it waits for abandoned requests only, and its task need not wait too."""
        close = self._close
        if close is None or not close.may_be_left or close.abandoned or self.leases != self.abandoned:
            return None
        return close

    def close_if_idle(self, ready: list[Request]) -> None:
        """Add the close to `ready`, if one waits and nothing leases the descriptor."""
        close = self._close
        if close is not None and not self.leases:
            self._close, _ = None, ready.append(close)

    def leave(self, request: Request, ready: list[Request] | None = None) -> list[Request]:
        """Note that a request that changes or syncs has ended or was withdrawn. Add those that may start now to `ready`, and return it."""
        if ready is None:
            ready = []
        if request.changes:
            for sync in self._syncs:
                sync.waits_for.discard(request)
            if self.gate is not None:
                if request.gated:
                    self.gate.leave(cast("WriteRequest", request))
                self.gate.start_ready(ready)
            if request in self.writes:
                self.leases, _ = self.leases - 1, self.writes.discard(request)
        elif request in self.syncs:
            if request is self._syncing and self._cost is not None:
                self._cost.note_end()
            syncing = None if request is self._syncing else self._syncing
            self.leases, self._syncing, _ = self.leases - 1, syncing, self.syncs.discard(request)
        if self._syncs and self._syncing is None and not self._syncs[0].waits_for:
            if self.gather is not None and (self._cost is None or self._cost.pays):
                self.gather(self, later=True)
            else:
                self._start_sync(ready)
        self.close_if_idle(ready)
        return ready

    def release_sync(self, ready: list[Any]) -> None:
        """Add the first sync to `ready`, if it waits for nothing any more.

        If small writes through the page cache have started meanwhile, it waits for them too, once: their tasks ask for a sync next. The
        workers have these writes, and the sync would come behind them anyway.
        """
        if not self._syncs or self._syncing is not None or self._syncs[0].waits_for:
            return
        sync = self._syncs[0]
        if not sync.has_waited and not sync.descriptor.direct:
            sync.has_waited, sync.waits_for = True, {write for write in self.writes if write.nbytes <= _SMALL}
        if not sync.waits_for:
            self._start_sync(ready)

    def _start_sync(self, ready: list[Any]) -> None:
        self._note_start(1 + len(self._syncs[0].followers))
        self._syncing, _, _ = self._syncs[0], ready.append(self._syncs[0]), self._syncs.popleft()  # appended first: there may be no memory

    def _note_start(self, sharers: int) -> None:
        if self._cost is None:
            self._cost = SyncCost()
        self._cost.note_start(sharers)

    def holds(self, request: Request) -> bool:
        """Return whether a request waits here for others."""
        return (
            request is self._close
            or any(request is sync or request in sync.followers for sync in self._syncs)
            or (self._syncing is not None and request in self._syncing.followers)
            or (self.gate is not None and self.gate.holds(request))
        )

    def reenter_close(self, request: Request, ready: list[Request]) -> None:
        """Take in a close whose start has failed: it must happen. It is added to `ready` if it may start now."""
        self.closing = True
        self._close = cast("CloseRequest", request)
        self.close_if_idle(ready)

    def withdraw(self, request: Request) -> None:
        """Forget that a request waits; `leave` follows."""
        if request.syncs:
            sync = cast("SyncRequest", request)
            if sync.leader is not None:
                sync.leader.followers.remove(sync)
            else:
                self._syncs.remove(sync)
        else:
            assert self.gate is not None
            self.gate.withdraw(cast("WriteRequest", request))
