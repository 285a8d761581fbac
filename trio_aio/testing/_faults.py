"""`FaultHook`: where the faults of a `FaultyContext` meet their requests.

The engine calls the hook at fixed points. A fault meets its request when the request has a slot, just before it goes to the kernel or to a
worker. Everything after that is the engine's own code:

- a failure is a completion with a negative result;
- a short count is a shorter system call, after which the engine continues;
- a request that hangs keeps its slot, its memory and its descriptor, and cannot be cancelled.

In the kernel lane, the pieces of a request complete in any order. So a request of pieces that meets a fault goes to a worker, which takes
the pieces one after the other, and stops at the piece that the fault is for.

`FaultyContext` installs the hook. The rules (`_rules`) call it back to say what happens to a request.
"""

from __future__ import annotations

import errno
from collections import deque
from functools import partial
from os import eventfd_write
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from trio_aio._lanes.devices import DeviceRecord, DeviceRecords
from trio_aio._lanes.protocols import State
from trio_aio._lanes.workers import WorkerLane
from trio_aio._requests.pieces import PiecesRequest
from trio_aio._requests.transfer import Transfer
from trio_aio.lowlevel import RWF
from trio_aio.testing._hold import Alarm

if TYPE_CHECKING:
    from trio_aio._engine.engine import Engine
    from trio_aio._lanes.slots import Lane

__all__ = ("FaultHook",)


class _PastInline(DeviceRecords):
    """Device records that keep reads out of the inline lane, which makes no request that a fault could meet."""

    def find(self, device: int, *, direct: bool, writing: bool, watched: bool = False) -> DeviceRecord:
        record = super().find(device, direct=direct, writing=writing, watched=watched)
        if not direct and not writing:
            record.nowait = record.may_ask = False
        return record


class Rule(Protocol):
    """A fault, as the hook sees it (`_rules.Fault`)."""

    _hits: int

    def _first_due(self, request: Any) -> int | None: ...
    def _meet(self, hook: FaultHook, lane: Lane[Any], request: Any, slot: int) -> None: ...


class _Cut(NamedTuple):
    """A request of which only the first part goes to the kernel or a worker, or whose result is replaced."""

    lane: Lane[Any]
    request: Any
    slot: int
    # Bytes of the first part. For a request of pieces: the length of the piece that it ends with.
    nbytes: int
    # Memory that must stay alive until the completion.
    narrowed: Any
    fault: Rule | None
    # What the rest of the request meets.
    then: Rule | None
    # The result that replaces the kernel's.
    instead: int | None
    # For a request of pieces: the piece that it ends with.
    piece: Any = None


