"""The kernel lane: io_submit.

How the kernel works. ``io_submit`` is asynchronous only for what the filesystem can start without sleeping. RWF_NOWAIT makes it say
EAGAIN (in the event) where it would have slept, so every read and write of ours carries it where the filesystem knows it. Each call
costs a doorbell of the device, and all requests of one call share it. The call stops at a request that it refuses; ring.c goes on behind.
A block device takes so many pieces at a time (``nr_requests``, often 256; 1 MiB in scattered pages is several), and whoever comes with
more sleeps in the call, whatever RWF_NOWAIT says: 99 reads of 1 MiB kept the loop for 83 ms.

What we do about it. A request that finds the lane empty is submitted at once; others are prepared, and submitted together at
the end of the event loop's tick, when all tasks that were woken together have had their turn. The bytes in flight are bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_aio._lane import SLOT_MASK, Lane
from trio_aio._native import ffi, lib
from trio_aio._request import Operation, Request, State

if TYPE_CHECKING:
    from trio_aio._kernel_context import KernelContext
    from trio_aio._native._ext import CData

__all__ = ("KernelLane",)

_NAMES = {"READ": "PREAD", "WRITE": "PWRITE", "READV": "PREADV", "WRITEV": "PWRITEV", "FDATASYNC": "FDSYNC"}
_COMMANDS = tuple(getattr(lib, f"IOCB_CMD_{_NAMES.get(operation.name, operation.name)}", -1) for operation in Operation)
_NOWAIT = lib.RWF_NOWAIT
_prepare = lib.taio_ring_prepare


class KernelLane(Lane):
    """Requests that the kernel has, or will have at the end of this tick."""

    queued_state = State.KERNEL_QUEUED
    byte_limit = 16 << 20

    def __init__(self, first: int, slots: int, context: KernelContext, event_fd: int) -> None:
        super().__init__(first, slots)
        self.context: KernelContext = context
        self.ring: CData = lib.taio_ring_new(context.id, slots, event_fd)
        if not self.ring:
            raise MemoryError
        self._prepared: list[Request] = []
        self._calls: CData = ffi.new("uint64_t *")
        self._refused: CData = ffi.new("struct taio_completion[]", slots)

    @property
    def submit_calls(self) -> int:
        """How many times io_submit was called."""
        calls: int = self._calls[0]
        return calls

    @property
    def prepared(self) -> int:
        """How many requests wait for `submit`."""
        return len(self._prepared)

    @property
    def idle(self) -> bool:
        """Whether a request that was just prepared is the only one there is."""
        return self.slots - len(self._free) == len(self._prepared) == 1

    def _start(self, request: Request, slot: int) -> None:
        request.state = State.KERNEL_PREPARED
        flags = request.flags | _NOWAIT if request.probing else request.flags
        _prepare(
            self.ring,
            slot,
            request.token,
            _COMMANDS[request.operation],
            request.descriptor.fd,
            request.address,
            request.length,
            request.offset,
            flags,
        )
        self._prepared.append(request)

    def submit(self) -> tuple[list[Request], list[tuple[int, int, int]]]:
        """Call io_submit for what is prepared. Give the requests that it was given, and completions of those it refused.

        What the ring has no room for (it never should) stays prepared.
        """
        tried = self._prepared
        refused = lib.taio_ring_submit(self.ring, self._refused, self.slots, self._calls)
        left = lib.taio_ring_prepared(self.ring)
        self._prepared = tried[len(tried) - left :]
        tried = tried[: len(tried) - left]
        for request in tried:
            request.state = State.KERNEL_IN_FLIGHT
        out = self._refused
        return tried, [(out[i].token, out[i].result, 0) for i in range(refused)]

    def withdraw_prepared(self, request: Request) -> None:
        """Take a request back that io_submit has not seen."""
        slot = (request.token & SLOT_MASK) - self.first
        lib.taio_ring_withdraw(self.ring, slot)
        self._prepared.remove(request)
        self._vacate(slot)

    def cancel(self, request: Request) -> bool:
        """Ask io_cancel; give whether the kernel accepted."""
        return lib.taio_ring_cancel(self.ring, (request.token & SLOT_MASK) - self.first) == 0

    def close(self) -> None:
        """Free the ring's memory. Nothing is in flight; the kernel's context is somebody else's."""
        lib.taio_ring_free(self.ring)
        self.ring = ffi.NULL
