"""The system calls of Linux native AIO one to one, typed: for those who want the kernel's interface and none of our policy.

How the kernel does it. ``io_setup`` makes a context, a queue of completions. ``io_submit`` hands over requests (iocbs): the kernel
copies each iocb, but it keeps the *address* of the data and reads or writes there until the request is complete, whatever has become
of the caller meanwhile. Each request then leaves one event, which ``io_getevents`` takes. ``io_cancel`` may ask for an early
end (of an ``IOCB_CMD_POLL``; the kernel cancels no disk I/O). ``io_destroy`` waits for all that is in flight.

What we do about it. An `IOCB` owns its buffers, and every submitted `IOCB` is held here until its event has been taken or its context
destroyed: memory that the kernel may still write to is never freed, even if the caller drops everything. Errors are OSError
with the kernel's errno where the call itself failed; what a request ended with stands in `IOEvent.res`, as the kernel put it there.

All calls are synchronous. ``io_submit`` blocks where the kernel does (buffered and cold reads, for one), ``io_getevents`` as long as it
is told to, ``io_destroy`` for tens of milliseconds; all let other threads run meanwhile.
"""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from enum import IntEnum, IntFlag
from itertools import starmap
from os import EFD_CLOEXEC, EFD_NONBLOCK, EFD_SEMAPHORE, eventfd, eventfd_read, eventfd_write
from typing import TYPE_CHECKING, NamedTuple

from trio_aio._errors import os_error, setup_error
from trio_aio._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed import ReadableBuffer, WriteableBuffer

    from trio_aio._native import CData

__all__ = (
    "EFD_CLOEXEC",
    "EFD_NONBLOCK",
    "EFD_SEMAPHORE",
    "IOCB",
    "RWF",
    "IOCBCommand",
    "IOEvent",
    "eventfd",
    "eventfd_read",
    "eventfd_write",
    "io_cancel",
    "io_destroy",
    "io_getevents",
    "io_setup",
    "io_submit",
)

_NANOSECONDS = 1_000_000_000
_EVENT_SIZE = ffi.sizeof("struct io_event")
_NO_FD = 0xFFFFFFFF  # -1 in the iocb's unsigned field: EBADF

# Events are written by the kernel before anyone reads them: room for many need not be zeroed at each call.
_new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)


class IOCBCommand(IntEnum):
    """What an `IOCB` asks for: ``IOCB_CMD_*`` of <linux/aio_abi.h>. The kernel refuses NOOP with EINVAL."""

    PREAD = lib.IOCB_CMD_PREAD
    PWRITE = lib.IOCB_CMD_PWRITE
    FSYNC = lib.IOCB_CMD_FSYNC
    FDSYNC = lib.IOCB_CMD_FDSYNC
    POLL = lib.IOCB_CMD_POLL
    NOOP = lib.IOCB_CMD_NOOP
    PREADV = lib.IOCB_CMD_PREADV
    PWRITEV = lib.IOCB_CMD_PWRITEV


class RWF(IntFlag):
    """Flags of one read or write: ``RWF_*`` of <linux/fs.h>, see preadv2(2). What the kernel or the file does not know is EOPNOTSUPP."""

    HIPRI = lib.RWF_HIPRI
    DSYNC = lib.RWF_DSYNC
    SYNC = lib.RWF_SYNC
    NOWAIT = lib.RWF_NOWAIT
    APPEND = lib.RWF_APPEND
    NOAPPEND = lib.RWF_NOAPPEND
    ATOMIC = lib.RWF_ATOMIC
    DONTCACHE = lib.RWF_DONTCACHE


