"""What a sync takes, and whether it should wait for the tasks that could share it.

Tasks that commit together share one sync if it waits for all of them (`gathered_syncs`). Where a sync takes milliseconds, that is best.
Some disks take 100 us. There two groups are better: the disk works for one while the event loop serves the other. 16 tasks that append and
call fdatasync then commit 1.15 times as often."""

from __future__ import annotations

import math
from time import perf_counter

__all__ = ("SyncCost",)

# Seconds: what the event loop needs for a task that writes and commits. Measured: 50 to 70 us.
_TASK = 60e-6


class SyncCost:
    """The time of a sync of one descriptor, and how many tasks share one."""

    __slots__ = ("_began", "_duration", "_sharers", "pays")

    def __init__(self) -> None:
        self._duration: float = math.inf  # seconds; of the fast ones: others have waited for the event loop
        self._sharers: float = 1.0
        self._began: float = 0.0
        self.pays: bool = True  # to gather them

    def note_start(self, sharers: int) -> None:
        """Note that a sync starts, for so many tasks."""
        self._began = perf_counter()
        self._sharers += (sharers - self._sharers) / 8

    def note_end(self) -> None:
        """Note that it has ended."""
        spent = perf_counter() - self._began
        self._duration = spent if spent < self._duration else self._duration + (spent - self._duration) / 8
        self.pays = self._duration > _TASK * self._sharers
