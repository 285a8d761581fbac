"""The short ways into the kernel lane, for the most frequent requests: direct reads and overwrites of a few blocks.

Each does in one function, with one C call, what `accept`, `prepare` and `start` or `gather` do. What is not usual (many pieces, a full
lane, a thread that does not run yet, a test's faults) takes the general way, by `accept`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_aio._lanes.protocols import Gatherer, KernelRequest, State
from trio_aio._native import lib

if TYPE_CHECKING:
    from collections import OrderedDict
    from collections.abc import Callable

    from trio_aio._native import CData

__all__ = ("DUE", "GATHERED", "LOOK", "NO_SLOT", "SETS_TIME", "STARTED", "ShortWays")

# Overwrites that are handed to the submitter together, before the end of the tick: the device works on them while others are gathered.
# Measured on two busy processors, 16 tasks: 21.8 and 24.5 thousand/s with 8, 20.5 and 18.6 with 16, at the same CPU. 4 cost 5 % more.
OVERWRITES = 8

_start_read = lib.taio_ring_start_read
_gather = lib.taio_ring_gather
_PREPARED, _SUBMITTED_EVENT, _SUBMITTED_SLEPT = lib.TAIO_PREPARED, lib.TAIO_SUBMITTED_EVENT, lib.TAIO_SUBMITTED_SLEPT
_SETS_TIME: int = lib.TAIO_SETS_TIME
_PWRITE = lib.IOCB_CMD_PWRITE
_KERNEL_PREPARED, _KERNEL_IN_FLIGHT, _HANDED_OVER = State.KERNEL_PREPARED, State.KERNEL_IN_FLIGHT, State.KERNEL_HANDED_OVER
NO_SLOT, STARTED, LOOK, GATHERED, DUE, SETS_TIME = range(6)  # see `ShortWays.start_short`


class ShortWays:
    """Two functions that fill a slot of the kernel lane. `KernelLane` is the one subclass."""

    slots: int
    byte_limit: int
    holders: list[KernelRequest | None]
    weights: list[int]
    tokens: list[int]
    free: list[int]
    bytes_in_flight: int
    queue: OrderedDict[KernelRequest, None]
    ring: CData
    prepared: list[KernelRequest]
    gathered: list[Any]
    few: int
    _started: int
    _refuse: Callable[[KernelRequest, int], None]

    def vacate(self, slot: int) -> None:
        """Free a slot."""
        raise NotImplementedError

    def start_short(self, request: KernelRequest, fd: int, memory: int, length: int, offset: int) -> int:
        """Give a small read with RWF_NOWAIT a slot and start it.

        Return NO_SLOT or SETS_TIME (of access: io_submit may sleep), and nothing has happened; STARTED; or what the engine has to do: LOOK
        (an event is there), GATHERED (ask for a flush at the end of the tick) or DUE (flush now).
        """
        free = self.free
        total = self.bytes_in_flight + length
        if not free or self.queue or total > self.byte_limit:
            return NO_SLOT
        slot, weights = free[-1], self.weights
        request.token = token = self.tokens[slot]
        self.holders[slot], weights[slot], self.bytes_in_flight, _ = request, length, total, free.pop()
        prepared = self.prepared
        lone = len(free) == self.slots - 1
        answer = _start_read(self.ring, slot, token, fd, memory, length, offset, lone and not prepared)
        if answer == _SETS_TIME:
            self.vacate(slot)
            return SETS_TIME
        self._started += 1
        if answer == _PREPARED:
            request.state = _KERNEL_PREPARED
            prepared.append(request)
            return DUE if len(prepared) >= self.few or lone else GATHERED
        request.state = _KERNEL_IN_FLIGHT
        if answer < 0:
            self.vacate(slot)
            self._refuse(request, answer)
        elif answer == _SUBMITTED_SLEPT:
            request.note_slept()
            return LOOK
        return LOOK if answer == _SUBMITTED_EVENT else STARTED

    def gather_short(self, request: KernelRequest, submitter: Gatherer, fd: int, memory: int, length: int, offset: int) -> int:
        """Give a small overwrite a slot, and gather it for a submitter whose thread runs.

        Return NO_SLOT, GATHERED or DUE, as `start_short`.
        """
        free = self.free
        total = self.bytes_in_flight + length
        if not free or self.queue or total > self.byte_limit:
            return NO_SLOT
        slot, weights = free[-1], self.weights
        request.token = token = self.tokens[slot]
        self.holders[slot], weights[slot], self.bytes_in_flight, _ = request, length, total, free.pop()
        _gather(self.ring, submitter.native, slot, token, _PWRITE, fd, memory, length, offset, 0)
        request.state = _HANDED_OVER
        self._started += 1
        submitter.unlisted = count = submitter.unlisted + 1
        if count == 1 and submitter not in self.gathered:
            self.gathered.append(submitter)
        return DUE if count >= OVERWRITES or len(free) == self.slots - 1 else GATHERED
