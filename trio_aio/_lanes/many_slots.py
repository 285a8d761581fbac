"""The part of the kernel lane for requests of many pieces: each may have many slots at once, one for each piece in flight.

How it works. Such a request takes the slots that no other request wants. A piece that has completed is followed by the next one in the same
slot, in C, while completions are taken (ring.c). When another request has to be queued, each of them returns half of its slots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from trio_aio._lanes.protocols import SLOT_MASK, KernelRequest, State
from trio_aio._native import ffi, lib

if TYPE_CHECKING:
    from collections import OrderedDict

    from trio_aio._native import CData

__all__ = ("ManySlots", "ManySlotsWays", "Pieces")


class Pieces(Protocol):
    """Many ranges of one file, as the kernel lane sees them."""

    native: CData
    kernel_had_it: bool
    slots: int
    most: int
    largest: int
    slab_address: int
    slab_capacity: int
    places: list[int]
    submitter: Any
    """Its `Submitter`; None: the event loop submits it."""


class ManySlots(KernelRequest, Protocol):
    """A request that may have many slots of the kernel lane at once, one for each piece in flight."""

    @property
    def pieces(self) -> Pieces:
        """Its pieces."""


class ManySlotsWays:
    """The functions for requests of many pieces. `KernelLane` is the one subclass."""

    first: int
    slots: int
    holders: list[KernelRequest | None]
    free: list[int]
    queue: OrderedDict[KernelRequest, None]
    ring: CData
    prepared: list[KernelRequest]
    many: list[ManySlots]  # requests of many pieces that have slots
    places: list[int]  # of each such slot: its part of the aligned memory

    def has_room(self, request: Any) -> bool:
        """Return whether the limit in bytes lets a request start now."""
        raise NotImplementedError

    def occupy(self, request: Any) -> int:
        """Give a request a free slot, and return its number."""
        raise NotImplementedError

    def vacate(self, slot: int) -> None:
        """Free a slot."""
        raise NotImplementedError

    def submitter(self, key: object) -> Any:
        """Return the submitter of `key`."""
        raise NotImplementedError

    def note_gathered(self, submitter: Any, request: KernelRequest) -> None:
        """Note that a submitter has something to be handed over."""
        raise NotImplementedError

    def start_pieces(self, request: ManySlots, slot: int, key: object) -> None:
        """Start a request of many pieces with one slot, and as many more as are free. `key`: of its submitter, or None: the loop's."""
        pieces = request.pieces
        pieces.submitter = None if key is None else self.submitter(key)
        request.state = State.KERNEL_PREPARED if pieces.submitter is None else State.KERNEL_HANDED_OVER
        pieces.kernel_had_it = True
        native = pieces.native
        native.submitter = ffi.NULL if pieces.submitter is None else pieces.submitter.native
        native.slept = 0
        native.next = 0
        native.width = self.slots
        pieces.most = self.slots
        if pieces.slab_capacity:
            native.slab_address = pieces.slab_address
            pieces.most = min(pieces.most, pieces.slab_capacity // native.stride)
            pieces.places = list(range(pieces.most))
        if pieces.submitter is None:
            self.prepared.append(request)
        self.many.append(request)
        self._prepare_piece(request, slot)
        self._widen()

    def _prepare_piece(self, request: ManySlots, slot: int) -> bool:
        """Give a request one more slot. False: it has no piece for it."""
        pieces = request.pieces
        place = pieces.places.pop() if pieces.places else 0
        if not lib.taio_ring_prepare_pieces(self.ring, slot, request.token, pieces.native, place):
            if pieces.slab_capacity:
                pieces.places.append(place)
            self.vacate(slot)
            pieces.most = pieces.slots
            return False
        self.places[slot] = place
        pieces.slots += 1
        if pieces.submitter is not None:
            self.note_gathered(pieces.submitter, request)
        return True

    def _widen(self) -> None:
        for request in self.many:
            pieces = request.pieces
            while self.free and not self.queue and pieces.slots < pieces.most and self.has_room(request):
                if not self._prepare_piece(request, self.occupy(request)):
                    break

    def narrow_all(self) -> None:
        """Let requests of many pieces return half of their slots: another request waits for one."""
        for request in self.many:
            native = request.pieces.native
            if native.width:
                native.width = max(1, request.pieces.slots // 2) if self.slots > 1 else 0  # the only slot: a worker does the rest

    def widen_all(self) -> None:
        """Give requests of many pieces the slots that no other wants."""
        for request in self.many:
            native = request.pieces.native
            if native.width:  # 0: the kernel refused a piece, and the request only waits for the others
                native.width = self.slots
        self._widen()

    def take_slot_back(self, request: ManySlots, token: int) -> bool:
        """Note that a request of many pieces has returned a slot. Return whether that was its last."""
        pieces = request.pieces
        if pieces.slab_capacity:
            pieces.places.append(self.places[(token & SLOT_MASK) - self.first])
        pieces.slots -= 1
        if pieces.slots:
            if not pieces.native.width:
                pieces.most = 0
            return False
        self.many.remove(request)
        return True

    def withdraw_pieces(self, request: ManySlots) -> bool:
        """Withdraw the pieces that io_submit has not seen. Return whether no piece is left in this lane."""
        pieces = request.pieces
        for slot, holder in enumerate(self.holders):
            if holder is request and lib.taio_ring_withdraw(self.ring, slot):
                self.vacate(slot)
                pieces.slots -= 1
        if pieces.slots:
            return False
        self.many.remove(request)
        if request in self.prepared:
            self.prepared.remove(request)
        if pieces.submitter is not None:
            pieces.submitter.forget(request)
        return True

    def has_many(self, request: KernelRequest) -> bool:
        """Return whether a request of many pieces has slots here."""
        return any(request is many for many in self.many)

    def stop_pieces(self, request: ManySlots) -> None:
        """Let a request whose step was torn start no more pieces. It leaves with the last one in flight."""
        pieces = request.pieces
        pieces.native.stop = 1
        pieces.native.width = pieces.most = 0
        pieces.slots = sum(holder is request for holder in self.holders)
        self.many = [many for many in self.many if many is not request]
        if pieces.slots:
            self.many.append(request)
