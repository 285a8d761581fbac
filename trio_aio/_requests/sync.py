"""fsync and fdatasync."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_aio._engine.durability import means_lost
from trio_aio._engine.mending import LOST, cause_of, keep_cause, mend
from trio_aio._engine.withdrawal import abandon
from trio_aio._native import lib
from trio_aio._requests.base import Request, State
from trio_aio._requests.written import size_of

if TYPE_CHECKING:
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.host import Host
    from trio_aio._lanes.kernel import KernelLane
    from trio_aio._lanes.workers import WorkerLane

__all__ = ("Sync",)


class Sync(Request):
    """Make the writes of a file that were started before it durable. It may serve others, which follow it (`order`).

    The kernel reports a failure once. So a later sync fails too, as long as something that was lost was not written again (`durability`).
    """

    __slots__ = ("counted", "data_only", "followers", "has_waited", "leader", "waits_for")

    syncs = ordered = True
    fault_name = "sync"

    def __init__(self, descriptor: Descriptor, *, data_only: bool) -> None:
        Request.__init__(self, descriptor)
        self.data_only: bool = data_only
        self.waits_for: set[Request] = set()  # the writes before it
        self.has_waited: bool = False  # for writes that began when it could have started
        self.leader: Sync | None = None  # the sync that serves it
        self.followers: list[Sync] = []  # the syncs that it serves
        self.counted: bool = False

    def can_submit(self, engine: Host) -> bool:
        """Only on a direct file. On a buffered file fsync writes the page cache back, which can take long, so a worker makes the call.

        The kernel would do it on a work queue that all processes share.
        """
        return self.descriptor.direct and engine.may_use_kernel

    def prepare(self, lane: KernelLane, slot: int) -> None:
        opcode = lib.IOCB_CMD_FDSYNC if self.data_only else lib.IOCB_CMD_FSYNC
        lane.start(self, slot, opcode, self.descriptor.fd, 0, 0, 0, 0)

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        operation = lib.TAIO_FDATASYNC if self.data_only else lib.TAIO_FSYNC
        lane.prepare(slot, before, self.token, operation, self.descriptor.fd)

    def start(self, engine: Host) -> None:
        shared = self.descriptor.shared_file
        if shared is None or shared.durability.enter(self):
            engine.dispatch(self)
        else:
            self.state = State.HELD

    def settle(self, engine: Host) -> None:
        descriptor = self.descriptor
        if self.leader is None and descriptor.shared_file is not None:
            durability = descriptor.shared_file.durability
            if self.result >= 0 and not self.cancel_accepted:
                self.result = durability.note_synced(descriptor.known_failures)
            elif means_lost(self.result):
                durability.note_failed(-self.result, size_of(descriptor))
        while self.followers:
            follower = self.followers[0]
            try:
                if not follower.finished:
                    if self.result == LOST:
                        keep_cause(follower, cause_of(self))
                    engine.finish(follower, self.result)
            except BaseException as error:
                follower.leader, _ = None, self.followers.pop(0)
                mend(engine, error, follower)
                raise
            self.followers.pop(0)

    def release_memory(self, engine: Host) -> None:
        shared = self.descriptor.shared_file
        if shared is not None:
            shared.durability.leave(self, engine.ready)

    def withdraw_held(self) -> None:
        shared = self.descriptor.shared_file
        if shared is None or not shared.durability.withdraw(self):
            Request.withdraw_held(self)

    def cancel(self, engine: Host) -> bool:
        """Withdraw it, unless other tasks wait for it: then it runs on for them, and only its own task leaves.

        The last task that leaves withdraws the call of all of them. If that has started, it waits, as with a sync of its own.
        """
        if self.followers:
            self.waiter = None
            self.counted = True
            engine.cancelled += 1
            return True
        leader = self.leader
        if leader is not None and leader.counted and leader.followers == [self]:
            try:
                if not Request.cancel(leader, engine):
                    return False
            except BaseException as error:
                mend(engine, error, leader)
                raise
        return Request.cancel(self, engine)

    def note_abandoned(self, engine: Host) -> None:
        """Abandon the sync that serves it too: its last task leaves."""
        leader = self.leader
        if leader is not None and not leader.abandoned:
            abandon(engine, leader)