class IOCB:
    """Describe one request: ``struct iocb`` of <linux/aio_abi.h>, with the memory it needs.

    Made by `pread`, `pwrite`, `preadv`, `pwritev`, `fsync`, `fdsync`, `poll` and `noop`, which all take

    - ``data``: an int from 0 to 2**64-1 that comes back as `IOEvent.data`;
    - ``rw_flags``: `RWF`;
    - ``resfd``: an eventfd to signal when the event is there to be taken (``IOCB_FLAG_RESFD``);
    - ``ioprio``: an I/O priority as ioprio_set(2) has it, class << 13 | level (``IOCB_FLAG_IOPRIO``).

    What does not fit its C type is an OverflowError; everything else is for `io_submit`, that is the kernel, to judge. The buffers
    are exported as long as the IOCB lives (a bytearray among them cannot be resized: BufferError). After its event has been
    taken, an IOCB may be submitted again.

    The constructor itself takes the fields as they are. It does not look after the memory at ``address``: the caller does, or names in
    ``buffers`` what owns it.
    """

    __slots__ = ("__weakref__", "_address", "_context", "_exports", "_iocb", "buffers", "command", "fd")

    command: IOCBCommand
    """What it asks for."""
    fd: int
    """The file it asks it of."""
    buffers: tuple[ReadableBuffer, ...]
    """The objects that are read into or written from, in order; empty where there is no data."""
    _iocb: CData
    _address: int  # of the struct iocb, by which the kernel's events and io_cancel name it
    _context: int | None  # in flight there
    _exports: object  # keeps the memory that the iocb points to: exported buffers, the iovecs

    def __init__(
        self,
        command: IOCBCommand,
        fd: int,
        address: int = 0,
        length: int = 0,
        offset: int = 0,
        *,
        buffers: tuple[ReadableBuffer, ...] = (),
        data: int = 0,
        rw_flags: int = 0,
        resfd: int | None = None,
        ioprio: int | None = None,
    ) -> None:
        self.command = IOCBCommand(command)
        self.fd = fd
        self.buffers = buffers
        self._exports = None
        self._context = None
        self._iocb = iocb = ffi.new("struct iocb *")
        self._address = int(ffi.cast("uintptr_t", iocb))
        iocb.aio_lio_opcode = command
        iocb.aio_fildes = _unsigned_fd(fd)
        iocb.aio_buf = address
        iocb.aio_nbytes = length
        iocb.aio_offset = offset
        iocb.aio_data = data
        iocb.aio_rw_flags = rw_flags
        if resfd is not None:
            iocb.aio_flags |= lib.IOCB_FLAG_RESFD
            iocb.aio_resfd = _unsigned_fd(resfd)
        if ioprio is not None:
            iocb.aio_flags |= lib.IOCB_FLAG_IOPRIO
            iocb.aio_reqprio = ioprio

    @classmethod
    def pread(
        cls,
        fd: int,
        buffer: WriteableBuffer,
        offset: int,
        *,
        data: int = 0,
        rw_flags: int = 0,
        resfd: int | None = None,
        ioprio: int | None = None,
    ) -> IOCB:
        """Read at ``offset`` (bytes) into a buffer, as much as it holds, as pread(2): ``IOCB_CMD_PREAD``.

        BufferError if the buffer is read-only.
        """
        return cls._one_buffer(IOCBCommand.PREAD, fd, buffer, offset, True, data, rw_flags, resfd, ioprio)

    @classmethod
    def pwrite(
        cls,
        fd: int,
        buffer: ReadableBuffer,
        offset: int,
        *,
        data: int = 0,
        rw_flags: int = 0,
        resfd: int | None = None,
        ioprio: int | None = None,
    ) -> IOCB:
        """Write the whole of a buffer at ``offset`` (bytes), as pwrite(2): ``IOCB_CMD_PWRITE``."""
        return cls._one_buffer(IOCBCommand.PWRITE, fd, buffer, offset, False, data, rw_flags, resfd, ioprio)

    @classmethod
    def preadv(
        cls,
        fd: int,
        buffers: Iterable[WriteableBuffer],
        offset: int,
        *,
        data: int = 0,
        rw_flags: int = 0,
        resfd: int | None = None,
        ioprio: int | None = None,
    ) -> IOCB:
        """Read at ``offset`` (bytes) into buffers, filled in order, as preadv2(2): ``IOCB_CMD_PREADV``.

        BufferError if one of them is read-only.
        """
        return cls._vector(IOCBCommand.PREADV, fd, tuple(buffers), offset, True, data, rw_flags, resfd, ioprio)

    @classmethod
    def pwritev(
        cls,
        fd: int,
        buffers: Iterable[ReadableBuffer],
        offset: int,
        *,
        data: int = 0,
        rw_flags: int = 0,
        resfd: int | None = None,
        ioprio: int | None = None,
    ) -> IOCB:
        """Write buffers one behind the other at ``offset`` (bytes), as pwritev2(2): ``IOCB_CMD_PWRITEV``."""
        return cls._vector(IOCBCommand.PWRITEV, fd, tuple(buffers), offset, False, data, rw_flags, resfd, ioprio)

    @classmethod
    def fsync(cls, fd: int, *, data: int = 0, rw_flags: int = 0, resfd: int | None = None, ioprio: int | None = None) -> IOCB:
        """Make a file durable, as fsync(2): ``IOCB_CMD_FSYNC``. It does not wait for writes that are still in flight."""
        return cls(IOCBCommand.FSYNC, fd, data=data, rw_flags=rw_flags, resfd=resfd, ioprio=ioprio)

    @classmethod
    def fdsync(cls, fd: int, *, data: int = 0, rw_flags: int = 0, resfd: int | None = None, ioprio: int | None = None) -> IOCB:
        """Make a file's data durable, as fdatasync(2): ``IOCB_CMD_FDSYNC``. It does not wait for writes that are still in flight."""
        return cls(IOCBCommand.FDSYNC, fd, data=data, rw_flags=rw_flags, resfd=resfd, ioprio=ioprio)

    @classmethod
    def poll(cls, fd: int, events: int, *, data: int = 0, rw_flags: int = 0, resfd: int | None = None, ioprio: int | None = None) -> IOCB:
        """Wait once until a descriptor is ready, as poll(2): ``IOCB_CMD_POLL``.

        ``events`` is a mask of ``select.POLL*``; so is `IOEvent.res`, which may name more than was asked for, and is 0 if
        the request was cancelled.
        """
        return cls(IOCBCommand.POLL, fd, events, data=data, rw_flags=rw_flags, resfd=resfd, ioprio=ioprio)

    @classmethod
    def noop(cls, fd: int = 0, *, data: int = 0, rw_flags: int = 0, resfd: int | None = None, ioprio: int | None = None) -> IOCB:
        """Do nothing: ``IOCB_CMD_NOOP``, which Linux has in its header and refuses with EINVAL (with EBADF if ``fd`` is not open)."""
        return cls(IOCBCommand.NOOP, fd, data=data, rw_flags=rw_flags, resfd=resfd, ioprio=ioprio)

    @property
    def data(self) -> int:
        """The number that comes back as `IOEvent.data`."""
        value: int = self._iocb.aio_data
        return value

    @property
    def offset(self) -> int:
        """Where in the file, in bytes."""
        value: int = self._iocb.aio_offset
        return value

    @property
    def rw_flags(self) -> RWF:
        """The flags it was given."""
        return RWF(self._iocb.aio_rw_flags)

    @property
    def in_flight(self) -> bool:
        """Whether it was accepted by `io_submit` and its event has not been taken."""
        return self._context is not None

    def __repr__(self) -> str:
        state = ", in flight" if self.in_flight else ""
        return f"<IOCB {self.command.name} fd={self.fd} offset={self.offset} data={self.data}{state}>"

    @classmethod
    def _one_buffer(
        cls,
        command: IOCBCommand,
        fd: int,
        buffer: ReadableBuffer,
        offset: int,
        writable: bool,
        data: int,
        rw_flags: int,
        resfd: int | None,
        ioprio: int | None,
    ) -> IOCB:
        export = _export(buffer, writable)
        address = int(ffi.cast("uintptr_t", export))
        iocb = cls(command, fd, address, len(export), offset, buffers=(buffer,), data=data, rw_flags=rw_flags, resfd=resfd, ioprio=ioprio)
        iocb._exports = export
        return iocb

    @classmethod
    def _vector(
        cls,
        command: IOCBCommand,
        fd: int,
        buffers: tuple[ReadableBuffer, ...],
        offset: int,
        writable: bool,
        data: int,
        rw_flags: int,
        resfd: int | None,
        ioprio: int | None,
    ) -> IOCB:
        exports = [_export(buffer, writable) for buffer in buffers]
        vector = ffi.new("struct iovec[]", [(export, len(export)) for export in exports])
        address = int(ffi.cast("uintptr_t", vector))
        iocb = cls(command, fd, address, len(exports), offset, buffers=buffers, data=data, rw_flags=rw_flags, resfd=resfd, ioprio=ioprio)
        iocb._exports = (vector, exports)
        return iocb


