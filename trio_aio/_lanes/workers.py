"""The worker lane: native threads for every call that may sleep.

A worker is a daemon thread that spends its life in one C function (workers.c) and holds no GIL there. Workers are started one by one,
when more requests wait than workers are idle, and stay until the lane is closed.

While other requests are in flight, requests that one worker serves as well as many are gathered, and handed over at the end of the tick
as a chain. Of cold reads of one device the worker starts all before it waits for one, so the device has them at once. Half of those in
flight are handed over before the end of the tick: the device works on them while the loop runs the tasks that want the others. Writes of
one file would wait for each other in the kernel, for the inode's lock.
"""

from __future__ import annotations

import itertools
import os
import threading
from contextlib import suppress
from os import eventfd_write
from typing import TYPE_CHECKING, Any

from trio_aio._lanes.devices import DeviceRecord
from trio_aio._lanes.protocols import State, WorkerRequest
from trio_aio._lanes.slots import Lane
from trio_aio._lanes.threads import Background
from trio_aio._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_aio._native import CData

__all__ = ("Inspection", "Population", "WorkerLane")

_hand_over = lib.taio_pool_hand_over
_prepare = lib.taio_pool_prepare
_READ: int = lib.TAIO_READ
_IN_FLIGHT = State.WORKER_IN_FLIGHT
_numbers = itertools.count(1)

NICENESS = 5  # more than the event loop's
GATHER = 2  # requests in flight before any are gathered: with fewer, each has a worker of its own
_NONE = lib.TAIO_NONE
_CHAIN = lib.TAIO_CHAIN
# So many reads are handed over before the end of the tick; fewer, if those are half of the requests in flight. Measured, uncached reads
# of 64 tasks: 77 thousand/s with 8, 60 with 16; of 16 tasks, where 8 is half of them, 44 and 39.
READS = 8


class _Chain:
    """Slots that are handed over together."""

    __slots__ = ("first", "key", "last", "length")

    def __init__(self, key: object) -> None:
        self.key: object = key
        self.first: int = _NONE
        self.last: int = _NONE
        self.length: int = 0

    def add(self, slot: int, in_flight: int) -> bool:
        """Put a slot at the end. Return whether the chain now has as many reads as are handed over before the end of the tick."""
        first = slot if self.last == _NONE else self.first
        self.first, self.last, self.length = first, slot, self.length + 1
        return self.length == READS or 2 * self.length >= in_flight

    def slots(self, pool: CData) -> list[int]:
        """Return the slots, as C knows them."""
        slots = [self.first]
        while (behind := lib.taio_pool_behind(pool, slots[-1])) != _NONE:
            slots.append(behind)
        return slots


class _MemoryRequest:
    """What a worker does to memory, and not to a file. It is counted among the outstanding requests."""

    kernel_can_cancel: bool = False
    nbytes: int = 0

    def __init__(self, address: int, length: int, done: Callable[..., None]) -> None:
        self.state: State = State.CREATED
        self.token: int = -1
        self.counted: bool = False  # among the outstanding requests
        self._address: int = address
        self._length: int = length
        self._done: Callable[..., None] = done

    def chain_key(self) -> None:
        return None

    def end(self, engine: Any) -> None:
        """Note that it has ended. It may be called again."""
        if self.counted:
            engine.outstanding, self.counted = engine.outstanding - 1, False

    def mend(self, engine: Any) -> None:
        """End it after an exception, unless a worker has it: the memory is used as it is."""
        if self.counted and not engine.workers.holds(self):
            self.state = State.COMPLETED
            self.end(engine)
            self.give_up()

    def give_up(self) -> None:
        """Do what depends on it all the same."""
        raise NotImplementedError


class Population(_MemoryRequest):
    """Has the pages of new memory made by a worker: the first touch takes longer than a read, and may sleep."""

    def give_up(self) -> None:
        self._done()

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        lane.prepare(slot, before, self.token, lib.TAIO_POPULATE, -1, self._address, self._length)

    def complete_worker(self, engine: object, result: int, transferred: int) -> None:
        self.state = State.COMPLETED
        self._done()
        self.end(engine)


class Inspection(_MemoryRequest):
    """Has a worker find out whether memory belongs to a mapped file: ``taio_memory_is_mapped``."""

    def give_up(self) -> None:
        self._done(1)

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        lane.prepare(slot, before, self.token, lib.TAIO_INSPECT, -1, self._address, self._length)

    def complete_worker(self, engine: object, result: int, transferred: int) -> None:
        self.state = State.COMPLETED
        self._done(result)
        self.end(engine)


