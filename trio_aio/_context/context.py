"""`AIOContext`: an engine, the event loop that it serves, and the reaper between them.

The kernel reports completions on a ring, and the workers on a queue of their own. Both write to one eventfd. The *reaper*, a part of the
event loop, waits for that eventfd, and lets the engine take the completions and wake the tasks. The engine knows no event loop: the context
connects it to a backend for trio or asyncio.

A context belongs to one run of one event loop, in one thread. The engine is not thread-safe, so `_check` refuses every other run. After a
fork the child shares the parent's ring, so the context is dead in the child.

Its state goes from new to open, closing and closed. A closing context starts no new requests, and waits for those in flight, because the
kernel or a worker uses their memory. Abandoned requests may hang for ever, so a thread waits for them (`_close_in_thread`).

Users open contexts, or use the shared one. Files and the calls of `Operations` pass their requests to `_submit_and_wait`.
"""

from __future__ import annotations

import atexit
import operator
import os
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from trio_aio._backends import Waiter, async_resource, current_backend, raise_if_cancelled, shielded_checkpoint
from trio_aio._context.lock import FairLock
from trio_aio._context.operations import Operations
from trio_aio._context.statistics import counted
from trio_aio._engine.activity import is_busy
from trio_aio._engine.drain import drain
from trio_aio._engine.engine import Engine
from trio_aio._engine.withdrawal import abandon as abandon_request
from trio_aio._engine.withdrawal import cancel_polls, leave_close
from trio_aio._errors import NotCopied
from trio_aio._lanes.names import NameLane
from trio_aio._lanes.protocols import State
from trio_aio._lanes.threads import Background

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from trio_aio._backends import Backend
    from trio_aio._context.statistics import AIOStatistics
    from trio_aio._engine.protocols import Hook
    from trio_aio._requests.base import Request
    from trio_aio._requests.opening import Close

__all__ = ("AIOContext",)

# Default number of worker threads, at most.
MAX_WORKERS = 8
# The largest max_in_flight that is accepted: io_setup takes no larger number of events.
_MOST_IN_FLIGHT = 1 << 22