class IOEvent(NamedTuple):
    """Tell how one request ended: ``struct io_event`` of <linux/aio_abi.h>."""

    data: int
    """`IOCB.data` of the request."""
    iocb: IOCB | None
    """The very object that was submitted. None: it was not submitted by `io_submit`, or another thread is destroying the context."""
    res: int
    """What the operation returned: a count of bytes, 0, or ready ``select.POLL*``; or a negative errno."""
    res2: int
    """0 for everything that Linux does today."""


# What the kernel may still read from or write to, by context and address of the iocb.
_in_flight: dict[tuple[int, int], IOCB] = {}
# Events as the kernel wrote them, by context, that a wait had taken when a signal's handler raised: the next wait gives them.
_unread: dict[int, bytes] = {}
# Two threads must not both find the same IOCB free and submit it. Reentrant, for signal handlers and finalizers that come in between.
_lock = threading.RLock()


def io_setup(nr_events: int) -> int:
    """Make a context with room for ``nr_events`` requests in flight, and give its id: io_setup(2).

    ``nr_events`` is charged to ``fs.aio-max-nr``, a limit of the whole host; the ring may in fact hold more.

    OSError: EAGAIN over that limit (the message says how to raise it), EINVAL for 0 or more than 4194304, EPERM where seccomp forbids it,
    ENOSYS where there is no native AIO, ENOMEM.
    """
    context = ffi.new("uint64_t *")
    error = lib.taio_io_setup(nr_events, context)
    if error < 0:
        raise setup_error(error)
    made: int = context[0]
    return made


