"""`Alarm`: lets requests that a fault has delayed run when it is time.

A test may use a mocked clock, which jumps over sleeps. A slow disk does not. So a delay is in real time, and a timer of the event loop
cannot measure it. A thread sleeps until the next delayed request is due, and passes it to `FaultHook.release`, which any thread may call.

The thread starts with the first delay. `FaultHook` owns the alarm, and stops it when its engine closes.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Alarm",)


class Alarm:
    """A thread that calls `ring` with each request when its time has come, in real time."""

    def __init__(self, ring: Callable[[Any], None]) -> None:
        self._ring: Callable[[Any], None] = ring
        self._changed: threading.Condition = threading.Condition()
        self._times: list[tuple[float, int, Any]] = []
        self._numbers: itertools.count[int] = itertools.count()
        self._stopped: bool = False
        self._thread: threading.Thread | None = None

    def set(self, seconds: float, request: Any) -> None:
        """Ring for a request in `seconds`."""
        with self._changed:
            heapq.heappush(self._times, (time.monotonic() + seconds, next(self._numbers), request))
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="trio_aio delays", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        with self._changed:
            while not self._stopped:
                now = time.monotonic()
                while self._times and self._times[0][0] <= now:
                    self._ring(heapq.heappop(self._times)[2])
                self._changed.wait(self._times[0][0] - now if self._times else None)

    def stop(self) -> None:
        """Stop the thread, and wait for its end. Requests that are not due yet never ring."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
