"""The yardstick "minimal": the least that Python can do for a direct read on trio. It is not a library.

Each read does this and no more: check for cancellation; take a slot; prepare the read in one C call, which submits it if the device
would be idle otherwise; sleep; copy the bytes out; release the slot. The reaper takes all completions in one C call and wakes their
tasks. What is still prepared at the end of a tick is submitted then, in one call.

There is no argument check, no file object, no limit of requests, no close that waits, and a read cannot be cancelled once it has
started. So a library costs more than this, and the rows say how much more is acceptable.
"""

from __future__ import annotations

import mmap
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
from outcome import Value
from trio.lowlevel import (
    Abort,
    add_instrument,
    checkpoint_if_cancelled,
    current_task,
    enable_ki_protection,
    remove_instrument,
    reschedule,
    wait_readable,
    wait_task_rescheduled,
)

from trio_aio._tools.bench.contenders.contender import Contender, opened
from trio_aio._tools.bench.contenders.minimal_c import compiled
from trio_aio._tools.bench.measure import Unavailable, drive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.lowlevel import Task

    from trio_aio._tools.bench.measure import Phase, Work

__all__ = ("MINIMAL", "Reads")


def _refuse_to_abort(_: object) -> Abort:
    return Abort.FAILED


class Reads(trio.abc.Instrument):
    """Direct reads of one fd, at most `tasks` at a time and `size` bytes each, while `serving()` is entered."""

    def __init__(self, fd: int, tasks: int, size: int) -> None:
        self._ffi, self._lib = compiled()
        error = self._ffi.new("int *")
        self._native: Any = self._lib.yardstick_open(tasks, error)
        if not self._native:
            raise Unavailable(f"cannot be had here: native AIO: {os.strerror(error[0])}")
        self._read: Any = self._lib.yardstick_read
        self._fd: int = fd
        self._size: int = size
        self._memory: mmap.mmap = mmap.mmap(-1, tasks * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
        self._address: int = int(self._ffi.cast("uintptr_t", self._ffi.from_buffer(self._memory)))
        self._free: list[int] = list(range(tasks))
        self._tasks: list[Task | None] = [None] * tasks
        self._prepared: int = 0

    # Without the protection a KeyboardInterrupt could end a task whose slot the kernel still writes to.
    @enable_ki_protection
    async def pread(self, size: int, offset: int) -> bytes:
        """Return `size` bytes from `offset`, fewer only at the end of the file. Both are multiples of the device's block."""
        await checkpoint_if_cancelled()
        slot = self._free.pop()
        self._tasks[slot] = current_task()
        start = slot * self._size
        self._prepared = self._read(self._native, slot, self._fd, self._address + start, size, offset)
        result = await wait_task_rescheduled(_refuse_to_abort)
        data = self._memory[start : start + result] if result > 0 else b""
        self._free.append(slot)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return data

    def before_io_wait(self, timeout: float) -> None:
        if self._prepared:
            self._prepared = 0
            self._lib.yardstick_submit(self._native)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Run the reaper until the end of the block, and then free everything. No read is in flight by then."""
        try:
            add_instrument(self)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._reap)
                yield
                nursery.cancel_scope.cancel()
            remove_instrument(self)
        finally:
            self._lib.yardstick_close(self._native)

    async def _reap(self) -> None:
        native, tasks = self._native, self._tasks
        reap, unpack = self._lib.yardstick_reap, self._ffi.unpack
        event_fd, completions = native.event_fd, native.completions
        while True:
            await wait_readable(event_fd)
            count = reap(native)
            if count:
                numbers = iter(unpack(completions, 2 * count))
                for slot, result in zip(numbers, numbers, strict=True):
                    task = tasks[slot]
                    assert task is not None
                    reschedule(task, Value(result))


async def _direct_reads(work: Work) -> None:
    size = work.load.piece
    with opened(work.load.path, os.O_RDONLY | os.O_DIRECT) as fd:
        reads = Reads(fd, work.load.tasks, size)
        async with reads.serving():

            async def task(phase: Phase) -> None:
                read = reads.pread
                for offset in phase.offsets():
                    await read(size, offset)

            await drive(work, task)


MINIMAL = Contender("minimal", _direct_reads, "trio", same_work=False)
