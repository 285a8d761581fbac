"""`Pace`: lets other tasks run while a call has much to compute: lines to gather or to split, text to encode or to decode.

One step of such work takes less than a millisecond, and a call may need thousands of steps. So it asks after each step, or after some,
whether it has kept the event loop's thread for long. The files call this.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_aio._backends import Backend

__all__ = ("Pace",)

# Seconds of work between two checkpoints. Other tasks are late by so much, and by one step more.
_LONGEST = 0.002


class Pace:
    """Counts the time since other tasks have run."""

    __slots__ = ("_backend", "_due")

    def __init__(self, backend: Backend) -> None:
        self._backend: Backend = backend
        self._due: float = perf_counter() + _LONGEST

    async def rest(self) -> None:
        """Run a checkpoint if the last one was 2 ms ago. Never raises Cancelled."""
        if perf_counter() >= self._due:
            await self._backend.cancel_shielded_checkpoint()
            self._due = perf_counter() + _LONGEST
