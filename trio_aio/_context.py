"""`AIOContext`: an engine, the event loop that it serves, and the reaper between them; a request goes in here and is waited for.

One run has one shared context (`current_context`), made on first use. It ends with the run: nobody closes it.
"""

from __future__ import annotations

import errno
import operator
import os
import select
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trio_aio import _engine
from trio_aio._arguments import NO_FLAGS, checked_flags, checked_offset, checked_size
from trio_aio._backends import async_resource, current_backend
from trio_aio._descriptor import Descriptor, describe
from trio_aio._errors import os_error
from trio_aio._request import Operation, Request, State
from trio_aio._transfers import Transfers

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from _typeshed import ReadableBuffer, WriteableBuffer

    from trio_aio._backends import Backend

__all__ = ("AIOContext", "AIOStatistics", "current_context")

MAX_WORKERS = 8
_TELLING = (Operation.WRITE, Operation.WRITEV, Operation.APPEND, Operation.WRITE_FILE)  # how much was written before they failed
_LARGEST = 1 << 22  # nr_events that io_setup takes


@dataclass(frozen=True)
class AIOStatistics:
    """What a context has done and is doing. Requests, unless it says bytes or calls."""

    engine: str
    """"aio" or "workers"."""
    max_in_flight: int
    """The most that are out at once, in the kernel and with the workers each."""
    in_flight: int
    """Out now."""
    queued: int
    """Waiting for their turn."""
    submitted_kernel: int
    """Sent by the kernel lane (``io_submit``)."""
    submitted_inline: int
    """Served by the inline lane, from the page cache on the event loop's thread."""
    submitted_workers: int
    """Sent to the workers, those among them that the kernel lane gave up on (`retried`)."""
    submit_calls: int
    """System calls ``io_submit``: one serves up to four requests."""
    completed: int
    """Ended with a result or an error."""
    cancelled: int
    """Never ran, or stopped by ``io_cancel``, or abandoned."""
    retried: int
    """The kernel lane would have slept (NOWAIT: EAGAIN, or not known there), so a worker did it."""
    bytes_read: int
    """By all lanes."""
    bytes_written: int
    """By all lanes."""


class _Closing:
    """What tasks in `AIOContext.aclose` wait for."""

    def __init__(self) -> None:
        self.waiter: Any = None
        self.finished: bool = False


