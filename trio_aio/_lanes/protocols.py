"""What a lane asks of a request, and the states that a request goes through.

A lane knows no kind of request. It gives a request a slot, lets it fill that slot with one C call, and hands its completion on. All else
(what is read, what a result means, how it is cancelled) is the request's own business.
"""

from __future__ import annotations

import enum
from typing import Any, Protocol

__all__ = ("SLOT_BITS", "SLOT_MASK", "Gatherer", "KernelRequest", "LaneRequest", "State", "WorkerRequest")

# A token has the number of its slot in these bits, and above them how often the slot was given away.
SLOT_BITS = 32
SLOT_MASK = (1 << SLOT_BITS) - 1


class State(enum.IntEnum):
    """Where a request is. States only go forward: each step leads to a greater one."""

    CREATED = 0
    HELD = 1  # waits for other requests of its file, or for aligned memory; no lane has it
    KERNEL_QUEUED = 2  # waits for a slot
    KERNEL_PREPARED = 3  # has a slot and an iocb; io_submit has not been called
    KERNEL_HANDED_OVER = 4  # a submitter has it, or will at the end of this tick; only the slot knows whether io_submit was called
    KERNEL_IN_FLIGHT = 5
    WORKER_QUEUED = 6  # waits for a slot
    WORKER_IN_FLIGHT = 7  # a chain, the queue or a worker has it; only the slot knows whether a worker has started it
    WITHDRAWN = 8  # never ran
    COMPLETED = 9


class LaneRequest(Protocol):
    """What both lanes ask of a request."""

    state: State
    token: int
    """The slot that it has, and the slot's generation; -1 while it has none."""

    @property
    def nbytes(self) -> int:
        """How many bytes it moves: requests in flight are bounded in bytes too."""


class KernelRequest(LaneRequest, Protocol):
    """What the kernel lane asks of a request."""

    kernel_can_cancel: bool
    """Whether io_cancel can stop it. Such a request may never complete by itself."""
    cancel_accepted: bool
    """Whether io_cancel has."""

    @property
    def probing(self) -> bool:
        """Whether it carries an RWF_NOWAIT of ours: then EAGAIN says that the device would have slept."""

    def prepare(self, lane: Any, slot: int) -> None:
        """Fill the iocb of a slot, by `KernelLane.start`, `gather` or, of a request with many slots, `start_pieces`."""

    def note_slept(self) -> None:
        """Note that its io_submit slept on the event loop's thread."""

    def leave_kernel(self, engine: Any, result: int) -> None:
        """Leave the lane, for the workers or with an error: io_submit cannot be called for it."""


class Gatherer(Protocol):
    """A submitter, as the short way of an overwrite sees it."""

    native: Any
    unlisted: int


class WorkerRequest(LaneRequest, Protocol):
    """What the worker lane asks of a request."""

    def fill_slot(self, lane: Any, slot: int, before: int) -> None:
        """Fill a worker's slot with one call of `taio_pool_prepare`. `before`: the slot that it is chained behind."""

    def chain_key(self) -> Any:
        """Return the device or file whose requests one worker can serve as fast as several workers, or None.

        Requests with the same key may be chained.
        """
