"""What finalizers leave to the engine: descriptors to be closed, reads that no task will take, and leases of a run that has ended.

A finalizer runs at any moment, in any thread, perhaps while the engine closes, or in the middle of one of its steps. So this is the one
part of the engine that has a lock, and a finalizer changes nothing else. The lock is reentrant, because the collector may run a finalizer
inside.
"""

from __future__ import annotations

import threading
from collections import deque
from os import eventfd_write
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.protocols import Request
    from trio_aio._engine.shared_file import SharedFile

__all__ = ("Drops",)


class Drops:
    """A list that any thread may add to, until the engine is closed."""

    def __init__(self, event_fd: int) -> None:
        self._event_fd: int = event_fd
        self.lock: threading.RLock = threading.RLock()
        self._list: deque[tuple[Descriptor | None, Request]] = deque()
        self.closed: bool = False
        self._changed: deque[SharedFile] = deque()
        self._leases: deque[Callable[[], object]] = deque()

    def __bool__(self) -> bool:
        return bool(self._list or self._changed or self._leases)

    def add(self, descriptor: Descriptor | None, request: Request) -> None:
        """Leave a close of `descriptor` to the engine, or, without one, a read that no task will take.

        The request was made before: a finalizer may run when there is no memory.
        """
        if not self.call(lambda: self._list.append((descriptor, request))) and descriptor is not None and not descriptor.order.leases:
            descriptor.close_now()

    def note_change(self, shared_file: SharedFile) -> None:
        """Leave to the engine what a change in another thread means for read-ahead: that belongs to the event loop's thread."""
        self.call(lambda: self._changed.append(shared_file))

    def end_lease(self, end: Callable[[], object]) -> bool:
        """Leave the end of a lease to the thread that drains the engine. False: the engine is closed. end: may be called twice."""
        return self.call(lambda: self._leases.append(end))

    def end_leases(self) -> None:
        """End the leases that are left here."""
        while self._leases:
            self._leases[0]()
            self._leases.popleft()

    def forget_changed(self) -> None:
        """Drop what was read ahead of files that other threads have changed. For the event loop's thread."""
        while self._changed:
            shared_file = self._changed[0]
            if shared_file.changed_in_thread:
                shared_file.note_change()
            self._changed.popleft()

    def call(self, function: Callable[[], object]) -> bool:
        """Call a function and wake the reaper, unless the engine is closed. Return whether it was called."""
        with self.lock:
            if self.closed:
                return False
            function()
            eventfd_write(self._event_fd, 1)
            return True

    @property
    def oldest(self) -> tuple[Descriptor | None, Request] | None:
        """What was added first; None if there is nothing."""
        with self.lock:
            return self._list[0] if self._list else None

    def remove_oldest(self) -> None:
        """Remove what was added first: the engine has it."""
        with self.lock:
            self._list.popleft()

    def close(self) -> None:
        """Take no more, and close now the descriptors that are left."""
        with self.lock:
            self.closed = True
        self.end_leases()
        for descriptor, _ in self._list:
            if descriptor is not None:
                descriptor.close_now()
