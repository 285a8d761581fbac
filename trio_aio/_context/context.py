"""`AIOContext`: what users know of a context. Most calls do not need it: they have its `Core`, which does the work."""

from __future__ import annotations

import errno
import operator
import os
import select
from typing import TYPE_CHECKING, Literal

from trio_aio._arguments import NO_FLAGS, checked_flags, checked_offset, checked_size
from trio_aio._backends import async_resource, current_backend, raise_if_cancelled
from trio_aio._context import polling
from trio_aio._context.core import Core
from trio_aio._context.statistics import counted
from trio_aio._engine.descriptor import Descriptor, describe
from trio_aio._errors import NotCopied, os_error
from trio_aio._requests.poll import Poll
from trio_aio._requests.sync import Sync

if TYPE_CHECKING:
    from types import TracebackType

    from _typeshed import ReadableBuffer, WriteableBuffer

    from trio_aio._context.statistics import AIOStatistics
    from trio_aio._engine.protocols import Hook

__all__ = ("AIOContext", "core_of")

# Default number of worker threads, at most.
MAX_WORKERS = 8
# The largest max_in_flight that is accepted: io_setup takes no larger number of events.
_MOST_IN_FLIGHT = 1 << 22


@async_resource
class AIOContext(NotCopied):
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
        self._core: Core = Core(self, wanted, max_in_flight, min(max_workers, max_in_flight), self._hook)
        # In use by calls with an fd: a sync must find the writes before it.
        self._by_fd: dict[int, Descriptor] = {}

    def __repr__(self) -> str:
        return f"<trio_aio.AIOContext {self._core.state}, max_in_flight={self._core.max_in_flight}>"

    def _hook(self) -> Hook | None:
        """Return a hook between requests and lanes, or None. `testing.FaultyContext` returns its faults here."""
        return None

    # ---- from open to closed

    async def __aenter__(self) -> AIOContext:
        backend = current_backend()
        await backend.checkpoint_if_cancelled()
        # Before the start: a native cancellation raised after it would leave a context that no task closes.
        await backend.cancel_shielded_checkpoint()
        backend.step(self._core.start, backend)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        await (self.aclose() if value is None else self._core.close())

    async def aclose(self) -> None:
        """Wait for all requests in flight, then release threads, descriptors and the kernel context.

        New requests raise RuntimeError from now on. A `poll` that waits fails with OSError (ECANCELED). Reads that were abandoned
        (``abandon_on_cancel``, and those of an iteration that was left) are not waited for: a thread keeps their memory until they
        complete. Other tasks run meanwhile.
        Cancelled: raised when it is closed. A second call is a checkpoint and no more.
        """
        await self._core.close()
        await raise_if_cancelled()

    # ---- attributes

    @property
    def engine(self) -> Literal["aio", "workers"]:
        """\"aio\" or \"workers\". The first access calls io_setup(2), if no request has done so. RuntimeError if it was never opened."""
        core, engine = self._core, self._core.engine
        if engine is None:
            raise core.refusal()
        if core.state == "closed":
            return "aio" if engine.setup_error is None and core.wanted != "workers" else "workers"
        return "aio" if engine.has_kernel_lane() else "workers"

    @property
    def max_in_flight(self) -> int:
        """How many requests are in flight at most, in the kernel and with the workers each."""
        return self._core.max_in_flight

    def statistics(self) -> AIOStatistics:
        """Return the counts up to now. RuntimeError if the context was never opened."""
        core = self._core
        if core.engine is None:
            raise core.refusal()
        return counted(core.engine, core.names, self.engine, core.max_in_flight)

    # ---- by fd

    async def pread(self, fd: int, size: int, offset: int, *, flags: int = NO_FLAGS) -> bytes:
        """Return `size` bytes at `offset` of an open fd, fewer only at the end of the file. preadv2(2).

        size, offset: bytes, 0 to 2**63 - 1. flags: `RWF`. The caller keeps `fd` open meanwhile.
        Cancelled before a worker or the kernel has started it: it never runs. Later: the result is returned.
        OSError as pread(2); ValueError for a negative number.
        """
        size, offset, flags = checked_size(size), checked_offset(offset), checked_flags(flags)
        descriptor = self._use(fd)
        try:
            return await self._core.pread(descriptor, size, offset, flags, False)
        finally:
            self._end_use(descriptor)

    async def preadinto(self, fd: int, buffer: WriteableBuffer, offset: int, *, flags: int = NO_FLAGS) -> int:
        """Read into a writable buffer, and return the number of bytes, fewer than it holds only at the end of the file.

        Otherwise as `pread`.
        """
        offset, flags = checked_offset(offset), checked_flags(flags)
        descriptor = self._use(fd)
        try:
            return await self._core.preadinto(descriptor, buffer, offset, flags, False)
        finally:
            self._end_use(descriptor)

    async def pwrite(self, fd: int, data: ReadableBuffer, offset: int, *, flags: int = NO_FLAGS) -> int:
        """Write all of `data` at `offset` of an open fd, and return its length in bytes. pwritev2(2).

        offset: bytes, 0 to 2**63 - 1. flags: `RWF`. Do not change `data` until the call has ended.
        OSError as pwrite(2); its ``characters_written`` says how many bytes were written before. Cancelled: as `pread`.
        """
        offset, flags = checked_offset(offset), checked_flags(flags)
        descriptor = self._use(fd)
        try:
            return await self._core.pwrite(descriptor, data, offset, flags)
        finally:
            self._end_use(descriptor)

    async def fsync(self, fd: int) -> None:
        """Make durable every write that was started before by this number, through this context. fsync(2).

        Writes of the file through others (another number, another object, another process) are made durable if they have ended.
        OSError as fsync(2); after a failed sync later ones fail too: see `AsyncFile.fsync`. Cancelled before it has started: no effect.
        If other calls wait for the same sync, it runs on for them, and Cancelled is raised at once.
        """
        await self._sync(fd, data_only=False)

    async def fdatasync(self, fd: int) -> None:
        """As `fsync`, without metadata that is not needed to read the data back. fdatasync(2)."""
        await self._sync(fd, data_only=True)

    async def _sync(self, fd: int, *, data_only: bool) -> None:
        descriptor = self._use(fd)
        try:
            await self._core.submit_and_wait(Sync(descriptor, data_only=data_only))
        finally:
            self._end_use(descriptor)

    async def poll(self, fd: int, events: int) -> int:
        """Wait until one of `events` (a mask of ``select.POLLIN`` and so on) is ready on `fd`, and return those that are.

        ``IOCB_CMD_POLL``. Where there is no native AIO, and for a FIFO opened O_RDWR or a pty: a private epoll(7), and for files and
        directories a thread that calls poll(2). Regular files are always ready.
        Cancelled: raised when the kernel has confirmed the io_cancel; at once where the kernel does not have it (yet).
        OSError: EBADF; ECANCELED if the context is closed meanwhile; EAGAIN if the kernel has no memory for it.
        """
        events = operator.index(events)
        if not 0 <= events < 1 << 16:
            raise ValueError(f"events must be a mask of select.POLL* (16 bits), not {events:#x}")
        number = _checked_fd(fd)
        if self._core.check().has_kernel_lane():
            descriptor = Descriptor(number, fd)
            descriptor.load(describe(number).value)
            try:
                ready = await self._core.submit_and_wait(Poll(descriptor, events))
            except OSError as error:
                # The kernel's poll waits on one queue. A FIFO opened O_RDWR and a pty have two.
                if error.errno != errno.EINVAL:
                    raise
            else:
                return ready & (events | select.POLLERR | select.POLLHUP)  # the kernel adds related events: POLLRDNORM
        backend = self._core.backend
        assert backend is not None
        if self._core.state == "open":
            await self._core.checkpoint()
        if self._core.state != "open":  # it was closed meanwhile
            raise os_error(errno.ECANCELED, fd)
        return await polling.poll(backend, self._core.watches, number, describe(number).value.mode, events)

    def _use(self, fd: int) -> Descriptor:
        """Return the one `Descriptor` that all calls with this fd share while any of them is in progress."""
        number = _checked_fd(fd)
        engine = self._core.check()
        descriptor = self._by_fd.get(number)
        if descriptor is None:
            descriptor = Descriptor(number, number)
            descriptor.opened = False
            descriptor.load(describe(number).value)
            engine.learn(descriptor)
            self._by_fd[number] = descriptor
        descriptor.users += 1
        return descriptor

    def _end_use(self, descriptor: Descriptor) -> None:
        descriptor.users -= 1
        if not descriptor.users:
            del self._by_fd[descriptor.fd]


def _checked_fd(fd: int) -> int:
    fd = operator.index(fd)
    if not 0 <= fd < 1 << 31:
        raise os_error(errno.EBADF, fd)
    return fd


def core_of(context: AIOContext) -> Core:
    """Return the inner side of a context. TypeError if it is none."""
    if not isinstance(context, AIOContext):
        raise TypeError(f"context must be an AIOContext, not {type(context).__name__}")
    return context._core
