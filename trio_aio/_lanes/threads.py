"""Threads that the event loop starts without waiting for them.

``threading.Thread.start`` returns when the new thread has run. Beside busy processors that takes milliseconds (p99: 7.9), in which
the event loop stands still. ``_thread.start_new_thread`` returns at once (0.05 ms). Such a thread is a daemon: the interpreter does not
wait for it at its end. CPython 3.10 crashes if the interpreter ends before a new thread has run at all, so the end waits for that.
"""

from __future__ import annotations

import atexit
import os
from _thread import allocate_lock, start_new_thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Background", "living")

living: set[Background] = set()


class Background:
    """A thread that calls a function, once it is started."""

    def __init__(self, name: str, function: Callable[..., object], *args: Any) -> None:
        self.name: str = name
        self._function: Callable[..., object] = function
        self._args: tuple[Any, ...] = args
        self._running: Any = allocate_lock()
        self._running.acquire()
        self._entered: Any = allocate_lock()  # held until the thread has run its first line
        self._entered.acquire()

    def start(self) -> None:
        """Start it, and do not wait for it. RuntimeError if no more threads can be had."""
        try:
            living.add(self)
            start_new_thread(self._run, ())
        except BaseException:
            living.discard(self)
            raise

    def _run(self) -> None:
        self._entered.release()
        try:
            self._function(*self._args)
        finally:
            living.discard(self)
            self._running.release()

    def join(self) -> None:
        """Wait, blocking, until the function has returned."""
        with self._running:
            pass


def _wait_until_entered() -> None:
    for thread in list(living):
        with thread._entered:
            pass


atexit.register(_wait_until_entered)
os.register_at_fork(after_in_child=living.clear)
