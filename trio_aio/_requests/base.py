"""`Request`: what all kinds of request have in common.

A request class says in one place what it owns, how it fills an iocb or a worker's slot, what a completion means, and how it is cancelled.
The kernel or a worker may write to a request's memory, and uses its descriptor, until its completion has been taken. So the request owns
both until then, whatever became of the task that waits for it. What the kernel lane could not do without sleeping continues with a worker,
never the other way.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from trio_aio._engine.mending import LOST, cause_of, torn
from trio_aio._engine.withdrawal import end_withdrawn, withdraw_prepared, withdraw_without_slot
from trio_aio._errors import os_error
from trio_aio._lanes.protocols import State

if TYPE_CHECKING:
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.host import Host
    from trio_aio._engine.protocols import Group
    from trio_aio._lanes.kernel import KernelLane
    from trio_aio._lanes.workers import WorkerLane

__all__ = ("Request", "State")

_EINTR, _ECANCELED = -errno.EINTR, -errno.ECANCELED
_WITHDRAWN = State.WITHDRAWN


class Request:
    """A request, and all that it owns. Kinds of it are subclasses; each adds the fields that it needs."""

    __slots__ = (
        *("abandoned", "cancel_accepted", "cancel_requested"),
        *("descriptor", "group", "outstanding", "result", "state", "token", "transferred", "waiter", "__weakref__"),
    )

    # Read by `order`. `ordered` is True if any of the other three is.
    changes: bool = False
    syncs: bool = False
    closes: bool = False
    ordered: bool = False
    gated: bool = False  # it writes to the device or the page cache: it must pass the gate of its file (`shared_file.Gate`)

    kernel_can_cancel: bool = False  # io_cancel can stop it
    probing: Any = False  # it carries an RWF_NOWAIT of ours: then EAGAIN says that the device would have slept
    counted: bool = False  # among the cancelled, although it runs on
    is_batch: bool = False  # it has many pieces: submit it at once, do not gather
    fault_name: str | None = None  # what `testing` calls it
    tells_written: bool = False  # its error says how many bytes were written before
    nbytes: Any = 0  # bytes that it moves
    count: Any = 1  # requests that it counts for in statistics

    def __init__(self, descriptor: Descriptor) -> None:
        self.descriptor: Descriptor = descriptor
        self.state: State = State.CREATED
        self.token: int = -1
        self.result: int = 0
        self.transferred: int = 0  # bytes moved by earlier lanes, and at the end in all
        self.waiter: Any = None  # the backend's: the task to be woken
        self.group: Group | None = None  # or the group that is notified instead
        self.cancel_requested: bool = False
        self.cancel_accepted: bool = False
        self.abandoned: bool = False  # no task waits for it any more
        self.outstanding: bool = False  # it was submitted and has not ended: the engine counts it, and its descriptor is leased

    @property
    def finished(self) -> bool:
        """Whether the request has ended and owns nothing any more."""
        return self.state >= _WITHDRAWN

    @property
    def took_no_effect(self) -> bool:
        """Whether an accepted cancellation stopped it. Only then may its caller raise Cancelled."""
        return self.cancel_accepted and self.result == 0

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self.result < 0

    def error(self) -> BaseException:
        """Return what its caller raises: it ended with a negative result."""
        cause = cause_of(self)
        if cause is not None or self.result == LOST:
            return torn(cause)
        return self.kernel_error()

    def kernel_error(self) -> OSError:
        """Return the error that the kernel has given."""
        error = os_error(self.result, self.descriptor.name)
        if self.tells_written:
            error.characters_written = self.transferred  # type: ignore[attr-defined]
        return error

    @property
    def has_moved_bytes(self) -> bool:
        """Whether a lane may have moved some bytes of a request that now waits for the next lane. Then it is not withdrawn."""
        return self.transferred > 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} fd={self.descriptor.fd} {self.state.name}>"

    # ---- the way in

    def admit(self, engine: Host) -> None:
        """Note that the request is submitted. Called for those that change, sync or close."""
        shared = self.descriptor.shared_file
        if self.changes and shared is not None:
            shared.note_change()

    def start(self, engine: Host) -> None:
        """Start, now that nothing holds the request back."""
        engine.dispatch(self)

    def can_submit(self, engine: Host) -> bool | None:
        """Return whether the kernel lane can take it.

        None: do nothing. The request waits for memory and will be dispatched again, or it has already failed with ENOMEM.
        """
        return False

    def prepare(self, lane: KernelLane, slot: int) -> None:
        """Fill the iocb of a slot."""
        raise NotImplementedError

    def start_worker(self) -> None:
        """Note that the request goes to the workers."""

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        """Fill a worker's slot."""
        raise NotImplementedError

    def chain_key(self) -> object:
        """Return the device or file whose requests one worker can serve as fast as several workers, or None.

        Requests with the same key may be chained.
        """
        return None

    def note_slept(self) -> None:
        """Note that its io_submit slept on the event loop's thread."""

    def note_submitted(self, engine: Host, result: int | None) -> None:
        """Note that io_submit was called. `result`: of a request that was complete when the call returned."""

    # ---- the way out

    def complete_kernel(self, engine: Host, token: int, result: int) -> None:
        """Take a completion of the kernel lane."""
        if result == _EINTR:
            engine.to_workers(self)  # they repeat it until it is done, as Python does: PEP 475
        else:
            engine.finish(self, result)

    def leave_kernel(self, engine: Host, result: int) -> None:
        """Leave the kernel lane, prepared, because the ring stays full, or no thread can be had that submits it."""
        withdraw_prepared(engine, self)
        engine.to_workers(self)

    def complete_worker(self, engine: Host, result: int, transferred: int) -> None:
        """Take a worker's completion."""
        self.transferred += transferred
        engine.finish(self, result)

    def settle(self, engine: Host) -> None:
        """Take the final result: note what it says of the file, count bytes."""

    def release_memory(self, engine: Host) -> None:
        """Return memory to its pool, and hold the caller's no longer. The request has ended, or never ran."""

    def let_go(self, engine: Host) -> None:
        """Return to its pool what the completed request has kept for a task: it has taken that, or never will."""

    # ---- cancellation

    def cancel(self, engine: Host) -> bool:
        """Cancel it, whatever state it is in. True: it never ran, and no task is woken. False: its completion comes."""
        if self.has_moved_bytes or not self.withdraw(engine):
            return False
        end_withdrawn(engine, self)
        return True

    def withdraw(self, engine: Host) -> bool:
        """Withdraw it from its lane, if neither the kernel nor a worker has started it. Return whether that was possible."""
        state = self.state
        if state in (State.HELD, State.KERNEL_QUEUED, State.WORKER_QUEUED):
            withdraw_without_slot(engine, self)
        elif state in (State.KERNEL_PREPARED, State.KERNEL_HANDED_OVER) and withdraw_prepared(engine, self):
            engine.start_queued()
        elif state is State.WORKER_IN_FLIGHT:
            return engine.workers.withdraw(self)
        else:
            if state in (State.KERNEL_HANDED_OVER, State.KERNEL_IN_FLIGHT) and not self.cancel_accepted:
                assert engine.kernel is not None
                self.cancel_accepted = engine.kernel.cancel(self)
            return False
        return True

    def can_abandon(self) -> bool:
        """Return whether it may run on with no task waiting, if it cannot be cancelled."""
        return True

    def note_abandoned(self, engine: Host) -> None:
        """Note that it runs on, and no task will wait for it."""

    def withdraw_held(self) -> None:
        """Withdraw it from what holds it: the order of its file."""
        self.descriptor.order.withdraw(self)
