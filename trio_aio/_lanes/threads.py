"""Threads that the event loop starts without waiting for them.

``threading.Thread.start`` returns when the new thread has run. On busy processors that takes milliseconds (p99: 7.9), in which
the event loop stands still. ``_thread.start_new_thread`` returns at once (0.05 ms). Such a thread is a daemon: the interpreter does not
wait for it at its end. CPython 3.10 crashes if the interpreter ends before a new thread has run at all, so the end waits for that.

A new thread needs memory: for its first frame, and then for what libraries keep for each thread (glibc ends the process if there is none).
So a thread starts only where that much can be had, and half of it is kept from others until the thread has run its first line.
"""

from __future__ import annotations

import atexit
import os
from _thread import allocate_lock, stack_size, start_new_thread
from mmap import mmap
from resource import RLIMIT_STACK, getrlimit
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Background", "living")

NEEDS = 4 << 20  # bytes of address space, beside its stack: Python and glibc take memory by the MiB
STACK, _ = getrlimit(RLIMIT_STACK)  # bytes of a stack, unless it is given; glibc took it from here when the program started

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
        self._kept: mmap | None = None

    def start(self) -> None:
        """Start it, and do not wait for it. RuntimeError if no more threads can be had."""
        try:
            living.add(self)
            self._kept = _memory_for_a_thread()
            start_new_thread(self._run, ())
        except BaseException:
            living.discard(self)
            self._give_back_memory()
            raise

    def _give_back_memory(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    def _run(self) -> None:
        self._entered.release()
        try:
            self._give_back_memory()
            self._function(*self._args)
        finally:
            living.discard(self)
            self._running.release()

    def join(self) -> None:
        """Wait, blocking, until the function has returned."""
        with self._running:
            pass


def _memory_for_a_thread() -> mmap:
    """Take as much memory as a new thread needs, release its stack and half of the rest, and return the other half. RuntimeError."""
    stack = stack_size() or STACK
    kept: mmap | None = None
    try:
        kept = mmap(-1, NEEDS // 2)
        mmap(-1, NEEDS // 2 + (stack if 0 < stack < 1 << 30 else 8 << 20)).close()
    except OSError as error:
        if kept is not None:
            kept.close()
        raise RuntimeError("there is no memory for a new thread") from error
    return kept


def _wait_until_entered() -> None:
    for thread in list(living):
        with thread._entered:
            pass


atexit.register(_wait_until_entered)
os.register_at_fork(after_in_child=living.clear)
