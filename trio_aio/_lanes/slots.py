"""What the kernel lane and the worker lane have in common: slots for requests in flight, and the queue of those that wait for one.

A completion names its request by a token: the slot's number, and above it a generation that counts how often the slot was given away.
A completion that comes late, or twice, does not match the token of its slot, so it is never taken for a younger request's.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from trio_aio._lanes.protocols import LaneRequest, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ("SLOT_BITS", "SLOT_MASK", "Lane")

SLOT_BITS = 32
SLOT_MASK = (1 << SLOT_BITS) - 1
_GENERATION = 1 << SLOT_BITS
_MAX_TOKEN = (1 << 63) - 1  # completions carry the token through a signed integer

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
                slot = free.pop()
                request.token = self.tokens[slot]
                self.holders[slot] = request
                self.weights[slot] = total - self.bytes_in_flight
                self.bytes_in_flight = total
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
            self.queue.popitem(last=False)
            self.begin(request, self.occupy(request))

    def take(self, token: int) -> RequestT | None:
        """Free the slot of a completion. Return the request that had it; None if that was withdrawn meanwhile."""
        slot = (token & SLOT_MASK) - self.first
        if self.tokens[slot] != token:
            raise RuntimeError(f"a completion has the token {token:#x}, which belongs to no request: this is a bug in trio_aio")
        request = self.holders[slot]
        self.holders[slot] = None  # from here on as `vacate`, without the call
        self.bytes_in_flight -= self.weights[slot]
        token += _GENERATION
        self.tokens[slot] = token if token <= _MAX_TOKEN else self.first + slot
        self.free.append(slot)
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
        slot = self.free.pop()
        request.token = self.tokens[slot]
        self.holders[slot] = request
        self.weights[slot] = request.nbytes
        self.bytes_in_flight += request.nbytes
        return slot

    def vacate(self, slot: int) -> None:
        """Free a slot. A token that names it from before is stale now."""
        self.holders[slot] = None
        self.bytes_in_flight -= self.weights[slot]
        token = self.tokens[slot] + _GENERATION
        self.tokens[slot] = token if token <= _MAX_TOKEN else self.first + slot
        self.free.append(slot)

    def take_back(self, request: Any) -> None:
        """Free the slot of a request that could not be started, if it has one."""
        slot = self.slot_of(request)
        if 0 <= slot < self.slots and self.holders[slot] is request:
            self.vacate(slot)

    def note_queued(self) -> None:
        """Note that a request had to be queued."""

    def start_in_slot(self, request: RequestT, slot: int) -> None:
        """Start a request that has just got a slot."""
        raise NotImplementedError
