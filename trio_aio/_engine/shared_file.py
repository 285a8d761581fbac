"""What all descriptors of one file share: the order of its writes, and the copies of its bytes that are kept in memory.

A copy in memory must not outlive what it was copied from. Each change that goes through the engine is noted here when it starts and when
it has ended. A copy is kept only if nothing was changed while it was made.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol
from weakref import ref

from trio_aio._engine.durability import Durability

if TYPE_CHECKING:
    from trio_aio._engine.block_map import BlockMap
    from trio_aio._engine.protocols import WriteRequest

__all__ = ("Copy", "Gate", "SharedFile")


class Copy(Protocol):
    """Bytes of the file, kept in memory."""

    registered: bool

    def forget(self) -> None:
        """Drop them: the file is being changed, or was."""


def _way(request: WriteRequest) -> object:
    """Return which way a write takes: False is directly to the device, True through the page cache, another object is a way of its own."""
    return request.buffered or not request.descriptor.o_direct


class Gate:
    """Lets writes of a file that go one way pass while none goes the other: directly to the device, or through the page cache.

    First come, first served. All descriptors of the file in one context share it.

    A direct write and a write through the page cache of the same block, at one time, may lose either of them.
    """

    __slots__ = ("__weakref__", "_in_flight", "_way", "waiting")

    def __init__(self) -> None:
        self._way: object = False  # of those in flight
        self._in_flight: int = 0
        self.waiting: deque[WriteRequest] = deque()  # writes that may not start yet

    def enter(self, request: WriteRequest) -> bool:
        """Return whether a write may start now. Otherwise it waits, and `ready` will return it."""
        way = _way(request)
        if self.waiting or (self._in_flight and way is not self._way):
            self.waiting.append(request)
            return False
        request.passed_gate, self._way, self._in_flight = True, way, self._in_flight + 1
        return True

    def leave(self, request: WriteRequest) -> None:
        """Note that a write has ended. Nothing if it did not pass, or that was noted before."""
        if request.passed_gate:
            self._in_flight, request.passed_gate = self._in_flight - 1, False

    def withdraw(self, request: WriteRequest) -> None:
        """Forget a write that waits."""
        self.waiting.remove(request)

    def holds(self, request: object) -> bool:
        """Return whether a write waits here."""
        return request in self.waiting

    def start_ready(self, ready: list[Any]) -> None:
        """Let the writes pass that may start now, and add them to `ready`."""
        waiting = self.waiting
        while waiting and (not self._in_flight or _way(waiting[0]) is self._way):
            request, way, in_flight = waiting[0], _way(waiting[0]), self._in_flight + 1
            _, _, request.passed_gate, self._way, self._in_flight = ready.append(waiting[0]), waiting.popleft(), True, way, in_flight


class SharedFile:
    """One file, by its inode number."""

    __slots__ = ("__weakref__", "_copies", "_sweep_at", "birth", "block_map", "changed_in_thread", "durability", "gate", "version")

    def __init__(self, durability: Durability | None = None, birth: int = 0) -> None:
        self.birth: int = birth  # when the file was made, nanoseconds; 0: not known
        self.durability: Durability = durability or Durability(None, {})
        self.gate: Gate = Gate()
        self.version: int = 0  # counts `note_change`
        self.changed_in_thread: bool = False  # another thread has changed the file (`BlockingFile`), and it was not noted yet
        self.block_map: BlockMap | None = None  # of a file that is open for direct I/O
        # Plain references and not a WeakSet, which a finalizer in another thread may change during an iteration.
        self._copies: list[ref[Copy]] = []
        self._sweep_at: int = 8  # so many references, and those that are dead are removed

    def register_cache(self, copy: Copy) -> None:
        """Have `forget` of a copy called with the next change."""
        if copy.registered:
            return
        copy.registered = True
        self._copies.append(ref(copy))
        if len(self._copies) > self._sweep_at:
            self._copies = [known for known in self._copies if known() is not None]
            self._sweep_at = 2 * len(self._copies) + 8

    def note_change(self) -> None:
        """Note that a change starts, or has ended."""
        self.changed_in_thread = False
        self.version += 1
        if self._copies:
            copies, self._copies = self._copies, []
            for known in copies:
                copy = known()
                if copy is not None:
                    copy.registered = False
                    copy.forget()
