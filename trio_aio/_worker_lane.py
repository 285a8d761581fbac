"""The worker lane: native threads for every call that may sleep.

A worker is a daemon ``threading.Thread`` whose whole life is one C function (workers.c) that holds no GIL. Workers are started one by one,
when more requests wait than workers are idle, and stay until the lane is closed.

While others are out, requests that one worker does as well as many are gathered, and handed over at the end of the tick as a chain. Of
reads of one device that the page cache could not serve, the worker begins all before it waits for one: the device has them at once,
though one thread waits. Writes of one file would wait for each other in the kernel (for the inode's lock).
"""

from __future__ import annotations

import itertools
import os
import threading
from contextlib import suppress
from os import eventfd_write
from typing import TYPE_CHECKING

from trio_aio._lane import SLOT_MASK, Lane
from trio_aio._native import ffi, lib
from trio_aio._request import Operation, Request, State

if TYPE_CHECKING:
    from trio_aio._inode import Inode
    from trio_aio._native._ext import CData
    from trio_aio._routing import Route

__all__ = ("WorkerLane",)

_NAMES = {"READ_RUN": "RUN", "WRITE_RUN": "RUN"}
# POLL is the kernel lane's alone.
_OPERATIONS = tuple(getattr(lib, f"TAIO_{_NAMES.get(operation.name, operation.name)}", -1) for operation in Operation)
_prepare = lib.taio_pool_prepare
_hand_over = lib.taio_pool_hand_over
_numbers = itertools.count(1)

NICENESS = 5  # more than the event loop's
GATHER = 2  # requests that are out, before any are gathered: with fewer each has a worker of its own
_WRITES = tuple(operation in (Operation.WRITE, Operation.WRITEV, Operation.APPEND) for operation in Operation)
_NONE = lib.TAIO_NONE
_CHAIN = lib.TAIO_CHAIN


class _Chain:
    """Slots that are handed over together."""

    __slots__ = ("about", "first", "last", "length")

    def __init__(self, about: Route | Inode) -> None:
        self.about: Route | Inode = about
        self.first: int = _NONE
        self.last: int = _NONE
        self.length: int = 0

    def add(self, slot: int) -> int:
        """Put a slot at the end; give the one before it."""
        before, self.last = self.last, slot
        if before == _NONE:
            self.first = slot
        self.length += 1
        return before


class WorkerLane(Lane):
    """Requests that a worker has, or will take next."""

    queued_state = State.WORKER_QUEUED

    def __init__(self, first: int, slots: int, max_workers: int, event_fd: int) -> None:
        super().__init__(first, slots)
        self.max_workers: int = max_workers
        self.pool: CData = lib.taio_pool_new(slots, event_fd)
        if not self.pool:
            raise MemoryError
        self.threads: list[threading.Thread] = []
        self._event_fd: int = event_fd
        self.gathered: dict[Route | Inode, _Chain] = {}  # what waits for `hand_over`
        self._left: list[None] = []  # one for each worker that is done with the pool: append is atomic
        try:
            self._hire()  # now, not with the first request: it may fail (RLIMIT_NPROC, a cgroup's pids.max)
        except RuntimeError:
            lib.taio_pool_free(self.pool)
            raise

    def _start(self, request: Request, slot: int) -> None:
        request.state = State.WORKER_IN_FLIGHT
        descriptor = request.descriptor
        chain = self._chain_for(request)
        before = _NONE if chain is None else chain.add(slot)
        _prepare(
            self.pool,
            slot,
            before,
            request.token,
            _OPERATIONS[request.operation],
            descriptor.fd,
            request.address,
            request.length,
            request.offset,
            request.flags,
            request.extra,
        )
        if chain is None:
            self._hand_over(slot)
        elif chain.length == _CHAIN:
            del self.gathered[chain.about]
            self._hand_over(chain.first)

    def _chain_for(self, request: Request) -> _Chain | None:
        """Give the chain that a request joins, if it does not go at once."""
        about: Route | Inode | None = None
        if self.in_flight > GATHER:
            if request.missed:
                about = request.descriptor.read_route  # a device that hangs must not hold reads of another
            elif _WRITES[request.operation] and (request.buffered or not request.descriptor.direct):  # direct ones share the lock
                about = request.descriptor.inode
        if about is None:
            return None
        chain = self.gathered.get(about)
        if chain is None:
            chain = self.gathered[about] = _Chain(about)
        return chain

    def hand_over(self) -> None:
        """Hand over what was gathered."""
        for chain in self.gathered.values():
            self._hand_over(chain.first)
        self.gathered.clear()

    def _hand_over(self, slot: int) -> None:
        wanted = _hand_over(self.pool, slot)
        if wanted > 0 and len(self.threads) < self.max_workers:
            try:
                self._hire()
            except RuntimeError:  # no more threads to be had: those there are will do it
                self.max_workers = len(self.threads)

    def _hire(self) -> None:
        thread = threading.Thread(
            target=_work, args=(self.pool, self._event_fd, self._left), name=f"trio_aio worker {next(_numbers)}", daemon=True
        )
        thread.start()
        self.threads.append(thread)

    def withdraw(self, request: Request) -> bool:
        """Take a request back if no worker has begun it. Its slot comes free with the completion that follows all the same."""
        slot = (request.token & SLOT_MASK) - self.first
        if not lib.taio_pool_withdraw(self.pool, slot):
            return False
        self.holders[slot] = None
        return True

    def stop(self) -> None:
        """Tell the workers to leave once there is nothing to do; each signals the eventfd as it goes."""
        lib.taio_pool_stop(self.pool)

    @property
    def stopped(self) -> bool:
        """Whether all workers have left: `close` will not wait."""
        return len(self._left) == len(self.threads)

    def close(self) -> None:
        """Wait for the workers' threads to end and free the pool. Call `stop` before."""
        for thread in self.threads:
            thread.join()
        lib.taio_pool_free(self.pool)
        self.pool = ffi.NULL


def _work(pool: CData, event_fd: int, left: list[None]) -> None:
    # Workers that copy memory must not keep the event loop from its processor: with 8 on 2 it waited a time slice or more.
    me = threading.get_native_id()
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, me, os.getpriority(os.PRIO_PROCESS, me) + NICENESS)
    lib.taio_pool_work(pool)
    left.append(None)
    eventfd_write(event_fd, 1)
