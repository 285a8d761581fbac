"""`Core`: an engine, the event loop that it serves, and the reaper between them. The inner side of an `AIOContext`.

The kernel reports completions on a ring, and the workers on a queue of their own. Both write to one eventfd. The *reaper*, a part of the
event loop, waits for that eventfd, and lets the engine take the completions and wake the tasks. The engine knows no event loop: the core
connects it to a backend for trio or asyncio.

A core belongs to one run of one event loop, in one thread. The engine is not thread-safe, so `check` refuses every other run. After a
fork the child shares the parent's ring, so the core is dead in the child.

Its state goes from new to open, closing and closed. A closing core starts no new requests, and waits for those in flight, because the
kernel or a worker uses their memory. Abandoned requests may hang for ever, so a thread waits for them (`close_in_thread`).

Files and calls have a core, and pass their requests to `submit_and_wait`. Users have the `AIOContext` (`context.py`).
"""

from __future__ import annotations

import atexit
import os
import weakref
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any

from trio_aio._backends import Waiter, shielded_checkpoint
from trio_aio._context.lock import FairLock
from trio_aio._context.operations import Operations
from trio_aio._engine.activity import is_busy
from trio_aio._engine.drain import drain
from trio_aio._engine.engine import Engine
from trio_aio._engine.withdrawal import abandon as abandon_request
from trio_aio._engine.withdrawal import cancel_polls, leave_close
from trio_aio._lanes.names import NameLane
from trio_aio._lanes.protocols import State
from trio_aio._lanes.threads import Background

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_aio._backends import Backend
    from trio_aio._engine.protocols import Hook
    from trio_aio._requests.base import Request
    from trio_aio._requests.opening import Close

__all__ = ("Core",)


