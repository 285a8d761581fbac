"""How a contender is measured: phases of a load, the clocks around them, and a loop that ticks beside it.

A load runs in phases: a short one to start threads and fill pools, one for the rate and the CPU time, one for the event loop's lateness.
The ticks of the last would cost a fast contender some percent, so they have a phase of their own, except where a load is
read or written just once (`Load.whole`) and a tick each millisecond is nothing beside it.

Cold loads are put out of the page cache before each phase. CPU time is that of the whole process, whatever threads it has; a polling
thread of io_uring is among them.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import resource
import threading
import time
from array import array
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from types import TracebackType

    from anyio.abc import TaskStatus

__all__ = ("Load", "Measured", "Phase", "Unavailable", "Work", "drive", "evict")

TICK = 0.001  # seconds
WARM_UP = 0.2  # of the time for the rate
LATENESS = 0.5
TOGETHER = 16  # tasks started at once


class Unavailable(Exception):
    """This contender cannot be had here, and why."""


@dataclass(frozen=True)
class Load:
    """What every contender of a row has to do."""

    path: str
    """The file that is read. Where one is written: a name that is free, beside it."""
    size: int
    """How much of it is used, in bytes."""
    piece: int
    """Bytes of one operation."""
    tasks: int
    """How many are at it."""
    seconds: float
    """For the phase that measures the rate."""
    seed: int
    """For the order of random offsets."""
    random: bool = True
    """The offsets: in random order, else in order and from the start again."""
    direct: bool = False
    """O_DIRECT."""
    cold: bool = False
    """Out of the page cache before each phase, and no piece is read twice."""
    whole: bool = False
    """All pieces once, in order, however long it takes."""


@dataclass
class Measured:
    """What one round of one contender came to."""

    operations: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    """Seconds, of all threads."""
    late: list[float] = field(default_factory=list)
    """Seconds by which each tick was late; empty if there was no loop to tick."""
    peak: int = 0
    """Bytes resident at most, since the process began."""
    waited: float = 0.0
    """Seconds in which the thread of the loop could have run, and others had the processors: other programs, or its own workers."""


class _Kind(Enum):
    WARM_UP = "warm-up"
    RATE = "rate"
    LATENESS = "lateness"
    BOTH = "both"


class Phase:
    """A stretch of a load: ``with phase:`` starts the clocks, and the load ends when `over` is true or the offsets are used up."""

    def __init__(self, load: Load, kind: _Kind) -> None:
        share = {_Kind.WARM_UP: WARM_UP, _Kind.LATENESS: LATENESS}.get(kind, 1)
        self._load: Load = load
        self.kind: _Kind = kind
        self.over: bool = False
        self.operations: int = 0
        self.late: list[float] = []
        self.seconds: float = 0.0
        self.cpu: float = 0.0
        self.waited: float = 0.0
        # A thread, because some contenders have no loop. It wakes once.
        self._timer: threading.Timer = threading.Timer(load.seconds * share, self._end)
        # Made now: it takes milliseconds, which no event loop ticks in.
        self._order: array[int] = self._in_order()
        self._once: bool = load.cold or load.whole
        self._offsets: Iterator[int] = iter(self._order) if self._once else itertools.cycle(self._order)

    @property
    def ticking(self) -> bool:
        """Whether lateness is measured in it."""
        return self.kind in (_Kind.LATENESS, _Kind.BOTH)

    def _end(self) -> None:
        self.over = True

    def _in_order(self) -> array[int]:
        offsets = array("q", range(0, self._load.size - self._load.piece + 1, self._load.piece))
        if self._load.random and not self._load.whole:
            random.Random(f"{self._load.seed} {self.kind}").shuffle(offsets)
        return offsets

    def offsets(self) -> Iterator[int]:
        """Give the offset of one operation after another, of one at least. Tasks share them: each calls this for itself."""
        for offset in self._offsets:
            if self.over and self.operations:
                return
            self.operations += 1
            yield offset

    def batches(self, count: int) -> Iterator[array[int]]:
        """Give `count` offsets at a time as int64; the caller adds to `operations`."""
        made = [self._order[first : first + count] for first in range(0, len(self._order), count)]
        for batch in made if self._once else itertools.cycle(made):
            if self.over and self.operations:
                return
            yield batch

    def __enter__(self) -> Phase:
        if not self._load.whole:
            self._timer.start()
        self.waited = -_waited()
        self.cpu = -time.process_time()
        self.seconds = -time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.seconds += time.perf_counter()
        self.cpu += time.process_time()
        self.waited += _waited()
        self.over = True
        if not self._load.whole:
            self._timer.cancel()
            self._timer.join()  # it ends at once


class Work:
    """A load, and what is measured of it."""

    def __init__(self, load: Load) -> None:
        self.load: Load = load
        self.measured: Measured = Measured()

    def phases(self) -> Iterator[Phase]:
        """Give each phase in turn, and take what it found."""
        gc.collect()
        for kind in (_Kind.BOTH,) if self.load.whole else (_Kind.WARM_UP, _Kind.RATE, _Kind.LATENESS):
            phase = Phase(self.load, kind)
            if self.load.cold:
                evict(self.load.path)
            yield phase
            if kind in (_Kind.RATE, _Kind.BOTH):
                self.measured.operations = phase.operations
                self.measured.seconds = phase.seconds
                self.measured.cpu = phase.cpu
                self.measured.waited = phase.waited
            self.measured.late += phase.late
        self.measured.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


async def drive(work: Work, task: Callable[[Phase], Coroutine[Any, Any, None]], tasks: int | None = None) -> None:
    """Run a load's tasks through all phases, on whatever event loop this is."""
    for phase in work.phases():
        async with anyio.create_task_group() as beside:
            if phase.ticking:
                await beside.start(_tick, phase.late)
            with phase:
                async with anyio.create_task_group() as group:
                    for number in range(work.load.tasks if tasks is None else tasks):
                        group.start_soon(task, phase)
                        if number % TOGETHER == TOGETHER - 1:  # two thousand in one tick would themselves keep the loop from ticking
                            await anyio.lowlevel.checkpoint()
            beside.cancel_scope.cancel()


async def _tick(late: list[float], *, task_status: TaskStatus[None]) -> None:
    # Each tick is a millisecond after the last, not on a grid: both loops round their sleeps up to milliseconds, and on a grid that alone
    # would make ticks late by up to one. Ticks that fell due while the loop was away are late too, each by its own time: else a
    # stall of a second would be one late tick in a thousand good ones.
    task_status.started()
    while True:
        asked = time.perf_counter()
        try:
            await anyio.sleep(TICK)
        finally:  # also one that the end of the load comes before
            behind = time.perf_counter() - asked - TICK
            while behind >= 0:
                late.append(behind)
                behind -= TICK


def _waited() -> float:
    """Give how long this thread has waited for a processor so far; 0 where the kernel does not count it."""
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except OSError:
        return 0.0


def evict(path: str) -> None:
    """Put a file out of the page cache, dirty pages to the disk before."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
