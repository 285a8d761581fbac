"""`ClockHold`: a mock clock of trio's does not jump while a request of ours is in flight.

How trio works. ``MockClock(autojump_threshold=...)``, and pytest-trio's `autojump_clock`, jump to the next deadline when all tasks have
been blocked for the threshold. A task that waits for a disk is blocked. So the clock jumps over the request, and a timeout around it
expires.

What we do about it. While a request is in flight, `autojump_threshold` is infinite. It is the public attribute of the clock, so nothing
waits for the disk: other tasks continue, sockets and subprocesses too, and the guest mode works. trio reads it after the last task of a
tick, so an instrument that is called after each task keeps it right. It is there only if the clock of the run is such a clock.

A poll waits for others, as ``wait_readable`` does, and does not hold the clock. Nor do requests that a test lets hang: a test may say
``fail_after(5)`` over a hung disk. `AIOContext` says what is in flight.
"""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("ClockHold",)


class ClockHold:
    """An instrument of trio's for a run whose clock has an `autojump_threshold`."""

    def __init__(self, clock: Any) -> None:
        self._clock: Any = clock
        # What the clock had before it was held; None if it is not held.
        self._threshold: float | None = None
        self._sources: list[weakref.WeakMethod[Callable[[], bool]]] = []
        # Calls of foreign code in threads.
        self.threads: int = 0

    def watch(self, is_busy: Callable[[], bool]) -> None:
        """Hold the clock while a bound method returns True. It is called after each task, and forgotten with its object."""
        self._sources = [source for source in self._sources if source() is not None]
        self._sources.append(weakref.WeakMethod(is_busy))

    def after_task_step(self, task: object) -> None:
        """Hold the clock, or release it. trio calls this after each task."""
        busy = self.threads > 0
        for source in self._sources:
            is_busy = source()
            busy = busy or (is_busy is not None and is_busy())
        if busy == (self._threshold is not None):
            return
        if busy:
            self._threshold, self._clock.autojump_threshold = self._clock.autojump_threshold, math.inf
            return
        kept, self._threshold = self._threshold, None
        # Otherwise the program has set another meanwhile.
        if self._clock.autojump_threshold == math.inf:
            self._clock.autojump_threshold = kept
