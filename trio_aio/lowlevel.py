"""The system calls of Linux native AIO, one to one and typed: the kernel's interface without our policy.

How the kernel works. ``io_setup`` makes a context, a queue of completions. ``io_submit`` submits requests (iocbs). The kernel copies each
iocb, but it keeps the *address* of the data, and reads or writes there until the request completes, whatever the caller does meanwhile.
Each request then leaves one event, which ``io_getevents`` takes. ``io_cancel`` may end a request early (an ``IOCB_CMD_POLL``; the kernel
cannot cancel disk I/O). ``io_destroy`` waits for all requests in flight.

What we do about it. An `IOCB` owns its buffers, and this module holds every submitted `IOCB` until its event has been taken or its context
destroyed. So memory that the kernel may still write to is never freed, even if the caller drops everything. A call that fails raises
OSError with the kernel's errno. A request that fails raises nothing: `IOEvent.res` has the kernel's result.

All calls are synchronous, and release the GIL. ``io_submit`` may block in the kernel, for example in a buffered read that is not cached;
``io_getevents`` blocks as long as its arguments say; ``io_destroy`` takes tens of milliseconds.
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

from trio_aio._errors import NotCopied, os_error, refuse_objects, setup_error
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

# The kernel writes an event before we read it, so the memory of many events need not be zeroed in each call.
_new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)


class IOCBCommand(IntEnum):
    """The operation of an `IOCB`: ``IOCB_CMD_*`` of <linux/aio_abi.h>. The kernel refuses NOOP with EINVAL."""

    PREAD = lib.IOCB_CMD_PREAD
    PWRITE = lib.IOCB_CMD_PWRITE
    FSYNC = lib.IOCB_CMD_FSYNC
    FDSYNC = lib.IOCB_CMD_FDSYNC
    POLL = lib.IOCB_CMD_POLL
    NOOP = lib.IOCB_CMD_NOOP
    PREADV = lib.IOCB_CMD_PREADV
    PWRITEV = lib.IOCB_CMD_PWRITEV


class RWF(IntFlag):
    """Flags of one read or write: ``RWF_*`` of <linux/fs.h>, see preadv2(2). EOPNOTSUPP if the kernel or the file lacks one."""

    HIPRI = lib.RWF_HIPRI
    DSYNC = lib.RWF_DSYNC
    SYNC = lib.RWF_SYNC
    NOWAIT = lib.RWF_NOWAIT
    APPEND = lib.RWF_APPEND
    NOAPPEND = lib.RWF_NOAPPEND
    ATOMIC = lib.RWF_ATOMIC
    DONTCACHE = lib.RWF_DONTCACHE


class IOCB(NotCopied):
    """Describe one request: ``struct iocb`` of <linux/aio_abi.h>, with the memory it needs.

    Made by `pread`, `pwrite`, `preadv`, `pwritev`, `fsync`, `fdsync`, `poll` and `noop`, which all take

    - ``data``: an int from 0 to 2**64 - 1 that comes back as `IOEvent.data`;
    - ``rw_flags``: `RWF`;
    - ``resfd``: an eventfd that the kernel signals when the event can be taken (``IOCB_FLAG_RESFD``);
    - ``ioprio``: an I/O priority as in ioprio_set(2), class << 13 | level (``IOCB_FLAG_IOPRIO``).

    OverflowError for a number that does not fit its C type. The kernel checks everything else, in `io_submit`. The buffers are exported
    as long as the IOCB lives: resizing a bytearray among them raises BufferError. Once its event has been taken, an IOCB may be submitted
    again.

    The constructor itself takes the fields as they are. It does not keep the memory at ``address`` alive: pass its owner in ``buffers``,
    or hold it yourself.
    """

    __slots__ = ("__weakref__", "_address", "_context", "_exports", "_iocb", "buffers", "command", "fd")

    command: IOCBCommand
    """The operation."""
    fd: int
    """The file descriptor that it reads, writes, syncs or polls."""
    buffers: tuple[ReadableBuffer, ...]
    """The objects that it reads into or writes from, in order. Empty if it moves no data."""
    _iocb: CData
    _address: int  # of the struct iocb: events and io_cancel identify it by this
    _context: int | None  # the id of the context in which it is in flight
    _exports: object  # owns the memory that the iocb points to: exported buffers, iovecs

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
        """Read from ``offset`` (bytes) until a buffer is full, as pread(2): ``IOCB_CMD_PREAD``.

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
        """Write buffers one after the other at ``offset`` (bytes), as pwritev2(2): ``IOCB_CMD_PWRITEV``."""
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
        """Wait once until an fd is ready, as poll(2): ``IOCB_CMD_POLL``.

        ``events`` is a mask of ``select.POLL*``. `IOEvent.res` is such a mask too. It may have more bits than ``events``, and is 0 if the
        request was cancelled.
        """
        return cls(IOCBCommand.POLL, fd, events, data=data, rw_flags=rw_flags, resfd=resfd, ioprio=ioprio)

    @classmethod
    def noop(cls, fd: int = 0, *, data: int = 0, rw_flags: int = 0, resfd: int | None = None, ioprio: int | None = None) -> IOCB:
        """Do nothing: ``IOCB_CMD_NOOP``. Linux has it in its header, but refuses it with EINVAL, or EBADF if ``fd`` is not open."""
        return cls(IOCBCommand.NOOP, fd, data=data, rw_flags=rw_flags, resfd=resfd, ioprio=ioprio)

    @property
    def data(self) -> int:
        """The number that comes back as `IOEvent.data`."""
        value: int = self._iocb.aio_data
        return value

    @property
    def offset(self) -> int:
        """The position in the file, in bytes."""
        value: int = self._iocb.aio_offset
        return value

    @property
    def rw_flags(self) -> RWF:
        """The flags that it was made with."""
        return RWF(self._iocb.aio_rw_flags)

    @property
    def in_flight(self) -> bool:
        """Whether `io_submit` accepted it and its event has not been taken."""
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
    """How one request ended: ``struct io_event`` of <linux/aio_abi.h>."""

    data: int
    """`IOCB.data` of the request."""
    iocb: IOCB | None
    """The object that was submitted. None: it was not submitted by `io_submit`, or another thread is destroying the context."""
    res: int
    """The result of the operation: a number of bytes, 0, or a mask of ``select.POLL*``; or a negative errno."""
    res2: int
    """0 for every operation that Linux has today."""