def io_submit(ctx: int, iocbs: Iterable[IOCB]) -> int:
    """Hand requests to the kernel, and give the number that it accepted: io_submit(2).

    The kernel stops at the first request that it refuses. Its errno shows only if that is the first of all; so submit the rest again
    to learn why. Requests up to there are in flight, and each leaves one event.

    OSError: EAGAIN if the ring is full (take events first), EBADF, EINVAL (a request that makes no sense, or no such context), EOPNOTSUPP
    for ``rw_flags`` that the kernel or the file does not know. ValueError, before anything is submitted, if an IOCB is in flight already or
    is there twice.
    """
    batch = list(iocbs)
    for iocb in batch:
        if not isinstance(iocb, IOCB):
            raise TypeError(f"an IOCB is required, not {type(iocb).__name__!r}")
    pointers = ffi.new("struct iocb *[]", [iocb._iocb for iocb in batch])
    context: int = ffi.new("uint64_t *", ctx)[0]  # an id that is no number must fail before anything is marked as in flight
    with _lock:
        for iocb in batch:
            if iocb._context is not None:
                raise ValueError(f"{iocb!r} cannot be submitted again before its event has been taken")
        if len(set(batch)) < len(batch):
            raise ValueError("an IOCB is in the batch twice")
        for iocb in batch:  # before the call: another thread may take the event before this one is back
            iocb._context = context
            _in_flight[context, iocb._address] = iocb
    accepted = lib.taio_io_submit(context, len(batch), pointers)
    if accepted < len(batch):
        with _lock:
            for iocb in batch[max(accepted, 0) :]:
                iocb._context = None
                del _in_flight[context, iocb._address]
    if accepted < 0:
        detail = f"io_submit of {batch[0]!r}" if batch else "io_submit"
        if accepted == -errno.EAGAIN:
            detail += ": the ring is full, take events with io_getevents first"
        raise os_error(accepted, detail=detail)
    return accepted


def io_getevents(ctx: int, min_nr: int, nr: int, timeout: float | None = None) -> list[IOEvent]:
    """Take between ``min_nr`` and ``nr`` events: io_getevents(2).

    Waits until there are ``min_nr``, or for ``timeout`` seconds (None or ``math.inf``: for ever), and gives what there is
    then: perhaps fewer.
    A timeout of 0 does not wait. A signal's Python handler runs during the wait, which then goes on (PEP 475). If the handler raises, no
    event is lost: the next call gives what this one had taken.

    ValueError unless ``0 <= min_nr <= nr`` and ``timeout >= 0``. OSError: EINVAL if there is no such context.
    """
    if not 0 <= min_nr <= nr:
        raise ValueError(f"min_nr must be between 0 and nr, not {min_nr} with nr {nr}")
    until: int | None = None
    if timeout is not None and timeout != math.inf:
        if not timeout >= 0:
            raise ValueError(f"timeout must be None or 0 or more seconds, not {timeout!r}")
        until = time.monotonic_ns() + math.ceil(timeout * _NANOSECONDS)
    events = _new_uncleared("struct io_event[]", nr)
    taken = before = _take_unread(ctx, events, nr)
    left: CData = ffi.NULL
    answers: list[int] = []
    try:
        while True:
            if until is not None:
                left = ffi.new("struct timespec *", divmod(max(until - time.monotonic_ns(), 0), _NANOSECONDS))
            arguments = ctx, max(min_nr - taken, 0), nr - taken, events + taken, left
            # Not n = ...: a handler may raise once the call is back in Python, and n would not be assigned.
            answers.extend(starmap(lib.taio_io_getevents, (arguments,)))
            n = answers[-1]
            if n == -errno.EINTR:
                continue
            if n < 0 and taken == 0:
                raise os_error(n, detail="io_getevents")
            taken += max(n, 0)
            # Too few is what the kernel gives at the end of the time, but also when a signal came in between: go on then.
            if n <= 0 or taken >= min_nr or (until is not None and time.monotonic_ns() >= until):
                break
    except BaseException:
        _keep_unread(ctx, events, before + sum(n for n in answers if n > 0))
        raise
    return _released(ctx, events, taken)


