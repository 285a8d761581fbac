"""What the kernel lane asks of a request that may have many of its slots at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from trio_aio._lanes.protocols import KernelRequest

if TYPE_CHECKING:
    from trio_aio._native import CData

__all__ = ("ManySlots", "Pieces")


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