# Requests whose memory the kernel may still read or write, by context and address of the iocb.
_in_flight: dict[tuple[int, int], IOCB] = {}
# Events as the kernel wrote them, by context: a wait had taken them when a signal handler raised. The next wait returns them.
_unread: dict[int, bytes] = {}
# Guards the two above and each IOCB's _context, so that two threads cannot submit the same IOCB. Reentrant, because a signal handler or a
# finalizer may run while the lock is held.
_lock = threading.RLock()


def io_setup(nr_events: int) -> int:
    """Make a context with room for ``nr_events`` requests in flight, and return its id: io_setup(2).

    ``nr_events`` counts towards ``fs.aio-max-nr``, a limit of the whole host. The kernel may round the room up.

    OSError: EAGAIN over that limit (the message says how to raise it), EINVAL for 0 or more than 4194304, EPERM if seccomp forbids it,
    ENOSYS if the kernel has no native AIO, ENOMEM.
    """
    context = ffi.new("uint64_t *")
    error = lib.taio_io_setup(nr_events, context)
    if error < 0:
        raise setup_error(error)
    made: int = context[0]
    return made


def io_submit(ctx: int, iocbs: Iterable[IOCB]) -> int:
    """Submit requests, and return how many the kernel accepted: io_submit(2).

    The kernel stops at the first request that it refuses. It reports the errno only if that is the first of all: submit the rest again to
    learn it. The requests before it are in flight, and each leaves one event.

    OSError: EAGAIN if the ring is full (take events first), EBADF, EINVAL (an invalid request, or no such context), EOPNOTSUPP for
    ``rw_flags`` that the kernel or the file does not know. ValueError, before anything is submitted, if an IOCB is in flight or is listed
    twice.
    """
    batch = list(iocbs)
    for iocb in batch:
        _check_iocb(iocb)
    pointers = ffi.new("struct iocb *[]", [iocb._iocb for iocb in batch])
    context = _context_id(ctx)
    with _lock:
        for iocb in batch:
            if iocb._context is not None:
                raise ValueError(f"{iocb!r} cannot be submitted again before its event has been taken")
        if len(set(batch)) < len(batch):
            raise ValueError("an IOCB is in the batch twice")
        for iocb in batch:  # before the call: another thread may take the event before it returns
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

    Waits until there are ``min_nr``, but at most ``timeout`` seconds (None or ``math.inf``: for ever), and returns the events that are
    there, perhaps fewer. A timeout of 0 does not wait. Python signal handlers run during the wait, which then continues (PEP 475). If a
    handler raises, no event is lost: the next call returns those that this one had taken.

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
            # Not n = ...: a signal handler may raise after the call and before the assignment, and the count would be lost.
            answers.extend(starmap(lib.taio_io_getevents, (arguments,)))
            n = answers[-1]
            if n == -errno.EINTR:
                continue
            if n < 0 and taken == 0:
                raise os_error(n, detail="io_getevents")
            taken += max(n, 0)
            # The kernel returns too few when the time is up, but also after a signal. In the second case wait again.
            if n <= 0 or taken >= min_nr or (until is not None and time.monotonic_ns() >= until):
                break
    except BaseException:
        _keep_unread(ctx, events, before + sum(n for n in answers if n > 0))
        raise
    return _released(ctx, events, taken)