class FaultHook:
    """An engine's hook (`_engine.protocols.Hook`): counts requests, and lets the rules of the test meet them."""

    def __init__(self) -> None:
        self.rules: dict[Any, None] = {}
        self.alarm: Alarm = Alarm(lambda request: self.release([request], 0))
        self._engine: Engine | None = None
        # Faults of requests that have no slot yet.
        self._due: dict[Any, Rule] = {}
        # Requests that hang, with their lane and slot.
        self._held: dict[Any, tuple[Lane[Any], int]] = {}
        # Requests that were cut, by their token.
        self._cuts: dict[int, _Cut] = {}
        # Requests of many pieces that meet a fault, with the index of the piece that the fault is for.
        self._broken_at: dict[Any, int] = {}
        # Token and result of requests that are completed at the next `reaped`.
        self._answers: deque[tuple[int, int]] = deque()
        # Requests that hang no longer, with their result, until the next `reaped`.
        self._released: deque[tuple[Any, int]] = deque()

    @property
    def engine(self) -> Engine:
        """The engine that it is installed in."""
        assert self._engine is not None
        return self._engine

    # ---- called by the engine

    def install(self, engine: Engine) -> None:
        self._engine = engine
        engine.files.devices = _PastInline()
        engine.workers.begin = partial(self._begin, engine.workers)

    def install_kernel(self, engine: Engine) -> None:
        assert engine.kernel is not None
        engine.kernel.begin = partial(self._begin, engine.kernel)
        # While its slot is being filled, a request that was cut is shorter than it is: io_submit must not refuse it meanwhile.
        engine.kernel.at_once = False

    def submitted(self, request: Any) -> None:
        found = [(fault, fault._first_due(request)) for fault in list(self.rules)]
        due = [(index, fault) for fault, index in found if index is not None]
        if due:
            # The first of the pieces; if several faults are for it, the one that was made first.
            index, fault = min(due, key=lambda each: each[0])
            fault._hits += 1
            self._due[request] = fault
            if isinstance(request, PiecesRequest):
                self._broken_at[request] = index

    def allows_kernel(self, request: Any) -> bool:
        # A worker takes pieces one after the other, so that one of them can be the last.
        return request not in self._broken_at

    def completed(self, token: int, result: int, transferred: int) -> tuple[int, int] | None:
        cut = self._cuts.pop(token, None)
        if cut is None:
            return result, transferred
        request = cut.request
        if isinstance(request, PiecesRequest):
            self._mend_pieces(cut)
            return result, transferred
        if cut.instead is not None:
            return cut.instead, transferred
        if not isinstance(cut.lane, WorkerLane):
            again = cut.fault if request.probing and result in (-errno.EAGAIN, -errno.EOPNOTSUPP) else None
            next_rule = cut.then if result == cut.nbytes else again
            if next_rule is not None:
                self._due[request] = next_rule
            return result, transferred
        # The file ends before the cut, or the kernel reported an error.
        if transferred < cut.nbytes:
            return result, transferred
        request.transferred += transferred
        request.skip(transferred)
        if cut.then is None:
            cut.lane.start_in_slot(request, cut.slot)
        else:
            cut.then._meet(self, cut.lane, request, cut.slot)
        return None

    def withdraws(self, request: Any) -> bool:
        if self._held.pop(request, None) is not None:
            return True
        for answer in self._answers:
            if answer[0] == request.token:
                self._answers.remove(answer)
                return True
        self._forget_cut(request)
        return False

    def holds(self, request: Any) -> bool:
        return request in self._held

    def released(self, request: Any) -> None:
        self._forget_cut(request)
        self._due.pop(request, None)
        self._broken_at.pop(request, None)

    def reaped(self, engine: Engine) -> None:
        if not self._answers and not self._released:
            return
        try:
            while self._answers:
                token, result = self._answers.popleft()
                engine.complete(token, result, 0)
            while self._released:
                self._continue(*self._released.popleft())
        except BaseException:
            # Leave the rest to the next call: wake the reaper again.
            eventfd_write(engine.event_fd, 1)
            raise
        engine.start_queued()

    def close(self) -> None:
        self.alarm.stop()

    # ---- called by a fault that meets a request

    def answer(self, lane: Lane[Any], request: Any, result: int) -> None:
        """Let a request be completed with `result`, as if the kernel had returned that."""
        self._mark_started(lane, request)
        if isinstance(request, (PiecesRequest, Transfer)):
            # Here EAGAIN is the result of the request, as if its caller had asked for RWF_NOWAIT: it must not send it to a worker.
            request.probing = False
            if isinstance(request, Transfer) and result == -errno.EAGAIN:
                request.flags |= RWF.NOWAIT
        self._answers.append((request.token, result))
        eventfd_write(self.engine.event_fd, 1)

    def start_and_answer(self, lane: Lane[Any], request: Any, slot: int, result: int) -> None:
        """Let a request run, and complete it with `result` instead of its own."""
        self._cuts[request.token] = _Cut(lane, request, slot, 0, None, None, None, result)
        lane.start_in_slot(request, slot)

    def start_cut(self, lane: Lane[Any], request: Any, slot: int, nbytes: int, fault: Rule, then: Rule | None) -> None:
        """Let a read or write move its first `nbytes`. The rest meets `then`."""
        unit = max(request.descriptor.alignment.offset, request.descriptor.read_unit)
        # The kernel stops only between blocks.
        nbytes = max(nbytes // unit, 1) * unit
        if nbytes >= request.nbytes:
            lane.start_in_slot(request, slot)
            return
        narrowed = request.narrow(nbytes)
        self._cuts[request.token] = _Cut(lane, request, slot, nbytes, narrowed, fault, then, None)
        lane.start_in_slot(request, slot)
        request.widen(narrowed)

    def start_broken_pieces(self, lane: Lane[Any], request: PiecesRequest, slot: int, nbytes: int, result: int) -> None:
        """Let a request end after `nbytes` of the piece that its fault is for, with `result`. 0: as if the file ended there."""
        pieces, index = request.pieces, self._broken_at[request]
        piece = pieces.array + index
        nbytes -= nbytes % pieces.native.unit
        if 0 < piece.length <= nbytes:
            lane.start_in_slot(request, slot)
            return
        if result == 0:
            result = nbytes if request.reads else -errno.EIO
        self._cuts[request.token] = _Cut(lane, request, slot, piece.length, None, None, None, result, piece)
        pieces.native.count = index + (nbytes > 0)
        piece.length = nbytes
        lane.start_in_slot(request, slot)

    def hold(self, lane: Lane[Any], request: Any, slot: int) -> None:
        """Let a request hang."""
        self._mark_started(lane, request)
        self._held[request] = (lane, slot)

    def release(self, requests: list[Any], result: int) -> None:
        """Let requests that hang continue, or complete them with a negative `result`. From any thread: the next `reap` does it."""
        self.engine.drops.call(lambda: self._released.extend((request, result) for request in requests))

    # ----

    def _begin(self, lane: Lane[Any], request: Any, slot: int) -> None:
        fault = self._due.pop(request, None)
        # A sync makes the one system call of all that it serves, so it meets their faults too.
        for follower in getattr(request, "followers", ()):
            late = self._due.pop(follower, None)
            fault = late if fault is None else fault
        if fault is None:
            lane.start_in_slot(request, slot)
        else:
            fault._meet(self, lane, request, slot)

    @staticmethod
    def _mark_started(lane: Lane[Any], request: Any) -> None:
        if isinstance(lane, WorkerLane):
            request.state = State.WORKER_IN_FLIGHT
        else:
            # A poll can be cancelled. It was never submitted, so it is withdrawn as a prepared one.
            request.state = State.KERNEL_PREPARED if request.kernel_can_cancel else State.KERNEL_IN_FLIGHT

    def _continue(self, request: Any, result: int) -> None:
        held = self._held.pop(request, None)
        # It is a poll that was cancelled meanwhile.
        if held is None:
            return
        lane, slot = held
        engine = self.engine
        if result < 0 and request.closes:
            # After a failed close(2) the descriptor is closed all the same.
            self.start_and_answer(lane, request, slot, result)
        elif result < 0:
            engine.complete(request.token, result, 0)
        elif isinstance(lane, WorkerLane):
            lane.start_in_slot(request, slot)
        elif request.kernel_can_cancel:
            lane.start_in_slot(request, slot)
            engine.ask_for_flush()
        else:
            # Its state says that the kernel has it, and a state never goes back: so a worker takes it.
            lane.take(request.token)
            engine.to_workers(request)

    def _mend_pieces(self, cut: _Cut) -> None:
        pieces, piece = cut.request.pieces, cut.piece
        assert piece is not None
        # Otherwise it was stopped before, or the kernel reported an error.
        served = pieces.first_open == pieces.native.count
        pieces.native.count = pieces.count
        piece.length = cut.nbytes
        if served:
            moved, piece.result = piece.result, cut.instead
            if piece.result < 0:
                pieces.fail(piece, moved)

    def _forget_cut(self, request: Any) -> None:
        """Forget the cut of a request that never ran, or runs uncut."""
        cut = self._cuts.get(request.token)
        if cut is not None and cut.request is request:
            del self._cuts[request.token]
