"""Syncs that wait for the end of a tick, so that tasks which commit together share one.

How the kernel works. A sync takes milliseconds on most disks, a buffered write some microseconds. Tasks that write and then sync, again and
again, are woken together when a sync ends. If the first that is ready starts the next sync alone, all others wait for the one after it, and
the tasks split into two groups that take turns at the disk.

What we do about it. A sync that a task asks for starts at the end of the tick. One that becomes ready because others have ended starts a
tick later: the tasks that were woken run in between. If they have started small writes by then, it waits for these too, once (`Order`).

On a disk that syncs faster than the event loop serves the tasks, two groups are better, and no sync waits (`sync_cost`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_aio._engine.host import Host
    from trio_aio._engine.order import Order

__all__ = ("GatheredSyncs",)


class GatheredSyncs:
    """The orders that have a sync to start, and whether it waits for one more tick."""

    def __init__(self, engine: Host) -> None:
        self._engine: Host = engine
        self.due: dict[Order, bool] = {}

    def add(self, order: Order, *, later: bool) -> None:
        """Note that the first sync of an order may start at the end of this tick, or of the next one."""
        self.due.setdefault(order, later)
        self._engine.ask_for_flush()

    def note_tick(self) -> None:
        """Have `release` called at the end of this tick too."""
        if self.due:
            self._engine.ask_for_flush()

    def release(self) -> None:
        """Let the syncs start that have waited for long enough. Called at the end of a tick."""
        due, engine = self.due, self._engine
        if not due:
            return
        for order, later in [*due.items()]:
            if later:
                due[order] = False
                engine.wake_loop()  # otherwise the event loop may wait for I/O, with no task to run
            else:
                order.release_sync(engine.ready)
                del due[order]