@async_resource
class AIOContext(NotCopied, Operations):
    """Native AIO, workers and a reaper, for any number of files.

    Use it as ``async with AIOContext() as context: ... open_aio(path, context=context)``. Most programs need none of their own: files use
    the shared one of the run, `current_context()`. It may be entered once, and used only in the run that entered it.

    max_in_flight: how many requests are in flight at most, in the kernel and with the workers each; 1 to 2**22. More wait in order.
    max_workers: how many worker threads there are at most, at least 1; default: 8. There are never more than `max_in_flight`.
    engine: "auto" uses native AIO if the kernel has it, and workers alone otherwise. "aio" requires it: entering raises the OSError of
    io_setup(2). "workers" never uses it. The environment variable TRIO_AIO_ENGINE sets what "auto" means.
    Leaving waits for all requests in flight, as `aclose` does. ValueError for a number out of range, or another engine.
    """

    def __init__(
        self,
        max_in_flight: int = 128,
        *,
        max_workers: int | None = None,
        engine: Literal["auto", "aio", "workers"] = "auto",
    ) -> None:
        max_in_flight = operator.index(max_in_flight)
        if not 1 <= max_in_flight <= _MOST_IN_FLIGHT:
            raise ValueError(f"max_in_flight must be from 1 to {_MOST_IN_FLIGHT}, not {max_in_flight}")
        max_workers = MAX_WORKERS if max_workers is None else operator.index(max_workers)
        if max_workers < 1:
            raise ValueError(f"max_workers must be at least 1, not {max_workers}")
        wanted: str = engine
        source = "engine"
        if engine == "auto":
            wanted = os.environ.get("TRIO_AIO_ENGINE") or "auto"
            source = "TRIO_AIO_ENGINE"
        if wanted not in ("auto", "aio", "workers"):
            raise ValueError(f"{source} must be 'auto', 'aio' or 'workers', not {wanted!r}")
        super().__init__()
        self._wanted: str = wanted
        self._max_in_flight: int = max_in_flight
        self._max_workers: int = min(max_workers, max_in_flight)
        self._backend: Backend | None = None
        # The run that it belongs to. `self` is no run, so `_check` fails unless the context is open.
        self._identity: object = self
        self._current: Callable[[], object] = object
        self._engine: Engine | None = None
        self._inline: Any = None
        # Names that are in memory.
        self._names: NameLane = NameLane()
        self._stopping: bool = False
        # The tasks in `aclose`.
        self._closing: list[Waiter] = []
        self._state: str = "new"  # "open", "closing", "closed" or "forked"
        # The thread of the event loop while the context is open, otherwise 0.
        self._thread: int = 0

    def __repr__(self) -> str:
        return f"<trio_aio.AIOContext {self._state}, max_in_flight={self._max_in_flight}>"

    # ---- from open to closed

    async def __aenter__(self) -> AIOContext:
        backend = current_backend()
        await backend.checkpoint_if_cancelled()
        # Before the start: a native cancellation raised after it would leave a context that no task closes.
        await backend.cancel_shielded_checkpoint()
        backend.step(self._start, backend)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        await (self.aclose() if value is None else self._close())

    def _start(self, backend: Backend) -> None:
        """Make the engine, and start the reaper. OSError if the engine must be native and cannot."""
        if self._state != "new":
            raise RuntimeError(f"an AIOContext can be entered once, and this one is {self._state}: make another")
        engine = Engine(
            self._max_in_flight,
            self._max_workers,
            use_kernel=self._wanted != "workers",
            insist=self._wanted == "aio",
            wake=backend.wake,
            plug=partial(backend.at_end_of_tick, self._flush),
            hook=self._hook(),
        )
        engine.completions.turn = backend.turn
        self._engine = engine
        self._inline = engine.inline
        # Faults of a test meet requests, and an inline call makes none.
        self._names.on = engine.hook is None
        self._backend = backend
        self._allocating = FairLock(backend, lambda: None)
        self._identity = backend.identity
        self._current = backend.current
        self._thread = threading.get_ident()
        self._state = "open"
        _living.add(self)
        backend.hold_clock(self._is_busy)
        try:
            backend.start_reaper(engine.event_fd, self._reap, self._served, self._close_in_thread)
        except BaseException:
            self._close_in_thread()
            raise

    def _hook(self) -> Hook | None:
        """Return a hook between requests and lanes, or None. `testing.FaultyContext` returns its faults here."""
        return None

    def _flush(self) -> None:
        """Submit the requests of this tick to the kernel. The backend calls this at the end of the tick."""
        if self._engine is not None and not self._stopping:
            self._engine.flush()

    def _is_busy(self) -> bool:
        """Return whether something is in flight that ends by itself, or threads are about to leave. For a mock clock."""
        engine = self._engine
        return engine is not None and self._state in ("open", "closing") and (self._stopping or is_busy(engine))

    def _reap(self) -> bool:
        """Take completions, after the eventfd was written to. Return whether the context is closed. The reaper calls this."""
        if self._state == "forked":
            return True
        engine = self._engine
        assert engine is not None
        try:
            engine.reap(drain=True)
            return self._state == "closing" and self._try_to_end(engine)
        except BaseException:
            if self._state == "closing":
                engine.wake_loop()  # it is tried again
            raise

    def _try_to_end(self, engine: Engine) -> bool:
        """Close, if nothing is outstanding any more. Return whether the context is closed."""
        if not self._stopping and engine.outstanding == engine.abandoned:
            if engine.outstanding:
                return self._drain_in_thread(engine)
            self._stopping = True
        if self._stopping:
            engine.stop()
            if engine.stopped:
                engine.close()
                self._ended()
                return True
        return False

    def _served(self) -> bool:
        """Return whether no task waits for a request or for `aclose`. The reaper calls this when the run ends."""
        if self._state == "forked":
            return True
        engine = self._engine
        assert engine is not None
        return engine.outstanding == engine.abandoned and not self._closing

    def _close_in_thread(self) -> None:
        """Close now. A thread waits for abandoned requests, and keeps their memory and descriptors until they complete."""
        if self._state == "forked":
            return
        engine = self._engine
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
        self._stopping = True
        self._state = "closed"
        self._identity = self
        self._thread = 0
        self._inline = None
        _living.discard(self)
        for closing in self._closing:
            closing.finished = True
            if closing.waiter is not None and self._backend is not None:
                self._backend.wake(closing)
        self._closing.clear()

    async def aclose(self) -> None:
        """Wait for all requests in flight, then release threads, descriptors and the kernel context.

        New requests raise RuntimeError from now on. A `poll` that waits fails with OSError (ECANCELED). Reads that were abandoned
        (``abandon_on_cancel``, and those of an iteration that was left) are not waited for: a thread keeps their memory until they
        complete. Other tasks run meanwhile.
        Cancelled: raised when it is closed. A second call is a checkpoint and no more.
        """
        await self._close()
        await raise_if_cancelled()

    async def _close(self) -> None:
        backend = self._backend
        if self._state == "forked":
            raise self._refusal()
        if self._state in ("closed", "new") or backend is None:
            self._state = "closed"
            await shielded_checkpoint()
            return
        if not self._is_current(backend.identity):
            raise self._refusal()
        engine = self._engine
        assert engine is not None
        if self._state == "open":
            self._state = "closing"
            self._identity = self
            self._thread = 0
            cancel_polls(engine)
            for watch in self._watches:
                backend.notify_closing(watch)
            # Wake the reaper: it sees the new state.
            os.eventfd_write(engine.event_fd, 1)
        closing = Waiter()
        self._closing.append(closing)
        await backend.wait(closing, lambda: False)

    def _forked(self) -> None:
        """Mark the context as dead, in a child of fork: even a look at its ring would take the parent's completions."""
        self._state = "forked"
        self._identity = self
        self._thread = 0
        self._inline = None
        self._backend = None
        self._engine = None

    def _refusal(self) -> RuntimeError:
        """Return the error that says why this context cannot be used here and now."""
        if self._state == "new":
            return RuntimeError("this AIOContext is not open: use it in `async with`")
        if self._state == "forked":
            return RuntimeError("this AIOContext belongs to the parent process: after a fork, open files in the child's own event loop")
        if self._state != "open":
            return RuntimeError(f"this AIOContext is {self._state}: make a new one")
        if self._thread != threading.get_ident():
            return RuntimeError("this AIOContext belongs to another thread's event loop: open one in this thread's run")
        try:
            self._current()
        except RuntimeError as error:
            return RuntimeError(f"an AIOContext must be used in the run that opened it: {error}")
        return RuntimeError("this AIOContext belongs to another run of the event loop: open one in each run")

    def _check(self) -> Engine:
        """Return the engine. RuntimeError if the context is not open, or in another run, thread or process."""
        try:
            if self._current() is self._identity:
                assert self._engine is not None
                return self._engine
        except RuntimeError:
            pass
        raise self._refusal()

    def _is_current(self, identity: object) -> bool:
        """Return whether a task of this run calls."""
        try:
            return self._current() is identity
        except RuntimeError:
            return False

    # ---- attributes

    @property
    def engine(self) -> Literal["aio", "workers"]:
        """\"aio\" or \"workers\". The first access calls io_setup(2), if no request has done so. RuntimeError if it was never opened."""
        engine = self._engine
        if engine is None:
            raise self._refusal()
        if self._state == "closed":
            return "aio" if engine.setup_error is None and self._wanted != "workers" else "workers"
        return "aio" if engine.has_kernel_lane() else "workers"

    @property
    def max_in_flight(self) -> int:
        """How many requests are in flight at most, in the kernel and with the workers each."""
        return self._max_in_flight

    def statistics(self) -> AIOStatistics:
        """Return the counts up to now. RuntimeError if the context was never opened."""
        engine = self._engine
        if engine is None:
            raise self._refusal()
        return counted(engine, self._names, self.engine, self._max_in_flight)

    # ---- one request

    async def _submit_and_wait(self, request: Request, *, abandon: bool = False) -> int:
        """Submit a request, wait for it, and return its result. OSError if it failed. abandon: a cancelled task leaves at once."""
        engine = self._check()
        assert self._backend is not None
        try:
            await self._backend.perform(engine.submit, request, partial(_may_leave_when_cancelled, engine) if abandon else engine.cancel)
        except BaseException:
            if request.state is State.CREATED:
                # It was not submitted. The frames in the traceback hold it, and must not hold the caller's memory.
                request.release_memory(engine)
            raise
        if request.result < 0:
            raise request.error()
        return request.result

    async def _submit_close(self, request: Close, mark: Callable[[], None], *, abandon: bool) -> None:
        """Call `mark`, and close a descriptor when its other requests have ended. Never raises Cancelled.

        abandon: leave a close to the engine that waits for abandoned requests only, and when cancelled, any. But the task waits for one
        that has started and leaves the descriptor open, to its caller.
        """
        engine = self._check()
        backend = self._backend
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

    async def _checkpoint(self) -> None:
        """Run a checkpoint. RuntimeError as `_check`."""
        self._check()
        assert self._backend is not None
        await self._backend.checkpoint_if_cancelled()
        await self._backend.cancel_shielded_checkpoint()


def _may_leave_when_cancelled(engine: Engine, request: Request) -> bool:
    """Cancel a request, or let it run on with no task waiting. Return whether its task may leave at once."""
    if not (cancelled := engine.cancel(request)) and not request.cancel_accepted and request.can_abandon():
        abandon_request(engine, request)
        return True
    return cancelled or request.finished  # a cancelled sync that others share runs on for them


_living: weakref.WeakSet[AIOContext] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for context in list(_living):
        context._forked()
    _living.clear()


def _keep_what_is_in_flight() -> None:
    """Keep the requests of contexts that nothing will close: those of a loop of asyncio that is still open when the interpreter ends."""
    for context in list(_living):
        engine = context._engine
        if engine is not None:
            engine.workers.keep_until_exit(engine)


atexit.register(_keep_what_is_in_flight)
os.register_at_fork(after_in_child=_after_fork_in_child)
