"""Completions: taken from both lanes in one C call, and served in turns that are bounded in time.

Each completion wakes a task, and devices complete many requests at once. An event loop that serves all of them, and then runs all their
tasks, is late for everything else. So a turn serves some, and the rest waits until other tasks have run. How many is learned: as many as
the event loop serves in `turn` seconds, the tasks that are woken included (`_learn`).
"""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any

from trio_aio._engine.mending import mend
from trio_aio._lanes.protocols import SLOT_MASK
from trio_aio._lanes.taking import CompletionBuffer

if TYPE_CHECKING:
    from trio_aio._engine.host import Host
    from trio_aio._engine.protocols import Group

__all__ = ("FEWEST", "Completions")

# Seconds: what the event loop may need for a turn, where nothing else is said (`Backend.turn`). Tasks that read again and again need 20 to
# 30 us for each completion, and a tick itself as much. On trio, beside 2048 direct reads, an idle loop is 0.9 ms late in the median; with
# 500 us it would be 0.5 ms, for 17 % more CPU. On asyncio 500 us are 0.9 ms late, 1 ms 1.9 ms.
TURN = 1e-3
# Completions in a turn. Fewer would be unfair to them where the other tasks of the program take long.
FEWEST, MOST = 8, 128


class Completions:
    """What the lanes have completed and the engine has not served yet. Only the event loop's thread uses it."""

    def __init__(self, engine: Host) -> None:
        self._engine: Host = engine
        self.unserved: list[int] = []  # three integers each
        self._at: int = 0  # those in front of it are served
        self._serving: bool = False
        self._late: bool = False  # they wait for the next turn
        self.turn: float = TURN
        self._room: int = 16  # completions in a turn
        self._cost: float = TURN / 32  # seconds for a completion and its task
        self._began: float = 0.0  # the last turn
        self._resting: deque[Group] = deque()  # groups that continue in the next tick
        self._buffer: CompletionBuffer = CompletionBuffer(2 * engine.max_in_flight)

    def take(self, *, drain: bool) -> bool:
        """Take what the lanes have completed, and serve one turn of it. Return whether anything was served.

        `drain`: the eventfd was readable: empty it first, and start the next turn.
        """
        engine = self._engine
        self._buffer.take(engine.kernel, engine.workers, engine.event_fd if drain else -1, self.unserved)
        if self._late and not drain:
            return False  # nothing is free yet, and the next turn will ask for all that is due
        if drain:
            self._learn()
        self._late = False
        if drain and engine.kernel is not None:
            engine.kernel.note_turn()
        if drain:
            self._serving = False  # it may be left from an exception
        if drain:
            engine.syncs.note_tick()
        if drain and self._resting:
            self._resume_groups()
        return self.serve()

    def _learn(self) -> None:
        """Note that a turn begins. If the last one was full, the event loop has served its completions and their tasks meanwhile."""
        now = perf_counter()
        if self._late:
            self._cost += ((now - self._began) / self._room - self._cost) / 8
            self._room = int(min(max(self.turn / self._cost, FEWEST), MOST))
        self._began = now

    def serve(self) -> bool:
        """Serve one turn of what is in `unserved`. Return whether there was anything."""
        unserved = self.unserved
        if self._at == len(unserved):
            return False
        engine = self._engine
        complete, kernel_slots = engine.complete, engine.max_in_flight if engine.hook is None else 0
        kernel: Any = engine.kernel
        holders: Any = None if kernel is None else kernel.holders
        workers: Any = engine.workers
        at, token, request = self._at, -1, None
        room = self._room
        outermost, self._serving = not self._serving, True
        whole = False
        try:
            while (at := self._at) < len(unserved):  # a completion may lead back here
                token, self._at = unserved[at], at + 3
                slot = token & SLOT_MASK
                if slot < kernel_slots:  # as `complete`, without the call
                    request = holders[slot]
                    kernel.take(token).complete_kernel(engine, token, unserved[at + 1])
                elif kernel_slots:
                    request = workers.holders[slot - kernel_slots]
                    if workers.take(token) is not None:  # otherwise it was withdrawn
                        request.complete_worker(engine, unserved[at + 1], unserved[at + 2])
                else:
                    request = self._holder(token)
                    complete(token, unserved[at + 1], unserved[at + 2])
                room -= 1
                if not room:
                    break
            whole = self._at == len(unserved)
        except BaseException as error:
            self._mend(error, at, token, request)
            raise
        finally:
            if not whole:  # the turn is over, or an error came (a bug, no memory): nothing is lost, and the next turn comes
                self._late = True
                self._engine.wake_loop()
            if outermost:
                unserved[: self._at], self._at, self._serving = (), 0, False
        return True

    def _holder(self, token: int) -> Any:
        """Return the request that has the slot of a token; None if it is stale."""
        lane: Any = self._engine.workers if token & SLOT_MASK >= self._engine.max_in_flight else self._engine.kernel
        slot = (token & SLOT_MASK) - lane.first
        return lane.holders[slot] if lane.tokens[slot] == token else None

    def _mend(self, error: BaseException, at: int, token: int, request: Any) -> None:
        """Serve a completion again whose slot was not freed. Otherwise end its request."""
        if self._at <= at or self.unserved[at] != token:  # it was not begun
            return
        lane: Any = self._engine.workers if token & SLOT_MASK >= self._engine.max_in_flight else self._engine.kernel
        if lane.tokens[(token & SLOT_MASK) - lane.first] == token:
            self._at = at
        elif request is not None:
            mend(self._engine, error, request, result=self.unserved[at + 1])

    def has(self, token: int) -> bool:
        """Return whether a completion with this token was taken and not served."""
        return any(self.unserved[i] == token for i in range(self._at, len(self.unserved), 3)) or self._buffer.has(token)

    def result_of(self, request: Any) -> int | None:
        """Return the result of a request that is complete, served or not; None if it is not."""
        if request.finished:
            return request.result  # type: ignore[no-any-return]
        token = request.token
        for i in range(self._at, len(self.unserved), 3):
            if self.unserved[i] == token:
                return self.unserved[i + 1]
        return None

    def rest(self, group: Group) -> None:
        """Let a group continue in the next tick of the event loop."""
        engine = self._engine
        engine.outstanding, _ = engine.outstanding + 1, self._resting.append(group)  # no close meanwhile
        engine.wake_loop()

    def _resume_groups(self) -> None:
        for _ in range(len(self._resting)):  # those that rest again meanwhile have had this turn
            group, outstanding = self._resting[0], self._engine.outstanding - 1
            try:
                self._engine.outstanding, _ = outstanding, self._resting.popleft()
                group.resume()
            except BaseException as error:
                if group not in self._resting:
                    group.tear(error)
                self._late = True
                raise
