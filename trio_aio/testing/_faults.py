"""`FaultHook`: where the faults of a `FaultyContext` meet their requests.

A fault meets its request where that has got its slot and would go to the kernel or to a worker. From there on all is the engine's own: a
failure is a completion with a negative result, a short count is a shorter system call behind which the engine continues, and a request that
hangs keeps its slot, its memory and its descriptor, and can no longer be cancelled.
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
from trio_aio.testing._hold import Alarm

if TYPE_CHECKING:
    from trio_aio._engine.engine import Engine
    from trio_aio._lanes.slots import Lane

__all__ = ("FaultHook",)


class _PastInline(DeviceRecords):
    """Records that lead past the inline lane, where no request is made that a fault could meet."""

    def find(self, device: int, *, direct: bool, writing: bool) -> DeviceRecord:
        record = super().find(device, direct=direct, writing=writing)
        if not direct and not writing:
            record.nowait = False
        return record


class Rule(Protocol):
    """A fault, as the hook sees it (`_rules.Fault`)."""

    _hits: int

    def _first_due(self, request: Any) -> int | None: ...
    def _meet(self, hook: FaultHook, lane: Lane[Any], request: Any, slot: int) -> None: ...


class _Cut(NamedTuple):
    """A request of which the kernel or a worker was given only the beginning, or whose result is replaced."""

    lane: Lane[Any]
    request: Any
    slot: int
    nbytes: int  # of pieces: the length of the piece that the request ends with
    narrowed: Any  # kept alive until the completion
    fault: Rule | None
    then: Rule | None  # what the rest meets
    instead: int | None  # the result, whatever it was
    piece: Any = None  # of pieces: the one that the request ends with


class FaultHook:
    """An engine's hook (`_engine.protocols.Hook`): counts requests, and lets the rules of the test meet them."""

    def __init__(self) -> None:
        self.rules: dict[Any, None] = {}
        self.alarm: Alarm = Alarm(lambda request: self.release([request], 0))
        self._engine: Engine | None = None
        self._due: dict[Any, Rule] = {}  # requests on their way to a slot
        self._held: dict[Any, tuple[Lane[Any], int]] = {}  # requests that hang, with lane and slot
        self._cuts: dict[int, _Cut] = {}  # by token
        self._broken_at: dict[Any, int] = {}  # requests of many pieces that meet a fault, with the piece that it is for
        self._answers: deque[tuple[int, int]] = deque()  # token, result
        self._released: deque[tuple[Any, int]] = deque()  # from any thread

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

    def submitted(self, request: Any) -> None:
        turns = [(fault, fault._first_due(request)) for fault in list(self.rules)]
        due = [(turn, fault) for fault, turn in turns if turn is not None]
        if due:
            turn, fault = min(due, key=lambda each: each[0])  # of pieces the first, of equal ones the first fault
            fault._hits += 1
            self._due[request] = fault
            if isinstance(request, PiecesRequest):
                self._broken_at[request] = turn

    def allows_kernel(self, request: Any) -> bool:
        return request not in self._broken_at  # a worker takes pieces one after the other, so that one of them can be the last

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
            behind = cut.then if result == cut.nbytes else again
            if behind is not None:
                self._due[request] = behind
            return result, transferred
        if transferred < cut.nbytes:  # the file ends before, or it failed by itself
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
        self._forget_cut(request)
        return False

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
            eventfd_write(engine.event_fd, 1)  # the rest is for the next turn
            raise
        engine.start_queued()

    def close(self) -> None:
        self.alarm.stop()

    # ---- called by a fault that meets a request

    def answer(self, lane: Lane[Any], request: Any, result: int) -> None:
        """Let a request be completed with `result`, as if the kernel had returned that."""
        self._mark_started(lane, request)
        if isinstance(request, (PiecesRequest, Transfer)):
            request.probing = False  # EAGAIN is the answer, not a question of ours
        self._answers.append((request.token, result))
        eventfd_write(self.engine.event_fd, 1)

    def start_and_answer(self, lane: Lane[Any], request: Any, slot: int, result: int) -> None:
        """Let a request run, and be completed with `result`."""
        self._cuts[request.token] = _Cut(lane, request, slot, 0, None, None, None, result)
        lane.start_in_slot(request, slot)

    def start_cut(self, lane: Lane[Any], request: Any, slot: int, nbytes: int, fault: Rule, then: Rule | None) -> None:
        """Let the first `nbytes` of a read or write be moved; the rest meets `then`."""
        unit = max(request.descriptor.alignment.offset, request.descriptor.read_unit)
        nbytes = max(nbytes // unit, 1) * unit  # the kernel stops between blocks only
        if nbytes >= request.nbytes:
            lane.start_in_slot(request, slot)
            return
        narrowed = request.narrow(nbytes)
        self._cuts[request.token] = _Cut(lane, request, slot, nbytes, narrowed, fault, then, None)
        lane.start_in_slot(request, slot)
        request.widen(narrowed)

    def start_broken_pieces(self, lane: Lane[Any], request: PiecesRequest, slot: int, nbytes: int, result: int) -> None:
        """Let a request end with `nbytes` of the piece whose turn it is, and with `result`; 0: at what looks like the end of the file."""
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
        """Let requests that hang continue, or be completed with a negative `result`. From any thread: the next `reap` does it."""
        self.engine.drops.call(lambda: self._released.extend((request, result) for request in requests))

    # ----

    def _begin(self, lane: Lane[Any], request: Any, slot: int) -> None:
        fault = self._due.pop(request, None)
        if fault is None:
            lane.start_in_slot(request, slot)
        else:
            fault._meet(self, lane, request, slot)

    @staticmethod
    def _mark_started(lane: Lane[Any], request: Any) -> None:
        if isinstance(lane, WorkerLane):
            request.state = State.WORKER_IN_FLIGHT
        else:  # a poll can be cancelled, and one that was never submitted is withdrawn as such
            request.state = State.KERNEL_PREPARED if request.cancellable else State.KERNEL_IN_FLIGHT

    def _continue(self, request: Any, result: int) -> None:
        held = self._held.pop(request, None)
        if held is None:  # a poll that was cancelled
            return
        lane, slot = held
        engine = self.engine
        if result < 0 and request.closes:
            self.start_and_answer(lane, request, slot, result)  # the descriptor is gone all the same: close(2)
        elif result < 0:
            engine.complete(request.token, result, 0)
        elif isinstance(lane, WorkerLane):
            lane.start_in_slot(request, slot)
        elif request.cancellable:
            lane.start_in_slot(request, slot)
            engine.ask_for_flush()
        else:  # the request's state says that the kernel has it, and states never go back
            lane.take(request.token)
            engine.to_workers(request)

    def _mend_pieces(self, cut: _Cut) -> None:
        pieces, piece = cut.request.pieces, cut.piece
        assert piece is not None
        served = pieces.first_open == pieces.native.count  # otherwise it was stopped before, or failed by itself
        pieces.native.count = pieces.count
        piece.length = cut.nbytes
        if served:
            moved, piece.result = piece.result, cut.instead
            if piece.result < 0:
                pieces.fail(piece, moved)

    def _forget_cut(self, request: Any) -> None:
        """Forget what was meant for a request that never ran, or will run whole."""
        cut = self._cuts.get(request.token)
        if cut is not None and cut.request is request:
            del self._cuts[request.token]
