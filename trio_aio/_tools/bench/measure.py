"""How a contender is measured: phases of a load, the clocks around them, and a task that ticks beside it.

A load runs in phases: a short one to start threads and fill pools, one for the rate and the CPU time, one for the event loop's
lateness. The ticks of the last phase would cost a fast contender some percent, so they do not run in the one before. A load that is
read or written just once (`Load.whole`) has a single phase, where a tick each millisecond costs next to nothing. Meanwhile an idle loop
in another process ticks too (bystander.py).

Cold loads are evicted from the page cache before each phase. CPU time is that of the whole process with all its threads, including a
polling thread of io_uring.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
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

__all__ = ("Load", "Measured", "Phase", "Unavailable", "Work", "drive", "evict", "forget_names", "tick")

# Seconds between two ticks of the loop beside a load.
TICK = 0.001
# How long these phases are, as a share of the phase for the rate.
WARM_UP = 0.2
LATENESS = 0.5
# Tasks that start in one tick. Two thousand in one tick would make the loop late by themselves.
TOGETHER = 16


class Unavailable(Exception):
    """Why this contender cannot be measured here."""


@dataclass(frozen=True)
class Load:
    """What every contender of a row has to do."""

    path: str
    """The file that is read or overwritten. Contenders that write a new file derive its path from this one."""
    size: int
    """How many bytes of it are used."""
    piece: int
    """Bytes of one operation."""
    tasks: int
    """How many tasks do it at once."""
    seconds: float
    """For the phase that measures the rate."""
    seed: int
    """Decides the order of random offsets."""
    random: bool = True
    """Offsets in random order; otherwise in order, and from the start again."""
    direct: bool = False
    """O_DIRECT."""
    cold: bool = False
    """Evict the file from the page cache before each phase, and read no piece twice."""
    whole: bool = False
    """Read or write all pieces once, in order, however long it takes."""


@dataclass
class Measured:
    """The figures of one round of one contender."""

    operations: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    """Seconds, of all threads."""
    late: list[float] = field(default_factory=list)
    """Seconds by which each tick was late; empty if there was no loop to tick."""
    beside: list[float] = field(default_factory=list)
    """The same of an idle loop in another process, meanwhile."""
    peak: int = 0
    """The most bytes that were resident since the process started."""
    waited: float = 0.0
    """Seconds in which the loop's thread was ready and had no processor, because of other programs or of its own workers."""


class _Kind(Enum):
    WARM_UP = "warm-up"
    RATE = "rate"
    LATENESS = "lateness"
    BOTH = "both"


class Phase:
    """A part of a load. `with phase:` starts the clocks, and the load ends when `over` is true or the offsets are used up."""

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
        # A thread, because some contenders have no event loop. It wakes once.
        self._timer: threading.Timer = threading.Timer(load.seconds * share, self._end)
        # Made now, because it takes milliseconds, in which an event loop would be late.
        self._order: array[int] = self._in_order()
        self._once: bool = load.cold or load.whole
        self._offsets: Iterator[int] = iter(self._order) if self._once else itertools.cycle(self._order)

    @property
    def ticking(self) -> bool:
        """Whether lateness is measured in this phase."""
        return self.kind in (_Kind.LATENESS, _Kind.BOTH)

    def _end(self) -> None:
        self.over = True

    def _in_order(self) -> array[int]:
        offsets = array("q", range(0, self._load.size - self._load.piece + 1, self._load.piece))
        if self._load.random and not self._load.whole:
            random.Random(f"{self._load.seed} {self.kind}").shuffle(offsets)
        return offsets

    def offsets(self) -> Iterator[int]:
        """Return the offset of one operation after another, at least one. Tasks share the offsets, and each task calls this."""
        for offset in self._offsets:
            if self.over and self.operations:
                return
            self.operations += 1
            yield offset

    def batches(self, count: int) -> Iterator[array[int]]:
        """Return `count` offsets at a time as int64. The caller adds to `operations`."""
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
            # The thread ends at once.
            self._timer.join()


class Work:
    """A load, and its figures. `tell` is called with True when ticks begin, and with False when they end."""

    def __init__(self, load: Load, tell: Callable[[bool], None] | None = None) -> None:
        self.load: Load = load
        self._tell: Callable[[bool], None] | None = tell
        self.measured: Measured = Measured()

    def phases(self) -> Iterator[Phase]:
        """Return one phase after another, and collect its figures."""
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
        self.measured.peak = _peak()

    def tell(self, ticking: bool) -> None:
        """Say that ticks begin or end."""
        if self._tell is not None:
            self._tell(ticking)


async def drive(
    work: Work,
    task: Callable[[Phase], Coroutine[Any, Any, None]],
    tasks: int | None = None,
    prepare: Callable[[], None] | None = None,
) -> None:
    """Run a load's tasks through all phases, on the current event loop. tasks: how many, if not as many as the load says.

    prepare: is called before each phase.
    """
    for phase in work.phases():
        if prepare is not None:
            prepare()
        async with anyio.create_task_group() as beside:
            if phase.ticking:
                work.tell(True)
                await beside.start(tick, phase.late)
            with phase:
                async with anyio.create_task_group() as group:
                    for number in range(work.load.tasks if tasks is None else tasks):
                        group.start_soon(task, phase)
                        if number % TOGETHER == TOGETHER - 1:
                            await anyio.lowlevel.checkpoint()
            beside.cancel_scope.cancel()
        if phase.ticking:
            work.tell(False)


async def tick(late: list[float], *, task_status: TaskStatus[None]) -> None:
    """Sleep for `TICK` again and again, and add by how many seconds each sleep was too long."""
    # Each tick is due a millisecond after the last one, not on a fixed grid. Both loops round their sleeps up to milliseconds, and on a
    # grid this alone would make ticks late by up to one. Ticks that fell due while the loop was busy are late as well, each by its own
    # time. Otherwise a stall of a second would be one late tick among a thousand good ones.
    task_status.started()
    while True:
        asked = time.perf_counter()
        try:
            await anyio.sleep(TICK)
        finally:
            # Also when the end of the load cancels the sleep.
            behind = time.perf_counter() - asked - TICK
            while behind >= 0:
                late.append(behind)
                behind -= TICK


def _waited() -> float:
    """Return for how many seconds this thread has waited for a processor so far, 0 where the kernel does not count them."""
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except OSError:
        return 0.0


def _peak() -> int:
    """Return the most bytes that were resident. `getrusage` does not say it: it counts what was there before an exec, too."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return 0


def forget_names() -> None:
    """Remove from memory all names, attributes and cached pages that are not in use. `Unavailable` without the rights of root."""
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
            file.write("3")
    except OSError as error:
        raise Unavailable(f"cannot be had here: only root may remove names from memory ({error.strerror})") from None


def evict(path: str) -> None:
    """Write a file's dirty pages to the disk, and remove the file from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
