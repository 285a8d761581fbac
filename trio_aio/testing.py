"""For tests of programs that use trio_aio: `FaultyContext`, whose requests fail, are short, are late or hang, as the test says.

How it works. A fault meets its request where that has got its slot and would go to the kernel or to a worker. From there on everything
is the engine's own: a failure is a completion with a negative result, a short count is a shorter system call behind which the engine
goes on, and a request that hangs keeps its slot, its memory and its descriptor, and cannot be stopped any more.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import math
import operator
import os
import threading
import time
from collections import deque
from os import eventfd_write
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from trio_aio._context import AIOContext
from trio_aio._engine import Engine, _skip
from trio_aio._kernel_lane import KernelLane
from trio_aio._lane import Lane
from trio_aio._native import ffi, lib
from trio_aio._request import Operation, Request, State
from trio_aio._routing import Route, Routes
from trio_aio._worker_lane import WorkerLane

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import SupportsIndex

    from typing_extensions import Self

    from trio_aio._backends import Backend
    from trio_aio._native._ext import CData

    File = str | bytes | os.PathLike[str] | os.PathLike[bytes] | int

__all__ = ("Fault", "FaultyContext", "Hang")

OperationName = Literal["open", "close", "read", "write", "sync", "stat", "truncate", "seek", "fallocate", "poll"]
_NAMES: dict[Operation, OperationName] = {
    Operation.READ: "read",
    Operation.READV: "read",
    Operation.WRITE: "write",
    Operation.WRITEV: "write",
    Operation.APPEND: "write",
    Operation.FSYNC: "sync",
    Operation.FDATASYNC: "sync",
    Operation.OPEN: "open",
    Operation.DESCRIBE: "open",  # a descriptor that `open_aio` was given
    Operation.CLOSE: "close",
    Operation.STAT: "stat",
    Operation.TRUNCATE: "truncate",
    Operation.SEEK: "seek",
    Operation.FALLOCATE: "fallocate",
    Operation.POLL: "poll",
    Operation.READ_RUN: "read",
    Operation.WRITE_RUN: "write",
}
_VECTORS = (Operation.READV, Operation.WRITEV)


# ---- what a test asks for


class Fault:
    """A fault that was asked for. It holds until it is used up or removed; in ``with`` it is removed at the end."""

    def __init__(
        self, context: FaultyContext, file: File | None, operation: OperationName | None, turn: int | None, times: int | None
    ) -> None:
        if operation is not None and operation not in get_args(OperationName):
            raise ValueError(f"operation must be one of {', '.join(get_args(OperationName))}, not {operation!r}")
        first = 1 if turn is None else _at_least(1, turn, "turn")
        count = math.inf if turn is None else 1
        if times is not None:
            count = _at_least(1, times, "times")
        self._faults: dict[Fault, None] = context._faults
        self._fd: int | None = file if isinstance(file, int) else None
        self._path: str | None = None if file is None else _absolute(file)
        self._operation: OperationName | None = operation
        self._first: int = first
        self._last: float = first + count - 1
        self._seen: int = 0
        self._hits: int = 0
        self._faults[self] = None

    @property
    def hits(self) -> int:
        """How many requests it has met."""
        return self._hits

    def remove(self) -> None:
        """Let requests that come from now on alone."""
        self._faults.pop(self, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.remove()

    def _suits(self, name: OperationName) -> bool:
        """Whether such a request can have this fault at all."""
        return True

    def _first_due(self, request: Request) -> int | None:
        """Count a request, or each piece of a run, if it is one that this fault is for; give the first whose turn it is."""
        name = _NAMES.get(request.operation)
        if name is None or (name != self._operation if self._operation is not None else name == "close") or not self._suits(name):
            return None
        descriptor = request.descriptor
        if self._fd is not None and descriptor.fd != self._fd:
            return None
        if self._path is not None and self._path != _absolute(descriptor.name):
            return None
        before, self._seen = self._seen, self._seen + request.pieces
        if self._seen >= self._last:
            self.remove()
        first = max(self._first, before + 1)
        return first - before - 1 if first <= min(self._seen, self._last) else None

    def _meet(self, engine: _FaultyEngine, lane: _FaultyLane, request: Request, slot: int) -> None:
        """Do to a request that has just got its slot what was asked for."""
        raise NotImplementedError


class _Failure(Fault):
    def __init__(self, error: int, after: int, context: FaultyContext, *rule: Any) -> None:
        self._error: int = _checked_error(error)
        self._after: int = _at_least(0, after, "after")
        super().__init__(context, *rule)

    def _suits(self, name: OperationName) -> bool:
        return not self._after or name in ("read", "write")

    def _meet(self, engine: _FaultyEngine, lane: _FaultyLane, request: Request, slot: int) -> None:
        if request.operation is Operation.CLOSE:
            engine.start_and_answer(lane, request, slot, -self._error)  # the descriptor is gone all the same: close(2)
        elif self._after and not request.transferred and request.run is None:
            engine.start_cut(lane, request, slot, self._after, self, then=self)
        elif self._error == errno.EINTR and isinstance(lane, _FaultyWorkerLane):
            lane.start(request, slot)  # a worker makes it again by itself
        elif request.run is not None:
            engine.start_broken_run(lane, request, slot, self._after, -self._error)
        else:
            engine.answer(lane, request, -self._error)


class _Shortness(Fault):
    def __init__(self, nbytes: int, end: bool, context: FaultyContext, *rule: Any) -> None:
        self._nbytes: int = _at_least(0 if end else 1, nbytes, "nbytes")
        self._end: bool = end
        super().__init__(context, *rule)

    def _suits(self, name: OperationName) -> bool:
        return name in ("read", "write")

    def _meet(self, engine: _FaultyEngine, lane: _FaultyLane, request: Request, slot: int) -> None:
        if request.run is not None:  # the rest of a short piece is read or written by the call behind it
            if self._end:
                engine.start_broken_run(lane, request, slot, self._nbytes, 0)
            else:
                lane.start(request, slot)
        elif self._nbytes and not request.transferred:
            engine.start_cut(lane, request, slot, self._nbytes, self, then=self if self._end else None)
        else:  # a write of nothing is an error (workers.c, `transfer`)
            engine.answer(lane, request, 0 if _NAMES[request.operation] == "read" else -errno.EIO)


class _Delay(Fault):
    def __init__(self, seconds: float, context: FaultyContext, *rule: Any) -> None:
        if not 0 <= seconds <= threading.TIMEOUT_MAX:
            raise ValueError(f"seconds must not be negative or more than {threading.TIMEOUT_MAX:.0f}, not {seconds}")
        self._seconds: float = seconds
        super().__init__(context, *rule)

    def _meet(self, engine: _FaultyEngine, lane: _FaultyLane, request: Request, slot: int) -> None:
        engine.hold(lane, request, slot)
        engine.alarm.set(self._seconds, request)


class Hang(Fault):
    """Requests that hang until `release`. In ``with`` they are released at the end."""

    def __init__(self, context: FaultyContext, *rule: Any) -> None:
        self._engine: _FaultyEngine | None = None
        self._requests: list[Request] = []
        self._released: bool = False
        self._error: int = 0
        super().__init__(context, *rule)

    @property
    def held(self) -> int:
        """How many requests hang now."""
        return sum(not request.finished for request in self._requests)

    def release(self, error: int | None = None) -> None:
        """Let them go on, and those that come from now on; with an `error` (errno) they fail instead. Callable from any thread."""
        if self._released:
            return
        self._error = 0 if error in (None, errno.EINTR) else _checked_error(error)
        self._released = True
        self.remove()
        requests, self._requests = self._requests, []
        if self._engine is not None:
            self._engine.release(requests, -self._error)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.release()

    def _meet(self, engine: _FaultyEngine, lane: _FaultyLane, request: Request, slot: int) -> None:
        engine.hold(lane, request, slot)
        self._engine = engine
        self._requests.append(request)
        if self._released:  # while it waited for its slot
            self._requests.remove(request)
            engine.release([request], -self._error)


def _absolute(name: object) -> str | None:
    return None if name is None or isinstance(name, int) else os.path.abspath(os.fsdecode(name))  # type: ignore[arg-type]


def _at_least(least: int, value: SupportsIndex, name: str) -> int:
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    return number


def _checked_error(error: SupportsIndex) -> int:
    number = operator.index(error)
    if not 0 < number < 4096:  # what the kernel can return
        raise ValueError(f"not an errno: {number}")
    return number


# ---- how it is done


class _FaultyLane(Lane):
    """A lane whose requests may have met a fault."""

    engine: _FaultyEngine

    def _start(self, request: Request, slot: int) -> None:
        fault = self.engine.due.pop(request, None)
        if fault is None:
            self.start(request, slot)
        else:
            fault._meet(self.engine, self, request, slot)

    def start(self, request: Request, slot: int) -> None:
        """Give the kernel or a worker what the request says now."""
        super()._start(request, slot)

    def mark_started(self, request: Request) -> None:
        """Set the state of a request that nobody was given."""
        raise NotImplementedError


class _FaultyKernelLane(_FaultyLane, KernelLane):
    def mark_started(self, request: Request) -> None:
        # A poll can be stopped, and one that was never submitted is taken back as such.
        request.state = State.KERNEL_PREPARED if request.operation is Operation.POLL else State.KERNEL_IN_FLIGHT

    def withdraw_prepared(self, request: Request) -> None:
        held = self.engine.held.pop(request, None)
        if held is None:
            self.engine.forget_cut(request)
            super().withdraw_prepared(request)
        else:
            self._vacate(held[1])


class _FaultyWorkerLane(_FaultyLane, WorkerLane):
    def mark_started(self, request: Request) -> None:
        request.state = State.WORKER_IN_FLIGHT


class _PastInline(Routes):
    """Routes that lead past the inline lane, where no request is made that a fault could meet."""

    def find(self, device: int, *, direct: bool, writing: bool) -> Route:
        route = super().find(device, direct=direct, writing=writing)
        if not direct and not writing:
            route.nowait = False
        return route


class _Cut(NamedTuple):
    """A request of which the kernel or a worker was given only the beginning, or whose result is replaced."""

    lane: _FaultyLane
    request: Request
    slot: int
    nbytes: int  # of a run: of the piece that it ends with
    vector: CData | None  # in use until the completion
    fault: Fault | None
    then: Fault | None  # what the rest meets
    instead: int | None  # the result, whatever it was
    piece: CData | None = None  # of a run: the one that it ends with


class _Alarm:
    """A thread that lets requests go on when it is time. Real time: a disk knows no other."""

    def __init__(self, ring: Callable[[Request], None]) -> None:
        self._ring: Callable[[Request], None] = ring
        self._changed: threading.Condition = threading.Condition()
        self._times: list[tuple[float, int, Request]] = []
        self._numbers: itertools.count[int] = itertools.count()
        self._stopped: bool = False
        self._thread: threading.Thread | None = None

    def set(self, seconds: float, request: Request) -> None:
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
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()


class _FaultyEngine(Engine):
    _kernel_type = _FaultyKernelLane
    _worker_type = _FaultyWorkerLane

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.faults: dict[Fault, None] = {}
        self.due: dict[Request, Fault] = {}  # requests on their way to a slot
        self.held: dict[Request, tuple[_FaultyLane, int]] = {}  # requests that hang, with lane and slot
        self._cuts: dict[int, _Cut] = {}  # by token
        self._broken_at: dict[Request, int] = {}  # runs that meet a fault, with the piece that it is for
        self._answers: deque[tuple[int, int]] = deque()  # token, result
        self._released: deque[tuple[Request, int]] = deque()  # from any thread
        self.alarm: _Alarm = _Alarm(lambda request: self.release([request], 0))
        super().__init__(*args, **kwargs)
        self.routes = _PastInline()
        assert isinstance(self.workers, _FaultyWorkerLane)
        self.workers.engine = self

    def _set_up_kernel(self) -> None:
        super()._set_up_kernel()
        assert isinstance(self.kernel, _FaultyKernelLane)
        self.kernel.engine = self

    def submit(self, request: Request) -> None:
        turns = [(fault, fault._first_due(request)) for fault in list(self.faults)]
        due = [(turn, fault) for fault, turn in turns if turn is not None]
        if due:
            turn, fault = min(due, key=lambda each: each[0])  # of a run the first piece, of equal ones the first fault
            fault._hits += 1
            self.due[request] = fault
            if request.run is not None:
                self._broken_at[request] = turn
        super().submit(request)

    def _suits_kernel(self, request: Request) -> bool:
        if request in self._broken_at:  # a worker takes the pieces one after the other, so that one can be where it ends
            return False
        return super()._suits_kernel(request)

    def reap(self, *, drain: bool) -> None:
        try:
            super().reap(drain=drain)
            if not self._answers and not self._released:
                return
            while self._answers:
                token, result = self._answers.popleft()
                self._complete(token, result, 0)
            while self._released:
                self._go_on(*self._released.popleft())
        except BaseException:
            eventfd_write(self.event_fd, 1)  # the rest is for the next turn
            raise
        self._pump()

    def _go_on(self, request: Request, result: int) -> None:
        held = self.held.pop(request, None)
        if held is None:  # a poll that was cancelled
            return
        lane, slot = held
        if result < 0 and request.operation is Operation.CLOSE:
            self.start_and_answer(lane, request, slot, result)  # the descriptor is gone all the same: close(2)
        elif result < 0:
            self._complete(request.token, result, 0)
        elif isinstance(lane, _FaultyWorkerLane):
            lane.start(request, slot)
        elif request.operation is Operation.POLL:
            lane.start(request, slot)
            self._ask_for_flush()
        else:  # the kernel was said to have it: it never goes back to being prepared
            lane.take(request.token)
            self._to_workers(request)

    def _complete(self, token: int, result: int, transferred: int) -> None:
        cut = self._cuts.pop(token, None)
        if cut is None:
            super()._complete(token, result, transferred)
        elif cut.request.run is not None:
            self._mend_run(cut)
            super()._complete(token, result, transferred)
        elif cut.instead is not None:
            super()._complete(token, cut.instead, transferred)
        elif not isinstance(cut.lane, _FaultyWorkerLane):
            again = cut.fault if cut.request.probing and result in (-errno.EAGAIN, -errno.EOPNOTSUPP) else None
            behind = cut.then if result == cut.nbytes else again
            if behind is not None:
                self.due[cut.request] = behind
            super()._complete(token, result, transferred)
        elif transferred < cut.nbytes:  # the file ends before, or it failed by itself
            super()._complete(token, result, transferred)
        else:
            request = cut.request
            request.transferred += transferred
            _skip(request, transferred)
            if cut.then is None:
                cut.lane.start(request, cut.slot)
            else:
                cut.then._meet(self, cut.lane, request, cut.slot)

    def forget_cut(self, request: Request) -> None:
        """Forget what was meant for a request that never ran, or will run whole."""
        cut = self._cuts.get(request.token)
        if cut is not None and cut.request is request:
            del self._cuts[request.token]

    def _let_go(self, request: Request) -> None:
        self.forget_cut(request)
        self.due.pop(request, None)
        self._broken_at.pop(request, None)
        super()._let_go(request)

    def answer(self, lane: _FaultyLane, request: Request, result: int) -> None:
        """Let a request be completed with `result`, as if the kernel had said so."""
        lane.mark_started(request)
        request.probing = False  # EAGAIN is the answer, not a question of ours
        self._answers.append((request.token, result))
        eventfd_write(self.event_fd, 1)

    def start_and_answer(self, lane: _FaultyLane, request: Request, slot: int, result: int) -> None:
        """Let a request run, and be completed with `result`."""
        self._cuts[request.token] = _Cut(lane, request, slot, 0, None, None, None, result)
        lane.start(request, slot)

    def start_cut(self, lane: _FaultyLane, request: Request, slot: int, nbytes: int, fault: Fault, then: Fault | None) -> None:
        """Let the first `nbytes` of a read or write be moved; the rest meets `then`."""
        unit = max(request.descriptor.alignment.offset, request.descriptor.read_unit)
        nbytes = max(nbytes // unit, 1) * unit  # the kernel stops between blocks only
        if nbytes >= request.nbytes:
            lane.start(request, slot)
            return
        whole = (request.address, request.length)
        vector = None
        if request.operation in _VECTORS:
            vector, request.length = _first_bytes(request, nbytes)
            request.address = int(ffi.cast("uintptr_t", vector))
        else:
            request.length = nbytes
        self._cuts[request.token] = _Cut(lane, request, slot, nbytes, vector, fault, then, None)
        lane.start(request, slot)
        request.address, request.length = whole

    def start_broken_run(self, lane: _FaultyLane, request: Request, slot: int, nbytes: int, result: int) -> None:
        """Let a run end with `nbytes` of the piece whose turn it is, and with `result`; 0: at what looks like the end of the file."""
        run, index = request.run, self._broken_at[request]
        assert run is not None
        piece = run.pieces + index
        nbytes -= nbytes % run.native.unit
        if 0 < piece.length <= nbytes:
            lane.start(request, slot)
            return
        if result == 0:
            result = nbytes if _NAMES[request.operation] == "read" else -errno.EIO
        self._cuts[request.token] = _Cut(lane, request, slot, piece.length, None, None, None, result, piece)
        run.native.count = index + (nbytes > 0)
        piece.length = nbytes
        lane.start(request, slot)

    def _mend_run(self, cut: _Cut) -> None:
        run, piece = cut.request.run, cut.piece
        assert run is not None
        assert piece is not None
        served = run.first_open == run.native.count  # else it was stopped before, or failed by itself
        run.native.count = run.count
        piece.length = cut.nbytes
        if served:
            moved, piece.result = piece.result, cut.instead
            if piece.result < 0:
                lib.taio_run_fail(run.native, piece, moved)

    def hold(self, lane: _FaultyLane, request: Request, slot: int) -> None:
        """Let a request hang."""
        lane.mark_started(request)
        self.held[request] = (lane, slot)

    def release(self, requests: list[Request], result: int) -> None:
        """Let requests that hang go on, or be completed with a negative `result`. From any thread: the next `reap` does it."""
        with self._drop_lock:
            if not self.closed:
                self._released.extend((request, result) for request in requests)
                eventfd_write(self.event_fd, 1)

    def close(self) -> None:
        self.alarm.stop()
        super().close()


def _first_bytes(request: Request, nbytes: int) -> tuple[CData, int]:
    """Give an iovec array over the first `nbytes` of a request, and the number of its parts."""
    parts = []
    for part in ffi.cast("struct iovec *", request.address)[0 : request.length]:
        parts.append((part.iov_base, min(part.iov_len, nbytes)))
        nbytes -= parts[-1][1]
        if not nbytes:
            break
    return ffi.new("struct iovec[]", parts), len(parts)


class FaultyContext(AIOContext):
    """An `AIOContext` for tests: its requests can be told to fail, to be short, to be late or to hang.

    ``async with FaultyContext() as context:``, then ``open_aio(path, context=context)``. It takes the arguments of `AIOContext`. What the
    page cache has goes the long way too (no inline lane), so that every request can meet a fault.

    Each fault says which requests it is for:

    - `file`: those of a file, by its path (as `open_aio` was given it; "." and ".." aside) or by its descriptor. Default: all.
    - `operation`: "open", "close", "read", "write" (an append too), "sync", "stat", "truncate", "seek", "fallocate" or "poll".
      Default: all but "close". The requests are those that the package makes: ``size()`` is a "stat", ``open_aio`` of a descriptor
      an "open" and a "seek".
    - `turn`: the nth of them from now on, counted from 1. Default: from the first on.
    - `times`: for so many in a row. Default: 1 where there is a `turn`, else until it is removed.

    Requests count when they are made, also those that have to wait for their turn. Of several faults for one request it meets the one
    that was asked for first.
    """

    _engine_type = _FaultyEngine

    def __init__(
        self,
        max_in_flight: int = 128,
        *,
        max_workers: int | None = None,
        engine: Literal["auto", "aio", "workers"] = "auto",
    ) -> None:
        super().__init__(max_in_flight, max_workers=max_workers, engine=engine)
        self._faults: dict[Fault, None] = {}

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        return self

    def _start(self, backend: Backend) -> None:
        super()._start(backend)
        assert isinstance(self._engine, _FaultyEngine)
        self._engine.faults = self._faults

    def fail(
        self,
        error: int,
        *,
        after: int = 0,
        file: File | None = None,
        operation: OperationName | None = None,
        turn: int | None = None,
        times: int | None = None,
    ) -> Fault:
        """Let requests fail with `error` (an errno), without effect; reads and writes with `after` when so many bytes have been moved.

        A "close" that fails has closed the descriptor, as close(2) has. EINTR is nothing that a caller sees: the request is made again.
        """
        return _Failure(error, after, self, file, operation, turn, times)

    def short(
        self,
        nbytes: int,
        *,
        end: bool = False,
        file: File | None = None,
        operation: Literal["read", "write"] | None = None,
        turn: int | None = None,
        times: int | None = None,
    ) -> Fault:
        """Let the kernel move only `nbytes` of a read or write at first (direct files: whole blocks, at least one).

        The engine goes on for the rest, so that the call still gives everything. With `end` there is no rest: a read gives what it
        has, as if the file ended there, and a write fails with EIO.
        """
        if operation not in (None, "read", "write"):
            raise ValueError(f"operation must be 'read' or 'write', not {operation!r}: nothing else can be short")
        return _Shortness(nbytes, end, self, file, operation, turn, times)

    def delay(
        self,
        seconds: float,
        *,
        file: File | None = None,
        operation: OperationName | None = None,
        turn: int | None = None,
        times: int | None = None,
    ) -> Fault:
        """Let requests begin `seconds` late; they have their slot meanwhile. Real time, also under a mocked clock."""
        return _Delay(seconds, self, file, operation, turn, times)

    def hang(
        self,
        *,
        file: File | None = None,
        operation: OperationName | None = None,
        turn: int | None = None,
        times: int | None = None,
    ) -> Hang:
        """Let requests hang until ``release()`` of what this gives, or the end of its ``with``.

        They cannot be stopped, as those of a disk cannot: a cancelled call goes on waiting (with ``abandon_on_cancel`` a read gives up),
        and a context does not close before. So put the ``with`` around the nursery, that a failing test ends.
        """
        return Hang(self, file, operation, turn, times)