class Core(Operations):
    """What a context does. `context`: the `AIOContext` that users know. `hook`: returns what stands between requests and lanes, or None."""

    def __init__(self, context: Any, wanted: str, max_in_flight: int, max_workers: int, hook: Callable[[], Hook | None]) -> None:
        self.context: Any = context
        self.wanted: str = wanted  # "auto", "aio" or "workers"
        self.max_in_flight: int = max_in_flight
        self._max_workers: int = max_workers
        self._hook: Callable[[], Hook | None] = hook
        self.backend: Backend | None = None
        # The run that it belongs to. `self` is no run, so `check` fails unless the core is open.
        self.identity: object = self
        self.current: Callable[[], object] = object
        self.engine: Engine | None = None
        self.inline: Any = None
        # Names that are in memory.
        self.names: NameLane = NameLane()
        self.allocating: FairLock | None = None  # held while large memory is made
        self.watches: set[int] = set()  # what polls without native AIO wait for
        self.stopping: bool = False
        # The tasks in `aclose`.
        self._closing: list[Waiter] = []
        self.state: str = "new"  # "open", "closing", "closed" or "forked"
        # The thread of the event loop while the core is open, otherwise 0.
        self.thread: int = 0

    # ---- from open to closed

    def start(self, backend: Backend) -> None:
        """Make the engine, and start the reaper. OSError if the engine must be native and cannot."""
        if self.state != "new":
            raise RuntimeError(f"an AIOContext can be entered once, and this one is {self.state}: make another")
        engine = Engine(
            self.max_in_flight,
            self._max_workers,
            use_kernel=self.wanted != "workers",
            insist=self.wanted == "aio",
            wake=backend.wake,
            plug=partial(backend.at_end_of_tick, self._flush),
            hook=self._hook(),
        )
        engine.completions.turn = backend.turn
        self.engine = engine
        self.inline = engine.inline
        # Faults of a test meet requests, and an inline call makes none.
        self.names.on = engine.hook is None
        self.backend = backend
        self.allocating = FairLock(backend, lambda: None)
        self.identity = backend.identity
        self.current = backend.current
        self.thread = get_ident()
        self.state = "open"
        _living.add(self)
        backend.hold_clock(self._is_busy)
        try:
            backend.start_reaper(engine.event_fd, self.reap, self.served, self.close_in_thread)
        except BaseException:
            self.close_in_thread()
            raise

    def _flush(self) -> None:
        """Submit the requests of this tick to the kernel. The backend calls this at the end of the tick."""
        if self.engine is not None and not self.stopping:
            self.engine.flush()

    def _is_busy(self) -> bool:
        """Return whether something is in flight that ends by itself, or threads are about to leave. For a mock clock."""
        engine = self.engine
        return engine is not None and self.state in ("open", "closing") and (self.stopping or is_busy(engine))

    def reap(self) -> bool:
        """Take completions, after the eventfd was written to. Return whether the context is closed. The reaper calls this."""
        if self.state == "forked":
            return True
        engine = self.engine
        assert engine is not None
        try:
            engine.reap(drain=True)
            return self.state == "closing" and self._try_to_end(engine)
        except BaseException:
            if self.state == "closing":
                engine.wake_loop()  # it is tried again
            raise

    def _try_to_end(self, engine: Engine) -> bool:
        """Close, if nothing is outstanding any more. Return whether the context is closed."""
        if not self.stopping and engine.outstanding == engine.abandoned:
            if engine.outstanding:
                return self._drain_in_thread(engine)
            self.stopping = True
        if self.stopping:
            engine.stop()
            if engine.stopped:
                engine.close()
                self._ended()
                return True
        return False

    def served(self) -> bool:
        """Return whether no task waits for a request or for `aclose`. The reaper calls this when the run ends."""
        if self.state == "forked":
            return True
        engine = self.engine
        assert engine is not None
        return engine.outstanding == engine.abandoned and not self._closing

    def close_in_thread(self) -> None:
        """Close now. A thread waits for abandoned requests, and keeps their memory and descriptors until they complete."""
        if self.state in ("forked", "closed"):  # closed: an interrupt came while it was opened
            return
        engine = self.engine
        assert engine is not None
        if not engine.outstanding:
            engine.stop()
            # All threads are idle, so this does not wait.
            engine.close()
            self._ended()
        elif not self._drain_in_thread(engine):
            engine.workers.keep_until_exit(engine)
            self._ended()

    def _drain_in_thread(self, engine: Engine) -> bool:
        """Let a thread wait for abandoned requests. False: no more threads can be had."""
        try:
            engine.orphaned = True
            Background("trio_aio drain", drain, engine).start()
        except RuntimeError:
            engine.orphaned = False
            return False
        self._ended()
        return True

    def _ended(self) -> None:
        """Mark the context as closed, and wake the tasks in `aclose`."""
        self.stopping = True
        self.state = "closed"
        self.identity = self
        self.thread = 0
        self.inline = None
        _living.discard(self)
        for closing in self._closing:
            closing.finished = True
            if closing.waiter is not None and self.backend is not None:
                self.backend.wake(closing)
        self._closing.clear()

    async def close(self) -> None:
        """Do what `AIOContext.aclose` does, and do not raise Cancelled."""
        backend = self.backend
        if self.state == "forked":
            raise self.refusal()
        if self.state in ("closed", "new") or backend is None:
            self.state = "closed"
            await shielded_checkpoint()
            return
        if not self.is_current(backend.identity):
            raise self.refusal()
        engine = self.engine
        assert engine is not None
        if self.state == "open":
            self.state = "closing"
            self.identity = self
            self.thread = 0
            cancel_polls(engine)
            for watch in self.watches:
                backend.notify_closing(watch)
            # Wake the reaper: it sees the new state.
            os.eventfd_write(engine.event_fd, 1)
        closing = Waiter()
        self._closing.append(closing)
        await backend.wait(closing, lambda: False)

    def forked(self) -> None:
        """Mark the context as dead, in a child of fork: even a look at its ring would take the parent's completions."""
        self.state = "forked"
        self.identity = self
        self.thread = 0
        self.inline = None
        self.backend = None
        self.engine = None

    def refusal(self) -> RuntimeError:
        """Return the error that says why this context cannot be used here and now."""
        if self.state == "new":
            return RuntimeError("this AIOContext is not open: use it in `async with`")
        if self.state == "forked":
            return RuntimeError("this AIOContext belongs to the parent process: after a fork, open files in the child's own event loop")
        if self.state != "open":
            return RuntimeError(f"this AIOContext is {self.state}: make a new one")
        if self.thread != get_ident():
            return RuntimeError("this AIOContext belongs to another thread's event loop: open one in this thread's run")
        try:
            self.current()
        except RuntimeError as error:
            return RuntimeError(f"an AIOContext must be used in the run that opened it: {error}")
        return RuntimeError("this AIOContext belongs to another run of the event loop: open one in each run")

    def check(self) -> Engine:
        """Return the engine. RuntimeError if the context is not open, or in another run, thread or process."""
        try:
            if self.current() is self.identity:
                assert self.engine is not None
                return self.engine
        except RuntimeError:
            pass
        raise self.refusal()

    def is_current(self, identity: object) -> bool:
        """Return whether a task of this run calls."""
        try:
            return self.current() is identity
        except RuntimeError:
            return False

    # ---- one request

    async def submit_and_wait(self, request: Request, *, abandon: bool = False) -> int:
        """Submit a request, wait for it, and return its result. OSError if it failed. abandon: a cancelled task leaves at once."""
        engine = self.check()
        assert self.backend is not None
        try:
            await self.backend.perform(engine.submit, request, partial(_may_leave_when_cancelled, engine) if abandon else engine.cancel)
        except BaseException:
            if request.state is State.CREATED:
                # It was not submitted. The frames in the traceback hold it, and must not hold the caller's memory.
                request.release_memory(engine)
            raise
        if request.result < 0:
            raise request.error()
        return request.result

    async def submit_close(self, request: Close, mark: Callable[[], None], *, abandon: bool) -> None:
        """Call `mark`, and close a descriptor when its other requests have ended. Never raises Cancelled.

        abandon: leave a close to the engine that waits for abandoned requests only, and when cancelled, any. But the task waits for one
        that has started and leaves the descriptor open, to its caller.
        """
        engine = self.check()
        backend = self.backend
        assert backend is not None

        def start() -> None:
            try:
                mark()
                request.may_be_left = abandon
                engine.submit(request)
                leave_close(engine, request.descriptor.order)
            except BaseException:
                if request.state is State.CREATED and not request.outstanding:
                    mark()
                    engine.drops.add(request.descriptor, request)
                raise

        def stop_waiting() -> bool:
            if abandon and (request.state is State.HELD or not request.descriptor.borrowed):
                backend.wake(request)
                abandon_request(engine, request)
            return False

        await backend.wait(request, stop_waiting, start)
        if request.result < 0:
            raise request.error()

    async def checkpoint(self) -> None:
        """Run a checkpoint. RuntimeError as `check`."""
        self.check()
        assert self.backend is not None
        await self.backend.checkpoint_if_cancelled()
        await self.backend.cancel_shielded_checkpoint()


def _may_leave_when_cancelled(engine: Engine, request: Request) -> bool:
    """Cancel a request, or let it run on with no task waiting. Return whether its task may leave at once."""
    if not (cancelled := engine.cancel(request)) and not request.cancel_accepted and request.can_abandon():
        abandon_request(engine, request)
        return True
    return cancelled or request.finished  # a cancelled sync that others share runs on for them


_living: weakref.WeakSet[Core] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for core in list(_living):
        core.forked()
    _living.clear()


def _keep_what_is_in_flight() -> None:
    """Keep the requests of contexts that nothing will close: those of a loop of asyncio that is still open when the interpreter ends."""
    for core in list(_living):
        engine = core.engine
        if engine is not None:
            engine.workers.keep_until_exit(engine)


atexit.register(_keep_what_is_in_flight)
os.register_at_fork(after_in_child=_after_fork_in_child)