class WorkerLane(Lane[WorkerRequest]):
    """Requests that a worker has, or will take next."""

    queued_state = State.WORKER_QUEUED
    bytes_in_flight: int

    def __init__(self, first: int, slots: int, max_workers: int, event_fd: int) -> None:
        super().__init__(first, slots)
        self.max_workers: int = max_workers
        self.pool: CData = lib.taio_pool_new(slots, event_fd)
        if not self.pool:
            raise MemoryError
        self.threads: list[Background] = []
        self._event_fd: int = event_fd
        self.gathered: dict[object, _Chain] = {}  # what waits for `hand_over`
        self.kept: object = None  # see `keep_until_exit`
        self._left_lock: threading.Lock = threading.Lock()  # workers count themselves out
        self._left: int = 0
        try:
            self._hire()  # not with the first request: it may fail (RLIMIT_NPROC, a cgroup's pids.max)
        except RuntimeError:
            lib.taio_pool_free(self.pool)
            raise

    def start_in_slot(self, request: WorkerRequest, slot: int) -> None:
        """Let a request fill its slot, and hand it over or add it to a chain."""
        key = request.chain_key() if self.slots - len(self.free) > GATHER else None
        if key is None:
            request.fill_slot(self, slot, _NONE)
            request.state = State.WORKER_IN_FLIGHT
            self._hire_if(_hand_over(self.pool, slot))
            return
        chain = self.gathered.get(key)
        if chain is None:
            chain = _Chain(key)
        request.fill_slot(self, slot, chain.last)
        request.state = State.WORKER_IN_FLIGHT
        enough = chain.add(slot, self.slots - len(self.free))
        self.gathered[key] = chain
        if chain.length == _CHAIN or (enough and isinstance(key, DeviceRecord)):  # chains of writes have a file as their key
            self._hand_over_chain(chain)

    def start_read(self, request: WorkerRequest, key: object, fd: int, memory: int, length: int, offset: int) -> bool:
        """Give a small read a slot and start it, as `accept` and `start_in_slot` do. A slot must be free, and no request may be queued.

        Return whether something is gathered: ask for a flush at the end of the tick.
        """
        free = self.free
        slot, weights, total = free[-1], self.weights, self.bytes_in_flight + length
        request.token = token = self.tokens[slot]
        self.holders[slot], weights[slot], self.bytes_in_flight, _ = request, length, total, free.pop()
        if self.slots - len(free) <= GATHER:
            _prepare(self.pool, slot, _NONE, token, _READ, fd, memory, length, offset, 0, 0)
            request.state = _IN_FLIGHT
            self._hire_if(_hand_over(self.pool, slot))
            return False
        chain = self.gathered.get(key)
        if chain is None:
            chain = _Chain(key)
        _prepare(self.pool, slot, chain.last, token, _READ, fd, memory, length, offset, 0, 0)
        request.state = _IN_FLIGHT
        enough = chain.add(slot, self.slots - len(free))
        self.gathered[key] = chain
        if enough:
            self._hand_over_chain(chain)
            return False
        return True

    def prepare(
        self,
        slot: int,
        before: int,
        token: int,
        operation: int,
        fd: int,
        memory: int = 0,
        length: int = 0,
        offset: int = 0,
        flags: int = 0,
        extra: int = 0,
    ) -> None:
        """Fill a slot; workers.c says what each operation makes of the fields. Called by `WorkerRequest.fill_slot`."""
        lib.taio_pool_prepare(self.pool, slot, before, token, operation, fd, memory, length, offset, flags, extra)

    def hand_over(self) -> None:
        """Hand over what was gathered."""
        while self.gathered:
            self._hand_over_chain(next(iter(self.gathered.values())))

    def _hand_over_chain(self, chain: _Chain) -> None:
        wanted, _ = _hand_over(self.pool, chain.first), self.gathered.pop(chain.key)  # one statement: an exception must not come between
        self._hire_if(wanted)

    def _hire_if(self, wanted: int) -> None:
        if wanted > 0 and len(self.threads) < self.max_workers:
            try:
                self._hire()
            except (MemoryError, RuntimeError):  # no more threads can be had: the present ones do all
                self.max_workers = len(self.threads)

    def _hire(self) -> None:
        thread = Background(f"trio_aio worker {next(_numbers)}", self._work, self.pool)
        try:
            self.threads.append(thread)  # before it starts: `stopped` counts it
            thread.start()
        except BaseException:
            self.threads = [each for each in self.threads if each is not thread]
            raise

    def withdraw(self, request: WorkerRequest) -> bool:
        """Withdraw a request that no worker has started. Its slot becomes free with the completion that follows all the same."""
        slot = self.slot_of(request)
        if not lib.taio_pool_withdraw(self.pool, slot):
            return False
        self.holders[slot] = None
        return True

    def is_started(self, slot: int) -> bool:
        return bool(lib.taio_pool_holds(self.pool, slot)) or any(slot in chain.slots(self.pool) for chain in self.gathered.values())

    def torn(self, is_completed: Callable[[int], bool]) -> list[WorkerRequest]:
        """Free slots as all lanes do. The chains end with the last slot that was filled."""
        torn = super().torn(is_completed)
        for chain in self.gathered.values():
            chain.last = chain.slots(self.pool)[-1]
        for request in self.requests():
            request.state = State.WORKER_IN_FLIGHT
        return torn

    def keep_until_exit(self, owner: object) -> None:
        """Keep an object until the process is gone. The interpreter frees all objects at its end, but not what a thread's frame refers to,
        and the frame of a worker (`_work`) refers to this lane.
        """
        self.kept = owner

    def stop(self) -> None:
        """Tell the workers to leave when nothing is left to do. Each signals the eventfd as it leaves."""
        lib.taio_pool_stop(self.pool)

    @property
    def stopped(self) -> bool:
        """Whether all workers have left: `close` will not wait."""
        return self._left == len(self.threads)

    def close(self) -> None:
        """Wait for the workers' threads to end and free the pool. Call `stop` before."""
        for thread in self.threads:
            thread.join()
        lib.taio_pool_free(self.pool)
        self.pool = ffi.NULL

    def _work(self, pool: CData) -> None:
        # Workers that copy memory must not keep the event loop from its processor: with 8 workers on 2 processors it waited a time slice.
        thread = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)
        lib.taio_pool_work(pool)
        with self._left_lock:
            self._left += 1
        eventfd_write(self._event_fd, 1)