def io_cancel(ctx: int, iocb: IOCB) -> bool:
    """Cancel a request, and return whether the kernel accepted that: io_cancel(2).

    True: the event will come through `io_getevents`. Its ``res`` is 0, unless the request completed just then.
    False: too late, or the kernel cannot cancel this operation. Linux cancels `IOCB.poll`, but no disk I/O.

    OSError: EINVAL if there is no such context, ENOSYS if the call is missing (gVisor).
    """
    _check_iocb(iocb)
    unused = ffi.new("struct io_event *")  # since Linux 3.11 the event comes through the ring instead
    error = lib.taio_io_cancel(ctx, iocb._iocb, unused)
    if error in (0, -errno.EINPROGRESS):
        return True
    if error == -errno.EAGAIN or (error == -errno.EINVAL and _is_context(ctx)):
        return False
    raise os_error(error, detail=f"io_cancel of {iocb!r}")


def io_destroy(ctx: int) -> None:
    """Cancel requests if the kernel can, wait for all others, and destroy the context: io_destroy(2).

    Events that have not been taken are lost. It takes 30-140 ms even when nothing is in flight.

    OSError: EINVAL if there is no such context.
    """
    ctx = _context_id(ctx)
    with _lock:
        # Remove them before the call: another thread's io_setup may get the same id while this one still waits.
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
    with memoryview(buffer) as view:  # its TypeError explains what is wrong
        if writable and view.readonly:
            raise BufferError(f"a read needs a writable buffer, which this {type(buffer).__name__} is not")
        if not view.c_contiguous:
            raise BufferError("the buffer must be contiguous, in C order")
        refuse_objects(buffer, view.format)
    return ffi.from_buffer("char[]", buffer, writable)


def _unsigned_fd(fd: int) -> int:
    return fd if fd >= 0 else _NO_FD


def _check_iocb(iocb: object) -> None:
    if not isinstance(iocb, IOCB):
        raise TypeError(f"an IOCB is required, not {type(iocb).__name__!r}")


def _context_id(ctx: int) -> int:
    """Return the id of a context as an int of C. TypeError, OverflowError: before what is known of its requests is changed."""
    number: int = ffi.new("uint64_t *", ctx)[0]
    return number


def _is_context(ctx: int) -> bool:
    """Return whether a context exists. EINVAL may also have other reasons, but not when a call takes no events."""
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
    """Forget the parent's requests: they use the parent's memory, and its contexts do not exist in the child."""
    global _lock
    _lock = threading.RLock()  # a thread of the parent may have held the old one
    for iocb in _in_flight.values():
        iocb._context = None
    _in_flight.clear()
    _unread.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
