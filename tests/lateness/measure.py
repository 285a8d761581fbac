"""What an event loop does beside a call: how late an idle task is, and whether the loop's thread slept.

Lateness alone cannot tell a loop that sleeps from a machine that is busy. So each turn of the loop, which is what it does between two waits
for events, is divided into three: the thread ran (its CPU clock), it was ready and had to wait for a processor (``schedstat``), and the
rest, in which it slept. The kernel counts each sleep (``ru_nvcsw``), however busy the machine is. Another process ticks in the same way at
the same time: if it is as late, the machine was.
"""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import multiprocessing
import os
import resource
import selectors
import signal
import struct
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

TICK = 0.002  # seconds
_WORST = struct.Struct("dd")


@dataclass
class Turns:
    """The turns of a loop since `clear`, in ms: how long its thread slept at a time, and ran in one turn, at most.

    slept: the mean of the sleeps of one turn. A wait for the GIL, which another thread has, is a row of sleeps of 5 ms; one for a device is
    one sleep that lasts.
    """

    slept: float = 0.0
    ran: float = 0.0
    sleeps: int = 0  # how often the thread slept outside of the wait for events

    def clear(self) -> None:
        self.slept = self.ran = 0.0
        self.sleeps = 0


class Queue:
    """How long the calling thread has waited for a processor, in ns, by the kernel's account."""

    def __init__(self) -> None:
        self._file: int = os.open("/proc/thread-self/schedstat", os.O_RDONLY)

    def waited(self) -> int:
        return int(os.pread(self._file, 100, 0).split()[1])

    def close(self) -> None:
        os.close(self._file)


class TurnClock:
    """Divides the turns of the loop's own thread. `begin` is called when the loop stops waiting for events, `end` before it waits."""

    def __init__(self, turns: Turns) -> None:
        self._turns: Turns = turns
        self._queue: Queue = Queue()
        self._began: tuple[int, int, int, int] | None = None

    def _now(self) -> tuple[int, int, int, int]:
        """Return the time, the time on a processor and that in the queue for one, all in ns, and the count of sleeps."""
        sleeps = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        return time.monotonic_ns(), time.thread_time_ns(), self._queue.waited(), sleeps

    def begin(self) -> None:
        self._began = self._now()

    def end(self) -> None:
        if self._began is None:
            return
        time_, ran, queued, sleeps = (now - before for now, before in zip(self._now(), self._began, strict=True))
        turns = self._turns
        turns.ran = max(turns.ran, ran / 1e6)
        if sleeps:
            turns.sleeps += sleeps
            turns.slept = max(turns.slept, (time_ - ran - queued) / 1e6 / sleeps)

    def close(self) -> None:
        self._queue.close()


class _TrioTurns(trio.abc.Instrument):
    def __init__(self, clock: TurnClock) -> None:
        self._clock: TurnClock = clock

    def after_io_wait(self, timeout: float) -> None:
        self._clock.begin()

    def before_io_wait(self, timeout: float) -> None:
        self._clock.end()


class _Selector(selectors.EpollSelector):
    clock: TurnClock

    def select(self, timeout: float | None = None) -> Any:
        self.clock.end()
        try:
            return super().select(timeout)
        finally:
            self.clock.begin()


def run(loop: str, main: Any, turns: Turns) -> Any:
    """Run `main()` on trio or asyncio, with its turns divided, and return its result."""
    clock = TurnClock(turns)
    try:
        if loop == "trio":
            return trio.run(main, instruments=[_TrioTurns(clock)])
        selector = _Selector()
        selector.clock = clock
        return anyio.run(main, backend="asyncio", backend_options={"loop_factory": lambda: asyncio.SelectorEventLoop(selector)})
    finally:
        clock.close()


class Lateness:
    """How late ticks were, in ms: the worst since `clear`. In shared memory, because a process of its own may tick.

    worst: in all. own: without the time in which the thread was ready and waited for a processor.
    """

    def __init__(self) -> None:
        self._memory: mmap.mmap = mmap.mmap(-1, _WORST.size)

    @property
    def worst(self) -> float:
        return float(_WORST.unpack(self._memory[:])[0])

    @property
    def own(self) -> float:
        return float(_WORST.unpack(self._memory[:])[1])

    def clear(self) -> None:
        self._memory[:] = bytes(_WORST.size)

    async def tick(self) -> None:
        """Tick until cancelled."""
        queue = Queue()
        try:
            while True:
                due, waited = time.monotonic() + TICK, queue.waited()
                await anyio.sleep(TICK)
                late = (time.monotonic() - due) * 1000
                own = late - (queue.waited() - waited) / 1e6
                self._memory[:] = _WORST.pack(max(self.worst, late), max(self.own, own))
        finally:
            queue.close()


def _tick_alone(lateness: Lateness) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    trio.run(lateness.tick)


@contextmanager
def ticking_elsewhere() -> Iterator[Lateness]:
    """Let another process tick as the loop that is measured does, and yield how late it is."""
    lateness = Lateness()
    process = multiprocessing.get_context("fork").Process(target=_tick_alone, args=(lateness,))
    process.start()
    try:
        yield lateness
    finally:
        process.terminate()
        process.join()