@async_resource
class AIOContext(Transfers):
    """Native AIO, workers and a reaper, for any number of files.

    Use it as ``async with AIOContext() as context: ... open_aio(path, context=context)``. Most programs need none of their own: files use
    the run's shared one. `max_in_flight` requests may be out at once, in the kernel and with the workers each; more wait their turn.
    `max_workers` is the greatest number of worker threads (default: 8, at most `max_in_flight`).

    `engine`: "auto" takes native AIO where the kernel gives it, and workers alone where it does not; "aio" insists, and
    raises the OSError of ``io_setup`` on entering; "workers" never uses it. What "auto" means can be set by TRIO_AIO_ENGINE in the
    environment.
    """

    _engine_type: type[_engine.Engine] = _engine.Engine

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
        self._wanted: str = wanted
        self._max_in_flight: int = max_in_flight
        self._max_workers: int = min(max_workers, max_in_flight)
        self._backend: Backend | None = None
        self._identity: object = self  # of the run; `self` is never one, so that the quick check fails until we are open
        self._current: Callable[[], object] = object
        self._engine: _engine.Engine | None = None
        self._inline: Any = None
        self._stopping: bool = False
        self._closing: list[_Closing] = []
        self._state: Literal["new", "open", "closing", "closed", "forked"] = "new"
        self._thread: int = 0  # that it runs on, while it is open
        self._by_fd: dict[int, Descriptor] = {}
        self._watches: set[int] = set()  # epoll descriptors of polls without native AIO

    def __repr__(self) -> str:
        return f"<trio_aio.AIOContext {self._state}, max_in_flight={self._max_in_flight}>"

    # ---- its life

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
            raise RuntimeError(f"an AIOContext can be entered once, and this one is {self._state}")
        engine = self._engine_type(
            self._max_in_flight,
            self._max_workers,
            use_kernel=self._wanted != "workers",
            insist=self._wanted == "aio",
            wake=backend.wake,
            plug=lambda: backend.at_end_of_tick(self._flush),
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

    def _flush(self) -> None:
        if self._engine is not None and not self._stopping:
            self._engine.flush()

    def _reap(self) -> bool:
        """Serve the eventfd; give whether the context is closed."""
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
        """Whether no task waits for anything any more."""
        if self._state == "forked":
            return True
        engine = self._engine
        assert engine is not None
        return engine.outstanding == engine.abandoned and not self._closing

    def _hand_over(self) -> None:
        """End here and now. Requests that were abandoned keep their memory and descriptors, in a thread that waits for them."""
        if self._state == "forked":
            return
        self._stopping = True
        engine = self._engine
        assert engine is not None
        if engine.outstanding:
            threading.Thread(target=engine.drain, name="trio_aio drain", daemon=True).start()
        else:
            engine.stop()
            engine.close()  # the workers are idle: they leave at once
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
        """Wait for all requests that are out, then give back threads, descriptors and the kernel context.

        New requests raise RuntimeError from now on; a `poll` that is waiting fails with OSError (ECANCELED). What was abandoned
        (``abandon_on_cancel``) is not waited for: it stays with a thread. The event loop keeps running meanwhile. Shielded from
        cancellation: it closes in a cancelled scope too.
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
            engine.cancel_polls()
            for watch in self._watches:
                backend.notify_closing(watch)
            os.eventfd_write(engine.event_fd, 1)  # for the reaper to look
        closing = _Closing()
        self._closing.append(closing)
        await backend.wait(closing, lambda: False)

    def _forked(self) -> None:
        """In the child of a fork: nothing of this is ours to use, and a look at the ring would take the parent's completions."""
        self._state = "forked"
        self._identity = self
        self._thread = 0
        self._inline = None
        self._backend = None
        self._engine = None

    def _refusal(self) -> RuntimeError:
        """Say why this context cannot be used here and now."""
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

    def _check(self) -> _engine.Engine:
        """Give the engine; RuntimeError if this is not the run it belongs to, or it is closed."""
        try:
            if self._current() is self._identity:
                assert self._engine is not None
                return self._engine
        except RuntimeError:
            pass
        raise self._refusal()

    # ---- what it is

    @property
    def engine(self) -> Literal["aio", "workers"]:
        """Which it is. Asking sets up the kernel's context if that has not been done."""
        engine = self._engine
        if engine is None:
            raise self._refusal()
        if self._state == "closed":
            return "aio" if engine.setup_error is None and self._wanted != "workers" else "workers"
        return "aio" if engine.has_kernel_lane() else "workers"

    @property
    def max_in_flight(self) -> int:
        """The most requests that are out at once, in the kernel and with the workers each."""
        return self._max_in_flight

    def statistics(self) -> AIOStatistics:
        """Give the counts up to now."""
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

    async def _perform(self, request: Request, *, abandon: bool = False) -> int:
        """Submit a request and wait for it; give its result or raise its error."""
        engine = self._check()
        assert self._backend is not None
        cancel = engine.cancel
        if abandon:

            def cancel(request: Request) -> bool:
                if not engine.cancel(request) and not request.cancel_accepted:
                    engine.abandon(request)
                    return True
                return request.finished

        await self._backend.perform(engine.submit, request, cancel)
        if request.result < 0:
            error = os_error(request.result, request.descriptor.name)
            if request.operation in _TELLING:
                error.characters_written = request.transferred  # type: ignore[attr-defined]
            raise error
        return request.result

    async def _perform_close(self, descriptor: Descriptor, mark: Callable[[], None], *, abandon: bool) -> None:
        """Call `mark`, and close a descriptor when its requests are done. Never raises Cancelled.

        `abandon`: when cancelled, leave a close that has to wait for other requests to the engine.
        """
        engine = self._check()
        backend = self._backend
        assert backend is not None
        request = _engine.close_request(descriptor)

        def start() -> None:
            mark()
            engine.submit(request)

        def give_up() -> bool:
            if abandon and request.state is State.HELD:
                backend.wake(request)
                engine.abandon(request)
            return False

        await backend.wait(request, give_up, start)
        if request.result < 0:
            raise os_error(request.result, descriptor.name)

    async def _checkpoint(self) -> None:
        self._check()
        assert self._backend is not None
        await self._backend.checkpoint_if_cancelled()
        await self._backend.cancel_shielded_checkpoint()

    # ---- by descriptor

    async def pread(self, fd: int, size: int, offset: int, *, flags: int = NO_FLAGS) -> bytes:
        """Read `size` bytes at `offset` of an open descriptor: exactly that many, fewer only at the end of the file.

        Cancelled before a worker or the kernel has begun: it never runs. After that it goes on to its end and its result is returned.
        OSError as pread(2). The caller keeps `fd` open meanwhile.
        """
        size, offset, flags = checked_size(size), checked_offset(offset), checked_flags(flags)
        with self._leased(fd) as descriptor:
            return await self._pread(descriptor, size, offset, flags, False)

    async def preadinto(self, fd: int, buffer: WriteableBuffer, offset: int, *, flags: int = NO_FLAGS) -> int:
        """Read into a writable buffer, and give the number of bytes; else as `pread`."""
        offset, flags = checked_offset(offset), checked_flags(flags)
        with self._leased(fd) as descriptor:
            return await self._preadinto(descriptor, buffer, offset, flags, False)

    async def pwrite(self, fd: int, data: ReadableBuffer, offset: int, *, flags: int = NO_FLAGS) -> int:
        """Write all of `data` at `offset` of an open descriptor, and give its length in bytes.

        OSError as pwrite(2); its ``characters_written`` says how much was written before. Cancellation as in `pread`.
        """
        offset, flags = checked_offset(offset), checked_flags(flags)
        with self._leased(fd) as descriptor:
            return await self._pwrite(descriptor, data, offset, flags)

    async def fsync(self, fd: int) -> None:
        """Make durable what was written through this context to `fd`: every write that was started before. fsync(2)."""
        with self._leased(fd) as descriptor:
            await self._perform(Request(Operation.FSYNC, descriptor))

    async def fdatasync(self, fd: int) -> None:
        """As `fsync`, without metadata that reading back does not need. fdatasync(2)."""
        with self._leased(fd) as descriptor:
            await self._perform(Request(Operation.FDATASYNC, descriptor))

    async def poll(self, fd: int, events: int) -> int:
        """Wait until one of `events` (``select.POLLIN`` and so on) is ready on `fd`, and give those that are.

        ``IOCB_CMD_POLL``; a private epoll(7) where there is no native AIO. Cancelled when the kernel has stopped it. OSError:
        EBADF; ECANCELED if the context is closed meanwhile; EAGAIN if the kernel has no memory for it. A regular file is always ready.
        """
        events = operator.index(events)
        if not 0 <= events < 1 << 16:
            raise ValueError(f"events must be a mask of select.POLL* (16 bits), not {events:#x}")
        number = _checked_descriptor(fd)
        if self._check().has_kernel_lane():
            ready = await self._perform(Request(Operation.POLL, Descriptor(number, fd), address=events))
            return ready & (events | select.POLLERR | select.POLLHUP)  # a wake-up tells of its kin too (POLLRDNORM)
        return await self._poll_by_epoll(number, events)

    async def _poll_by_epoll(self, fd: int, events: int) -> int:
        backend = self._backend
        assert backend is not None
        await self._checkpoint()
        with select.epoll() as watch:
            try:
                watch.register(fd, events)
            except PermissionError:  # a file that epoll does not know: poll(2) calls it ready
                return events & (select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM)
            except OSError as error:
                raise os_error(error.errno or 0, fd) from None
            self._watches.add(watch.fileno())
            try:
                while not (ready := watch.poll(0, 1)):  # another task may have been quicker
                    if not await backend.wait_readable(watch.fileno()):
                        raise os_error(errno.ECANCELED, fd)
            finally:
                self._watches.discard(watch.fileno())
            return ready[0][1]

    def _leased(self, fd: int) -> _Leased:
        return _Leased(self, _checked_descriptor(fd))


class _Leased:
    """One `Descriptor` for all requests that are out on a number, so that a sync finds the writes before it."""

    def __init__(self, context: AIOContext, fd: int) -> None:
        self._context: AIOContext = context
        self._fd: int = fd

    def __enter__(self) -> Descriptor:
        context = self._context
        engine = context._check()
        descriptor = context._by_fd.get(self._fd)
        if descriptor is None:
            descriptor = Descriptor(self._fd, self._fd)
            descriptor.load(describe(self._fd))
            engine.learn(descriptor)
            context._by_fd[self._fd] = descriptor
        descriptor.users += 1
        return descriptor

    def __exit__(self, *_: object) -> None:
        descriptor = self._context._by_fd[self._fd]
        descriptor.users -= 1
        if not descriptor.users:
            del self._context._by_fd[self._fd]


def _checked_descriptor(fd: int) -> int:
    fd = operator.index(fd)
    if not 0 <= fd < 1 << 31:
        raise os_error(errno.EBADF, fd)
    return fd


_living: weakref.WeakSet[AIOContext] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for context in list(_living):
        context._forked()
    _living.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def current_context() -> AIOContext:
    """Give the context that all files of this run share, made on first use.

    It ends with the run. RuntimeError outside of one.
    """

    def make(backend: Backend) -> AIOContext:
        context = AIOContext()
        context._start(backend)
        return context

    backend = current_backend()
    context: AIOContext = backend.run_local(make)
    if context._state == "closed":
        raise RuntimeError("this run's AIOContext is closed: the run is ending, or somebody has closed it")
    return context
