"""What of one descriptor must wait for what.

How the kernel works. Nothing orders the requests in flight: a sync may overtake a write, and close(2) takes the descriptor away from
requests that were not submitted yet.

What we do about it. A sync is held until the writes before it have ended. One that has not started serves all that are asked for
meanwhile (group commit): at most one is in flight, and one waits. A close is held until all other requests have ended. Of a file that is
open for direct I/O either direct writes are in flight or writes through the page cache, never both (`shared_file.Gate`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_aio._engine.protocols import CloseRequest, Request, SyncRequest, WriteRequest
    from trio_aio._engine.shared_file import Gate

__all__ = ("Order",)


class Order:
    """Of one descriptor: how many requests lease it, and which of them wait for others."""

    __slots__ = ("_close", "_syncing", "_syncs", "abandoned", "closing", "gate", "leases", "writes")

    def __init__(self) -> None:
        self.leases: int = 0  # requests that are not over, and calls between two requests
        self.abandoned: int = 0  # those of the leases that are of requests that no task waits for
        self.closing: bool = False  # a close was asked for: nothing may be submitted any more
        self.gate: Gate | None = None  # of a direct file
        self.writes: set[Request] = set()  # not over: the next sync waits for them
        self._syncing: SyncRequest | None = None  # in flight
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
        self.leases += 1
        if request.changes:
            self.writes.add(request)
            return not request.gated or self.gate is None or self.gate.enter(cast("WriteRequest", request))
        return self._enter_sync(cast("SyncRequest", request))

    def _enter_sync(self, request: SyncRequest) -> bool:
        if self._syncs:
            leader = self._syncs[-1]
            # Joins it only if it waits for another sync anyway, or for all writes that we wait for: otherwise a stream of syncs and writes
            # could put it off for ever.
            if self._syncing is not None or leader.waits_for >= self.writes:
                leader.waits_for |= self.writes
                leader.followers.append(request)
                request.leader = leader
                leader.data_only = leader.data_only and request.data_only  # fsync does what fdatasync does, and more
                return False
        elif self._syncing is None and not self.writes:
            self._syncing = request
            return True
        request.waits_for = set(self.writes)
        self._syncs.append(request)
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
        return self.close_if_idle()

    @property
    def left_close(self) -> CloseRequest | None:
        """The close, if it waits for abandoned requests only, and its task need not wait too."""
        close = self._close
        if close is None or not close.may_be_left or close.abandoned or self.leases != self.abandoned:
            return None
        return close

    def close_if_idle(self) -> Sequence[Request]:
        """Return the close, if one waits and nothing leases the descriptor."""
        close = self._close
        if self.leases or close is None:
            return ()
        self._close = None
        return (close,)

    def leave(self, request: Request) -> Sequence[Request]:
        """Note that a request that changes or syncs has ended or was withdrawn. Return those that may start now."""
        ready: list[Request] = []
        if request.changes:
            self.writes.discard(request)
            for sync in self._syncs:
                sync.waits_for.discard(request)
            if self.gate is not None:
                if request.gated and cast("WriteRequest", request).passed_gate:
                    self.gate.leave()
                ready.extend(self.gate.ready())
        elif request is self._syncing:
            self._syncing = None
        if self._syncs and self._syncing is None and not self._syncs[0].waits_for:
            self._syncing = self._syncs.popleft()
            ready.append(self._syncing)
        ready.extend(self.end_lease())
        return ready

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
