"""A copy of callers' memory that may belong to a mapped file, made by a worker: see `_memory.mappings`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_aio._memory.exports import Export, Vector
from trio_aio._native import lib
from trio_aio._requests.base import Request

if TYPE_CHECKING:
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.host import Host
    from trio_aio._lanes.workers import WorkerLane

__all__ = ("gather",)


def gather(descriptor: Descriptor, exports: list[Export], target: Export, at: int = 0) -> Request:
    """Return a request that copies exports, one after the other, to a target, from its byte `at` on. Its result is the number of bytes.

    OSError: EFAULT; what the target has then is undefined. `descriptor` is that of the file that the bytes are for.
    """
    return _Gather(descriptor, exports, target, at)


class _Gather(Request):
    __slots__ = ("at", "target", "vector")

    def __init__(self, descriptor: Descriptor, exports: list[Export], target: Export, at: int) -> None:
        Request.__init__(self, descriptor)
        self.vector: Vector | None = Vector([*exports])  # held until the request has ended
        self.target: Export = target
        self.at: int = at  # index in the target of the first byte

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        vector = self.vector
        assert vector is not None
        address = self.target.address + self.at
        lane.prepare(slot, before, self.token, lib.TAIO_GATHER, -1, vector.address, len(vector.exports), extra=address)

    def release_memory(self, engine: Host) -> None:
        self.vector = None
