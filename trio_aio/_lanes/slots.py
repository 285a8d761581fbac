"""What the kernel lane and the worker lane have in common: slots for requests in flight, and the queue of those that wait for one.
Each of the two has as many slots as its context has `max_in_flight`.

A completion names its request by a token: the slot's number, and above it a generation that counts how often the slot was given away.
A completion that comes late, or twice, does not match the token of its slot, so it is never taken for a younger request's.

An exception (no memory) may come between any two lines. So a slot is taken, or freed, in one statement. `torn` then finds the requests that
have a slot and were not started.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from trio_aio._lanes.protocols import SLOT_BITS, SLOT_MASK, LaneRequest, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ("Lane",)

_GENERATION = 1 << SLOT_BITS
_MAX_TOKEN = (1 << 63) - 1  # completions carry the token through a signed integer
_LAST_GENERATION = _MAX_TOKEN - _GENERATION + 1

RequestT = TypeVar("RequestT", bound=LaneRequest)


class Lane(Generic[RequestT]):
    """Slots `first` to `first + slots - 1`, and a first-come-first-served queue before them."""

    queued_state: State
    byte_limit: int = sys.maxsize  # of all requests that have a slot; a single request may exceed it

    def __init__(self, first: int, slots: int) -> None:
        self.first: int = first
        self.slots: int = slots
        self.holders: list[RequestT | None] = [None] * slots
        self.weights: list[int] = [0] * slots  # bytes of each holder when it got its slot
        self.tokens: list[int] = list(range(first, first + slots))
        self.free: list[int] = list(range(slots - 1, -1, -1))
        self.bytes_in_flight: int = 0
        self.queue: OrderedDict[RequestT, None] = OrderedDict()  # any of them may leave, at no cost
        self.begin: Callable[[RequestT, int], Any] = self.start_in_slot  # a test's faults come between (testing)

    @property
    def occupied(self) -> int:
        """How many slots are taken."""
        return self.slots - len(self.free)

    @property
    def queued(self) -> int:
        """How many requests wait for a slot."""
        return len(self.queue)

    def accept(self, request: RequestT) -> None:
        """Start a request, or queue it if no slot is free."""
        free = self.free
        if free and not self.queue:
            total = self.bytes_in_flight + request.nbytes
            if total <= self.byte_limit or len(free) == self.slots:
                slot, weights, nbytes = free[-1], self.weights, total - self.bytes_in_flight
                request.token = self.tokens[slot]
                self.holders[slot], weights[slot], self.bytes_in_flight, _ = request, nbytes, total, free.pop()
                self.begin(request, slot)
                return
        request.state = self.queued_state
        self.queue[request] = None
        self.note_queued()

    def start_queued(self) -> None:
        """Start queued requests while slots are free."""
        while self.queue and self.free:
            request = next(iter(self.queue))
            if not self.has_room(request):
                return
            slot = self.occupy(request)
            del self.queue[request]
            self.begin(request, slot)

    def take(self, token: int) -> RequestT | None:
        """Free the slot of a completion. Return the request that had it; None if that was withdrawn meanwhile."""
        slot = (token & SLOT_MASK) - self.first
        tokens, holders = self.tokens, self.holders
        if tokens[slot] != token:
            raise RuntimeError(f"a completion has the token {token:#x}, which belongs to no request: this is a bug in trio_aio")
        request = holders[slot]
        token = token + _GENERATION if token < _LAST_GENERATION else self.first + slot
        nbytes = self.bytes_in_flight - self.weights[slot]
        _, tokens[slot], holders[slot], self.bytes_in_flight = self.free.append(slot), token, None, nbytes
        return request

    def withdraw_queued(self, request: RequestT) -> None:
        """Take a request out of the queue."""
        del self.queue[request]

    def requests(self) -> Iterator[RequestT]:
        """Return the requests that have a slot. One with many slots comes more than once."""
        return (request for request in self.holders if request is not None)

    def waiting(self) -> Iterator[RequestT]:
        """Return the requests that wait for a slot, in order."""
        return iter(self.queue)

    def slot_of(self, request: RequestT) -> int:
        """Return the number, in this lane, of the slot that a request has."""
        return (request.token & SLOT_MASK) - self.first

    def has_room(self, request: RequestT) -> bool:
        """Return whether the limit in bytes lets a request start now."""
        return self.bytes_in_flight + request.nbytes <= self.byte_limit or len(self.free) == self.slots

    def occupy(self, request: RequestT) -> int:
        """Give a request a free slot, and return its number."""
        slot, nbytes = self.free[-1], request.nbytes
        request.token, total = self.tokens[slot], self.bytes_in_flight + nbytes
        self.holders[slot], self.weights[slot], self.bytes_in_flight, _ = request, nbytes, total, self.free.pop()
        return slot

    def vacate(self, slot: int) -> None:
        """Free a slot. A token that names it from before is stale now."""
        token = self.tokens[slot]
        token = token + _GENERATION if token < _LAST_GENERATION else self.first + slot
        nbytes = self.bytes_in_flight - self.weights[slot]
        _, self.tokens[slot], self.holders[slot], self.bytes_in_flight = self.free.append(slot), token, None, nbytes

    def holds(self, request: Any) -> bool:
        """Return whether a request waits here for a slot, or has one."""
        return request in self.queue or any(holder is request for holder in self.holders)

    def torn(self, is_completed: Callable[[int], bool]) -> list[RequestT]:
        """Free the slots whose requests were not started, because an exception came first. Return these requests.

        is_completed: whether a completion with that token is about to be served.
        """
        torn = []
        for slot, request in enumerate(self.holders):
            if request is not None and not is_completed(self.tokens[slot]) and not self.is_started(slot):
                self.queue.pop(request, None)
                torn.append(request)
                self.vacate(slot)
        return torn

    def is_started(self, slot: int) -> bool:
        """Return whether a slot is filled, and its completion will come."""
        raise NotImplementedError

    def note_queued(self) -> None:
        """Note that a request had to be queued."""

    def start_in_slot(self, request: RequestT, slot: int) -> None:
        """Start a request that has just got a slot."""
        raise NotImplementedError
