"""`AIOContext`: an engine, the event loop that it serves, and the reaper between them. A request goes in here, and a task waits for it."""

from __future__ import annotations

import operator
import os
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from trio_aio._backends import Waiter, async_resource, current_backend
from trio_aio._context.operations import Operations
from trio_aio._context.statistics import AIOStatistics
from trio_aio._engine.drain import drain
from trio_aio._engine.engine import Engine
from trio_aio._engine.withdrawal import abandon as abandon_request
from trio_aio._engine.withdrawal import cancel_polls
from trio_aio._lanes.protocols import State

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from trio_aio._backends import Backend
    from trio_aio._engine.protocols import Hook
    from trio_aio._requests.base import Request
    from trio_aio._requests.opening import Close

__all__ = ("AIOContext",)

MAX_WORKERS = 8
_LARGEST = 1 << 22  # nr_events that io_setup takes


@async_resource
class AIOContext(Operations):
    """Native AIO, workers and a reaper, for any number of files.

    Use it as ``async with AIOContext() as context: ... open_aio(path, context=context)``. Most programs need none of their own: files use
    the run's shared one, `current_context()`.

    max_in_flight: the most requests in flight at once, in the kernel and with the workers each; more wait, first come first served.
    max_workers: the most worker threads; by default 8, never more than `max_in_flight`.
    engine: "auto" uses native AIO where the kernel has it, and workers alone elsewhere. "aio" insists: entering raises the OSError of
    ``io_setup``. "workers" never uses it. TRIO_AIO_ENGINE in the environment sets what "auto" means.
    ValueError for a number out of range, or another engine.
    """

    def __init__(
        self,
        max_in_flight: int = 128,
        *,
        max_workers: int | None = None,
        engine: Literal["auto", "aio", "workers"] = "auto",
    ) -> None:
        max_in_flight = operator.index(max_in_flight)
        if not 1 <= max_in_flight <= _LARGEST:
            raise ValueError(f"max_in_flight must be from 1 to {_LARGEST}, not {max_in_flight}")
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
        self._identity: object = self  # of the run. `self` is no run, so the quick check fails until the context is open
        self._current: Callable[[], object] = object
        self._engine: Engine | None = None
        self._inline: Any = None
        self._stopping: bool = False
        self._closing: list[Waiter] = []  # tasks in `aclose`
        self._state: Literal["new", "open", "closing", "closed", "forked"] = "new"
        self._thread: int = 0  # of the event loop, while it is open

    def __repr__(self) -> str:
        return f"<trio_aio.AIOContext {self._state}, max_in_flight={self._max_in_flight}>"

    # ---- from open to closed

    async def __aenter__(self) -> AIOContext:
        backend = current_backend()
        await backend.checkpoint_if_cancelled()
        self._start(backend)
        await backend.cancel_shielded_checkpoint()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        await self._close()

    def _start(self, backend: Backend) -> None:
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
        self._engine = engine
        self._inline = engine.inline
        self._backend = backend
        self._identity = backend.identity
        self._current = backend.current
        self._thread = threading.get_ident()
        self._state = "open"
        _living.add(self)
        backend.start_reaper(engine.event_fd, self._reap, self._served, self._hand_over)

    def _hook(self) -> Hook | None:
        """Return what comes between requests and lanes. `testing.FaultyContext` returns its faults here, and overrides nothing else."""
        return None

    def _flush(self) -> None:
        if self._engine is not None and not self._stopping:
            self._engine.flush()

    def _reap(self) -> bool:
        """Serve the eventfd. Return whether the context is closed."""
        if self._state == "forked":
            return True
        engine = self._engine
        assert engine is not None
        engine.reap(drain=True)
        if self._state == "closing":
            if not self._stopping and engine.outstanding == engine.abandoned:
                if engine.outstanding:
                    self._hand_over()
                    return True
                self._stopping = True
                engine.stop()
            if self._stopping and engine.workers.stopped:
                engine.close()
                self._ended()
                return True
        return False

    def _served(self) -> bool:
        """Return whether no task waits for a request any more."""
        if self._state == "forked":
            return True
        engine = self._engine
        assert engine is not None
        return engine.outstanding == engine.abandoned and not self._closing

    def _hand_over(self) -> None:
        """End now. Abandoned requests keep their memory and descriptors, in a thread that waits for them."""
        if self._state == "forked":
            return
        self._stopping = True
        engine = self._engine
        assert engine is not None
        if engine.outstanding:
            threading.Thread(target=drain, args=(engine,), name="trio_aio drain", daemon=True).start()
        else:
            engine.stop()
            engine.close()  # the workers are idle, and leave at once
        self._ended()

    def _ended(self) -> None:
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

        From now on new requests raise RuntimeError; a `poll` that waits fails with OSError (ECANCELED). Requests that were abandoned
        (``abandon_on_cancel``) are not waited for: a thread keeps them until they complete. The event loop runs on meanwhile.
        Cancelled: it closes all the same, and Cancelled is raised at the next checkpoint.
        """
        await self._close()

    async def _close(self) -> None:
        backend = self._backend
        if self._state in ("closed", "new") or backend is None:
            if self._state == "new":
                self._state = "closed"
            elif self._state == "forked":
                raise self._refusal()
            await (backend or current_backend()).cancel_shielded_checkpoint()
            return
        if self._current() is not backend.identity:
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
            os.eventfd_write(engine.event_fd, 1)  # the reaper looks at the state
        closing = Waiter()
        self._closing.append(closing)
        await backend.wait(closing, lambda: False)

    def _forked(self) -> None:
        """Mark the context as the parent's. In the child it is dead: even a look at its ring would take the parent's completions."""
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
            return RuntimeError(f"this AIOContext is {self._state}")
        if self._thread != threading.get_ident():
            return RuntimeError("this AIOContext belongs to another thread's event loop")
        try:
            self._current()
        except RuntimeError as error:
            return RuntimeError(f"an AIOContext must be used in the run that opened it: {error}")
        return RuntimeError("this AIOContext belongs to another run of the event loop")

    def _check(self) -> Engine:
        """Return the engine. RuntimeError if this is another run than its own, or it is closed."""
        try:
            if self._current() is self._identity:
                assert self._engine is not None
                return self._engine
        except RuntimeError:
            pass
        raise self._refusal()

    # ---- attributes

    @property
    def engine(self) -> Literal["aio", "workers"]:
        """\"aio\" or \"workers\". Asking sets up the kernel's context if that has not been done."""
        engine = self._engine
        if engine is None:
            raise self._refusal()
        if self._state == "closed":
            return "aio" if engine.setup_error is None and self._wanted != "workers" else "workers"
        return "aio" if engine.has_kernel_lane() else "workers"

    @property
    def max_in_flight(self) -> int:
        """The most requests in flight at once, in the kernel and with the workers each."""
        return self._max_in_flight

    def statistics(self) -> AIOStatistics:
        """Return the counts up to now."""
        engine = self._engine
        if engine is None:
            raise self._refusal()
        inline = engine.inline
        return AIOStatistics(
            engine=self.engine,
            max_in_flight=self._max_in_flight,
            in_flight=engine.in_flight,
            queued=engine.queued,
            submitted_kernel=engine.submitted_kernel,
            submitted_inline=inline.hits,
            submitted_workers=engine.submitted_workers,
            submit_calls=engine.submit_calls,
            completed=engine.completed + inline.hits,
            cancelled=engine.cancelled,
            retried=engine.retried,
            bytes_read=engine.bytes_read + inline.bytes_read,
            bytes_written=engine.bytes_written,
        )

    # ---- one request

    async def _submit_and_wait(self, request: Request, *, abandon: bool = False) -> int:
        engine = self._check()
        assert self._backend is not None
        await self._backend.perform(engine.submit, request, partial(_cancel_or_abandon, engine) if abandon else engine.cancel)
        if request.result < 0:
            raise request.error()
        return request.result

    async def _submit_close(self, request: Close, mark: Callable[[], None], *, abandon: bool) -> None:
        """Call `mark`, and close a descriptor when its other requests have ended. Never raises Cancelled.

        `abandon`: when cancelled, leave a close that waits for other requests to the engine.
        """
        engine = self._check()
        backend = self._backend
        assert backend is not None

        def start() -> None:
            mark()
            engine.submit(request)

        def give_up() -> bool:
            if abandon and request.state is State.HELD:
                backend.wake(request)
                abandon_request(engine, request)
            return False

        await backend.wait(request, give_up, start)
        if request.result < 0:
            raise request.error()

    async def _checkpoint(self) -> None:
        self._check()
        assert self._backend is not None
        await self._backend.checkpoint_if_cancelled()
        await self._backend.cancel_shielded_checkpoint()


def _cancel_or_abandon(engine: Engine, request: Request) -> bool:
    """Cancel a request, or let it run on with no task waiting. Return whether its task may leave at once."""
    if not engine.cancel(request) and not request.cancel_accepted:
        abandon_request(engine, request)
        return True
    return request.finished


_living: weakref.WeakSet[AIOContext] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for context in list(_living):
        context._forked()
    _living.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