def io_cancel(ctx: int, iocb: IOCB) -> bool:
    """Ask the kernel to end a request early: io_cancel(2).

    True: accepted, and the event will come through `io_getevents`, with 0 as its ``res`` unless it was complete just then.
    False: too late, or not of a kind that can be cancelled. Linux cancels `IOCB.poll`, and no disk I/O.

    OSError: EINVAL if there is no such context, ENOSYS where the call is missing (gVisor).
    """
    unused = ffi.new("struct io_event *")  # the event goes through the ring, as it has since Linux 3.11
    error = lib.taio_io_cancel(ctx, iocb._iocb, unused)
    if error in (0, -errno.EINPROGRESS):
        return True
    if error == -errno.EAGAIN or (error == -errno.EINVAL and _is_context(ctx)):
        return False
    raise os_error(error, detail=f"io_cancel of {iocb!r}")


def io_destroy(ctx: int) -> None:
    """Cancel what can be cancelled, wait for everything in flight and give the context back: io_destroy(2).

    Events that have not been taken are lost. Takes 30-140 ms even when nothing is in flight.

    OSError: EINVAL if there is no such context.
    """
    with _lock:
        # Taken out before the call, because another thread's io_setup may get the same id while this one still waits.
        waited_for = {key: _in_flight.pop(key) for key in list(_in_flight) if key[0] == ctx}
    error = lib.taio_io_destroy(ctx)
    with _lock:
        if error < 0:
            _in_flight.update(waited_for)
        else:
            _unread.pop(ctx, None)
            for iocb in waited_for.values():
                iocb._context = None
    if error < 0:
        raise os_error(error, detail="io_destroy")


def _export(buffer: ReadableBuffer, writable: bool) -> CData:
    with memoryview(buffer) as view:  # for its TypeError, which says what is wrong
        if writable and view.readonly:
            raise BufferError(f"a read needs a writable buffer, which this {type(buffer).__name__} is not")
    return ffi.from_buffer("char[]", buffer, writable)


def _unsigned_fd(fd: int) -> int:
    return fd if fd >= 0 else _NO_FD


def _is_context(ctx: int) -> bool:
    """Tell a context that is gone from the other things that are EINVAL: asked for no event, a living one gives none."""
    return lib.taio_io_getevents(ctx, 0, 0, ffi.NULL, ffi.new("struct timespec *")) != -errno.EINVAL


def _take_unread(ctx: int, events: CData, nr: int) -> int:
    if not _unread:
        return 0
    with _lock:
        unread = _unread.pop(ctx, b"")
        size = min(len(unread), nr * _EVENT_SIZE)
        ffi.memmove(events, unread, size)
        if size < len(unread):
            _unread[ctx] = unread[size:]
    return size // _EVENT_SIZE


def _keep_unread(ctx: int, events: CData, taken: int) -> None:
    if taken:
        with _lock:
            _unread[ctx] = ffi.buffer(events, taken * _EVENT_SIZE)[:] + _unread.get(ctx, b"")


def _released(ctx: int, events: CData, taken: int) -> list[IOEvent]:
    result = []
    with _lock:
        for i in range(taken):
            event = events[i]
            iocb = _in_flight.pop((ctx, event.obj), None)
            if iocb is not None:
                iocb._context = None
            result.append(IOEvent(event.data, iocb, event.res, event.res2))
    return result


def _after_fork_in_child() -> None:
    """The parent's requests write to the parent's memory, and its contexts are none here: nothing is in flight."""
    global _lock
    _lock = threading.RLock()  # another thread, which is not in the child, may have held the old one
    for iocb in _in_flight.values():
        iocb._context = None
    _in_flight.clear()
    _unread.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
