"""What the kernel lane and the worker lane have in common: slots for requests that are out, and the queue of those that wait for one.

A completion names its request by a token: the slot's number, and above it a generation that counts how often the slot was given away.
A completion that comes late, or twice, finds that its token is no longer the slot's, and cannot be taken for a younger request's.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_aio._request import Request, State

__all__ = ("SLOT_BITS", "SLOT_MASK", "Lane")

SLOT_BITS = 32
SLOT_MASK = (1 << SLOT_BITS) - 1
_GENERATION = 1 << SLOT_BITS
_MAX_TOKEN = (1 << 63) - 1  # completions carry it through a signed integer


class Lane:
    """Slots `first` to `first + slots - 1`, and a first-come-first-served queue before them."""

    queued_state: State
    byte_limit: int = sys.maxsize  # of all requests that have a slot, unless it is one alone

    def __init__(self, first: int, slots: int) -> None:
        self.first: int = first
        self.slots: int = slots
        self.holders: list[Request | None] = [None] * slots
        self._weights: list[int] = [0] * slots  # bytes of each holder when it came
        self._tokens: list[int] = list(range(first, first + slots))
        self._free: list[int] = list(range(slots - 1, -1, -1))
        self._bytes: int = 0
        self._queue: OrderedDict[Request, None] = OrderedDict()  # any of them may leave, at no cost

    @property
    def in_flight(self) -> int:
        """How many slots are taken."""
        return self.slots - len(self._free)

    @property
    def queued(self) -> int:
        """How many requests wait for a slot."""
        return len(self._queue)

    def accept(self, request: Request) -> None:
        """Start a request, or queue it if there is no slot for it yet."""
        if self._free and not self._queue and self._has_room(request):
            self._start(request, self._occupy(request))
        else:
            request.advance(self.queued_state)
            self._queue[request] = None
            self._crowded()

    def pump(self) -> None:
        """Start queued requests as far as slots are free."""
        while self._queue and self._free:
            request = next(iter(self._queue))
            if not self._has_room(request):
                return
            self._queue.popitem(last=False)
            self._start(request, self._occupy(request))

    def take(self, token: int) -> Request | None:
        """Free the slot of a completion; give the request that had it, None if that was withdrawn meanwhile."""
        slot = (token & SLOT_MASK) - self.first
        if self._tokens[slot] != token:
            raise RuntimeError(f"a completion with the token {token:#x}, which no request has: this is a bug in trio_aio")
        request = self.holders[slot]
        self._vacate(slot)
        return request

    def withdraw_queued(self, request: Request) -> None:
        """Take a request out of the queue."""
        del self._queue[request]

    def requests(self) -> Iterator[Request]:
        """Give the requests that have a slot."""
        return (request for request in self.holders if request is not None)

    def waiting(self) -> Iterator[Request]:
        """Give the requests that wait for a slot, in order."""
        return iter(self._queue)

    def _has_room(self, request: Request) -> bool:
        return self._bytes + request.nbytes <= self.byte_limit or len(self._free) == self.slots

    def _occupy(self, request: Request) -> int:
        slot = self._free.pop()
        request.token = self._tokens[slot]
        self.holders[slot] = request
        self._weights[slot] = request.nbytes
        self._bytes += request.nbytes
        return slot

    def _vacate(self, slot: int) -> None:
        self.holders[slot] = None
        self._bytes -= self._weights[slot]
        token = self._tokens[slot] + _GENERATION
        self._tokens[slot] = token if token <= _MAX_TOKEN else self.first + slot
        self._free.append(slot)

    def _crowded(self) -> None:
        """A request had to be queued."""

    def _start(self, request: Request, slot: int) -> None:
        raise NotImplementedError
