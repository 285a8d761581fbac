"""The system calls one to one, on the real kernel: what it accepts, what it refuses and where, and whose memory is whose."""

from __future__ import annotations

import array
import errno
import gc
import math
import mmap
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import pytest

from trio_aio import _errors, lowlevel
from trio_aio._native import ffi, lib
from trio_aio.lowlevel import IOCB, RWF, IOCBCommand, IOEvent, eventfd_read, io_cancel, io_destroy, io_getevents, io_setup, io_submit

from ..support.files import BLOCK, content, make_file, opened
from ..support.page_cache import attempts, evict, pinned
from ..support.pipes import empty_pipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = 4 * BLOCK
CONTENT = content(SIZE)
ROOM = 64
MOST_EVENTS = 4194304
NOT_A_CONTEXT = BLOCK  # nothing is ever mapped there
NOT_OPEN = 1 << 30
UNKNOWN_FLAG = 1 << 30
BEST_EFFORT = 2 << 13  # of ioprio_set(2)


@contextmanager
def context(room: int = 8) -> Iterator[int]:
    """Yield a context of the test's own."""
    ctx = io_setup(room)
    try:
        yield ctx
    finally:
        io_destroy(ctx)


@pytest.fixture(scope="module")
def _shared() -> Iterator[int]:
    with context(ROOM) as ctx:
        yield ctx


@pytest.fixture
def ctx(_shared: int) -> Iterator[int]:
    """Yield a context that the tests share, since to destroy one takes long; none may leave anything in it."""
    yield _shared
    assert io_getevents(_shared, 0, ROOM, 0) == []
    assert not lowlevel._in_flight


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_file(tmp_path, SIZE)[0]


@pytest.fixture
def fd(path: Path) -> Iterator[int]:
    """Yield a file with CONTENT, open for reading and writing."""
    with opened(path, os.O_RDWR) as fd:
        yield fd


@pytest.fixture
def on_disk(path: Path) -> Path:
    """Return a file with CONTENT where direct I/O and RWF_NOWAIT work."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True).stdout.strip()
    if kind in ("tmpfs", "overlayfs"):
        pytest.skip(f"needs a disk's filesystem, not {kind}: see --basetemp")
    return path


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    with empty_pipe() as ends:
        yield ends


@contextmanager
def alarms(handler: Callable[[], None]) -> Iterator[None]:
    """Have `handler` called every few milliseconds, as a signal's, until it raises."""

    def handle(*_: object) -> None:
        try:
            handler()
        except BaseException:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise

    previous = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@contextmanager
def raises_errno(code: int, match: str | None = None) -> Iterator[None]:
    with pytest.raises(OSError, match=match) as caught:
        yield
    assert caught.value.errno == code


def perform(ctx: int, *iocbs: IOCB) -> list[int]:
    """Submit requests together and give their results, in the same order."""
    assert io_submit(ctx, iocbs) == len(iocbs)
    results = {event.iocb: event.res for event in io_getevents(ctx, len(iocbs), len(iocbs))}
    return [results[iocb] for iocb in iocbs]


def take(ctx: int, count: int) -> list[IOCB | None]:
    """Wait for `count` events and give their requests."""
    return [event.iocb for event in io_getevents(ctx, count, count)]


# ---- io_setup, io_destroy, errors


@pytest.mark.parametrize("events", [0, MOST_EVENTS + 1])
def test_io_setup_with_invalid_number_of_events_raises_einval(events: int) -> None:
    with raises_errno(errno.EINVAL, "1 to 4194304 events"):
        io_setup(events)


def test_io_setup_beyond_aio_max_nr_raises_eagain_with_advice() -> None:
    limit = int(Path("/proc/sys/fs/aio-max-nr").read_text(encoding="ascii"))
    if limit >= MOST_EVENTS:
        pytest.skip("fs.aio-max-nr allows all that io_setup takes")
    advice = rf"fs\.aio-nr is \d+, fs\.aio-max-nr is {limit}; raise it with `sysctl fs\.aio-max-nr={max(1 << 20, 2 * limit)}`"
    with raises_errno(errno.EAGAIN, advice):
        io_setup(limit + 1)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [(errno.EPERM, PermissionError, "seccomp"), (errno.ENOSYS, OSError, "CONFIG_AIO"), (errno.ENOMEM, OSError, "memory: io_setup")],
)
def test_failed_io_setup_explains_its_errno(sign: int, code: int, kind: type[OSError], text: str) -> None:
    error = _errors.setup_error(sign * code)
    assert (type(error), error.errno) == (kind, code)
    assert text in str(error)


def test_unreadable_limits_are_reported_as_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_errors, "aio_limit", lambda name: None)
    assert "aio-nr is unknown, fs.aio-max-nr is unknown; raise it with `sysctl fs.aio-max-nr=1048576`" in str(
        _errors.setup_error(errno.EAGAIN)
    )


def test_io_destroy_runs_once_and_frees_requests_in_flight(ctx: int, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    kept, dropped = IOCB.poll(reader, select.POLLIN), IOCB.poll(reader, select.POLLIN)
    alive = weakref.ref(dropped)
    with context() as doomed:
        assert io_submit(doomed, [kept, dropped]) == 2
        del dropped
        gc.collect()
        assert alive() is not None
    with raises_errno(errno.EINVAL):
        io_destroy(doomed)
    gc.collect()
    assert alive() is None
    assert not kept.in_flight
    os.write(writer, b"x")
    assert perform(ctx, kept)[0] & select.POLLIN


@pytest.mark.parametrize(
    "call",
    [
        lambda iocb: io_submit(NOT_A_CONTEXT, [iocb]),
        lambda iocb: io_getevents(NOT_A_CONTEXT, 0, 1, 0),
        lambda iocb: io_cancel(NOT_A_CONTEXT, iocb),
        lambda iocb: io_destroy(NOT_A_CONTEXT),
    ],
    ids=["submit", "getevents", "cancel", "destroy"],
)
def test_call_with_unknown_context_raises_einval(fd: int, call: Callable[[IOCB], object]) -> None:
    iocb = IOCB.fsync(fd)
    with raises_errno(errno.EINVAL):
        call(iocb)
    assert not iocb.in_flight


# ---- the commands


@pytest.mark.parametrize(("offset", "count"), [(100, BLOCK), (SIZE - 10, 10), (SIZE, 0), (SIZE + 10, 0)])
def test_pread_reads_at_its_offset_and_is_short_at_the_end_of_the_file(ctx: int, fd: int, offset: int, count: int) -> None:
    buffer = bytearray(b"-" * BLOCK)
    assert perform(ctx, IOCB.pread(fd, buffer, offset)) == [count]
    assert buffer == CONTENT[offset : offset + BLOCK] + b"-" * (BLOCK - count)


def test_pread_into_empty_buffer_returns_0(ctx: int, fd: int) -> None:
    assert perform(ctx, IOCB.pread(fd, bytearray(), 0), IOCB.preadv(fd, [], 0), IOCB.preadv(fd, [bytearray()], 0)) == [0, 0, 0]


@pytest.mark.parametrize("size", [1, BLOCK, 4 << 20])
def test_pwrite_writes_the_whole_buffer_and_lengthens_the_file(ctx: int, fd: int, path: Path, size: int) -> None:
    written = content(size, seed=1)
    assert perform(ctx, IOCB.pwrite(fd, written, SIZE + 1)) == [size]
    assert path.read_bytes() == CONTENT + b"\0" + written


def test_vectors_are_written_and_read_in_order(ctx: int, fd: int, path: Path) -> None:
    assert perform(ctx, IOCB.pwritev(fd, [b"one", bytearray(b"two"), memoryview(b"three")], 1)) == [11]
    assert path.read_bytes() == CONTENT[:1] + b"onetwothree" + CONTENT[12:]
    buffers = [bytearray(2), bytearray(), bytearray(7), bytearray(BLOCK)]
    assert perform(ctx, IOCB.preadv(fd, iter(buffers), 2)) == [9 + BLOCK]
    assert buffers == [b"ne", b"", b"twothre", b"e" + CONTENT[12 : 11 + BLOCK]]


def test_syncs_return_0(ctx: int, fd: int) -> None:
    os.write(fd, b"dirty")
    assert perform(ctx, IOCB.fdsync(fd), IOCB.fsync(fd)) == [0, 0]


def test_poll_completes_with_ready_events(ctx: int, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    waiting = IOCB.poll(reader, select.POLLIN)
    assert io_submit(ctx, [waiting, IOCB.poll(writer, select.POLLOUT)]) == 2
    assert [event.res & select.POLLOUT for event in io_getevents(ctx, 1, 2)] == [select.POLLOUT]
    os.write(writer, b"x")
    (event,) = io_getevents(ctx, 1, 2)
    assert event.iocb is waiting
    assert event.res & select.POLLIN


# ---- rw_flags, ioprio, resfd


def test_append_writes_at_the_end_whatever_the_offset(ctx: int, fd: int, path: Path) -> None:
    assert perform(ctx, IOCB.pwrite(fd, b"end", 0, rw_flags=RWF.APPEND)) == [3]
    assert path.read_bytes() == CONTENT + b"end"


@pytest.mark.parametrize("options", [{"rw_flags": RWF.DSYNC}, {"rw_flags": RWF.SYNC}, {"rw_flags": RWF.HIPRI}, {"ioprio": BEST_EFFORT | 7}])
def test_write_with_options_writes(ctx: int, fd: int, path: Path, options: dict[str, int]) -> None:
    assert perform(ctx, IOCB.pwrite(fd, b"new", 0, **options)) == [3]
    assert path.read_bytes() == b"new" + CONTENT[3:]


@pytest.mark.parametrize(("flag", "mode"), [(RWF.NOAPPEND, os.O_APPEND), (RWF.ATOMIC, 0), (RWF.DONTCACHE, 0)])
def test_newer_flag_works_or_fails_with_eopnotsupp(ctx: int, path: Path, flag: RWF, mode: int) -> None:
    with opened(path, os.O_WRONLY | mode) as fd:
        try:
            [res] = perform(ctx, IOCB.pwrite(fd, bytes(BLOCK), 0, rw_flags=flag))
        except OSError as error:
            res = -(error.errno or 0)
    assert res in (BLOCK, -errno.EOPNOTSUPP)
    assert path.read_bytes() == (bytes(BLOCK) + CONTENT[BLOCK:] if res == BLOCK else CONTENT)


def test_nowait_read_of_uncached_page_completes_with_eagain(ctx: int, on_disk: Path) -> None:
    with opened(on_disk, os.O_RDONLY) as fd:
        iocb = IOCB.pread(fd, bytearray(BLOCK), 0, rw_flags=RWF.NOWAIT)
        for _ in attempts("a page that was not cached"):
            evict(on_disk)
            [result] = perform(ctx, iocb)
            if result == -errno.EAGAIN:
                break
            assert result == BLOCK
        with pinned(on_disk):
            assert perform(ctx, iocb) == [BLOCK]


@pytest.mark.parametrize(("flags", "reads"), [(0, [3]), (lowlevel.EFD_SEMAPHORE, [1, 1, 1])])
def test_eventfd_counts_events_and_a_semaphore_returns_one_at_a_time(ctx: int, fd: int, flags: int, reads: list[int]) -> None:
    with open(lowlevel.eventfd(0, flags | lowlevel.EFD_NONBLOCK), "rb", 0) as file:
        counter = file.fileno()
        perform(ctx, *(IOCB.pread(fd, bytearray(1), 0, resfd=counter) for _ in range(3)), IOCB.pread(fd, bytearray(1), 0))
        assert [eventfd_read(counter) for _ in reads] == reads
        with pytest.raises(BlockingIOError):
            eventfd_read(counter)


def test_event_is_available_when_the_eventfd_is_readable(ctx: int, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    with open(lowlevel.eventfd(0), "rb", 0) as counter:
        io_submit(ctx, [IOCB.poll(reader, select.POLLIN, data=7, resfd=counter.fileno())])
        os.write(writer, b"x")
        eventfd_read(counter.fileno())
        assert [event.data for event in io_getevents(ctx, 0, 1, 0)] == [7]


# ---- what is refused, and where


@pytest.mark.parametrize(
    ("code", "make"),
    [
        (errno.EBADF, lambda fd, reader: IOCB.pread(-1, bytearray(1), 0)),
        (errno.EBADF, lambda fd, reader: IOCB.poll(NOT_OPEN, select.POLLIN)),
        (errno.EBADF, lambda fd, reader: IOCB.pwrite(reader, b"not open for writing", 0)),
        (errno.EBADF, lambda fd, reader: IOCB.fsync(fd, resfd=-1)),
        (errno.EINVAL, lambda fd, reader: IOCB.fsync(fd, resfd=fd)),  # not an eventfd
        (errno.EINVAL, lambda fd, reader: IOCB.fsync(fd, rw_flags=RWF.DSYNC)),
        (errno.EINVAL, lambda fd, reader: IOCB.fdsync(reader)),
        (errno.EINVAL, lambda fd, reader: IOCB.noop(fd)),
        (errno.EINVAL, lambda fd, reader: IOCB.pread(fd, bytearray(1), -1)),
        (errno.EINVAL, lambda fd, reader: IOCB.pwritev(fd, [b"x"] * 1025, 0)),
        (errno.EINVAL, lambda fd, reader: IOCB.pread(fd, bytearray(1), 0, ioprio=7)),  # a level of no class
        (errno.EINVAL, lambda fd, reader: IOCB.pread(fd, bytearray(1), 0, ioprio=-1)),
        (errno.EOPNOTSUPP, lambda fd, reader: IOCB.pread(fd, bytearray(1), 0, rw_flags=UNKNOWN_FLAG)),
    ],
)
def test_invalid_request_stops_the_batch_and_raises_if_first(
    ctx: int, fd: int, pipe: tuple[int, int], code: int, make: Callable[[int, int], IOCB]
) -> None:
    first, bad, last = IOCB.pread(fd, bytearray(1), 0), make(fd, pipe[0]), IOCB.pread(fd, bytearray(1), 0)
    assert io_submit(ctx, iter([first, bad, last])) == 1
    assert [iocb.in_flight for iocb in (first, bad, last)] == [True, False, False]
    with raises_errno(code, f"io_submit of <IOCB {bad.command.name}"):
        io_submit(ctx, [bad, last])
    assert not last.in_flight
    assert io_submit(ctx, [last]) == 1
    assert take(ctx, 2) == [first, last]


def test_unmapped_memory_completes_with_efault(ctx: int, fd: int) -> None:
    assert perform(ctx, IOCB(IOCBCommand.PREAD, fd, 1, 10), IOCB(IOCBCommand.PWRITE, fd, 1, 10)) == [-errno.EFAULT] * 2


def test_misaligned_direct_io_completes_with_einval(ctx: int, on_disk: Path) -> None:
    memory = memoryview(mmap.mmap(-1, 2 * BLOCK))
    with opened(on_disk, os.O_RDONLY | os.O_DIRECT) as fd:
        offset, length, address = IOCB.pread(fd, memory, 1), IOCB.pread(fd, memory[:100], 0), IOCB.pread(fd, memory[1 : BLOCK + 1], 0)
        assert perform(ctx, offset, length, address) == [-errno.EINVAL] * 3


def test_io_submit_to_full_ring_raises_eagain_until_events_are_taken(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    accepted: list[IOCB] = []

    def fill(ctx: int) -> None:
        while True:
            iocb = IOCB.poll(reader, select.POLLIN)
            io_submit(ctx, [iocb])
            accepted.append(iocb)

    with context(1) as ctx:
        with raises_errno(errno.EAGAIN, "the ring is full, take events"):
            fill(ctx)
        os.write(writer, b"x")
        assert set(take(ctx, len(accepted))) == set(accepted)
        assert io_submit(ctx, accepted[:1]) == 1


def test_iocb_in_flight_cannot_be_submitted_again(ctx: int, fd: int) -> None:
    buffer = bytearray(1)
    iocb, other = IOCB.pread(fd, buffer, 3), IOCB.fsync(fd)
    with pytest.raises(ValueError, match="twice"):
        io_submit(ctx, [iocb, iocb])
    assert not iocb.in_flight
    io_submit(ctx, [iocb])
    with pytest.raises(ValueError, match="before its event has been taken"):
        io_submit(ctx, [other, iocb])
    assert not other.in_flight
    assert take(ctx, 1) == [iocb]
    buffer[:] = b"\0"
    assert perform(ctx, iocb) == [1]
    assert buffer == CONTENT[3:4]


@pytest.mark.parametrize("ctx_or_iocb", [-1, 1 << 64, "text"])
def test_call_with_wrong_type_leaves_nothing_in_flight(fd: int, ctx_or_iocb: Any) -> None:
    iocb = IOCB.fsync(fd)
    with pytest.raises((OverflowError, TypeError)):
        io_submit(ctx_or_iocb, [iocb])
    with pytest.raises(TypeError, match="an IOCB is required"):
        io_submit(NOT_A_CONTEXT, [iocb, ctx_or_iocb])
    with pytest.raises(TypeError, match="an IOCB is required"):
        io_cancel(NOT_A_CONTEXT, ctx_or_iocb)
    for call in (lambda: io_cancel(ctx_or_iocb, iocb), lambda: io_destroy(ctx_or_iocb), lambda: io_getevents(ctx_or_iocb, 0, 1)):
        with pytest.raises((OverflowError, TypeError)):
            call()
    assert not iocb.in_flight


@pytest.mark.parametrize("call", ["io_destroy", "io_getevents", "io_cancel", "io_submit"])
def test_context_that_is_a_float_is_refused_and_its_requests_are_kept(ctx: int, pipe: tuple[int, int], call: str) -> None:
    """A float that equals the id finds the same entry in a dict."""
    waiting = IOCB.poll(pipe[0], select.POLLIN)
    io_submit(ctx, [waiting])
    wrong: Any = float(ctx)
    assert wrong == ctx
    arguments: dict[str, tuple[Any, ...]] = {"io_getevents": (0, 1), "io_cancel": (waiting,), "io_submit": ([IOCB.fsync(pipe[0])],)}
    with pytest.raises(TypeError):
        getattr(lowlevel, call)(wrong, *arguments.get(call, ()))
    assert waiting.in_flight
    assert io_cancel(ctx, waiting)
    assert [event.iocb for event in io_getevents(ctx, 1, 1)] == [waiting]


@pytest.mark.parametrize("number", ["text", 1.5, None])
def test_number_of_a_wrong_type_is_a_type_error(ctx: int, fd: int, number: Any) -> None:
    buffer = bytearray(1)
    calls: list[Callable[[], object]] = [
        lambda: io_setup(number),
        lambda: io_getevents(ctx, number, 2),
        lambda: io_getevents(ctx, 0, number),
        lambda: IOCB.pread(number, buffer, 0),
        lambda: IOCB.pread(fd, buffer, number),
        lambda: IOCB.pread(fd, buffer, 0, data=number),
        lambda: IOCB.pwrite(fd, buffer, 0, rw_flags=number),
        lambda: IOCB.poll(fd, number),
        lambda: IOCB.preadv(fd, number, 0),
        lambda: io_submit(ctx, number),
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()
    if number is not None:  # which these take
        for call in (
            lambda: IOCB.fsync(fd, resfd=number),
            lambda: IOCB.fsync(fd, ioprio=number),
        ):
            with pytest.raises(TypeError):
                call()


# ---- events


@pytest.mark.parametrize("data", [0, 1, 2**64 - 1])
def test_event_has_its_iocb_and_data(ctx: int, fd: int, data: int) -> None:
    iocb = IOCB.pread(fd, bytearray(10), 2, data=data)
    io_submit(ctx, [iocb])
    (event,) = io_getevents(ctx, 1, 1)
    assert event == IOEvent(data=data, iocb=iocb, res=10, res2=0)
    assert event.iocb is iocb


@pytest.mark.parametrize("field", [{"data": -1}, {"data": 2**64}, {"rw_flags": 1 << 31}, {"ioprio": 1 << 15}, {"resfd": 1 << 32}])
def test_field_out_of_range_raises_overflow_error(field: dict[str, int]) -> None:
    with pytest.raises(OverflowError):
        IOCB.fsync(0, **field)


def test_repr_of_iocb_describes_it(ctx: int, fd: int) -> None:
    buffer = bytearray(1)
    iocb = IOCB.preadv(fd, [buffer], 9, data=5, rw_flags=RWF.HIPRI)
    assert (iocb.command, iocb.fd, iocb.offset, iocb.data, iocb.rw_flags) == (IOCBCommand.PREADV, fd, 9, 5, RWF.HIPRI)
    assert iocb.buffers[0] is buffer
    io_submit(ctx, [iocb])
    assert repr(iocb) == f"<IOCB PREADV fd={fd} offset=9 data=5, in flight>"
    take(ctx, 1)
    assert repr(iocb) == f"<IOCB PREADV fd={fd} offset=9 data=5>"


def test_event_of_foreign_request_has_no_iocb(ctx: int, fd: int) -> None:
    foreign = IOCB.fsync(fd, data=3)
    assert lib.taio_io_submit(ctx, 1, ffi.new("struct iocb *[]", [foreign._iocb])) == 1
    assert io_getevents(ctx, 1, 1) == [IOEvent(3, None, 0, 0)]


# ---- waiting


@pytest.mark.parametrize(
    ("min_nr", "nr", "timeout"), [(0, 1, -0.001), (0, 1, -math.inf), (0, 1, math.nan), (2, 1, 0), (-1, 1, 0), (0, -1, 0)]
)
def test_io_getevents_with_invalid_timeout_or_min_nr_is_refused(ctx: int, min_nr: int, nr: int, timeout: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        io_getevents(ctx, min_nr, nr, timeout)


@pytest.mark.parametrize("timeout", [0, 0.0, 0.02])
def test_io_getevents_at_timeout_returns_available_events(ctx: int, fd: int, timeout: float) -> None:
    iocb = IOCB.pread(fd, bytearray(1), 0)
    io_submit(ctx, [iocb])
    begin = time.monotonic()
    assert [event.iocb for event in io_getevents(ctx, 2, 3, timeout)] == [iocb]
    assert time.monotonic() - begin >= timeout


def test_io_getevents_returns_at_most_nr_events(ctx: int, fd: int) -> None:
    io_submit(ctx, [IOCB.pread(fd, bytearray(1), 0, data=i) for i in range(3)])
    assert [[event.data for event in io_getevents(ctx, 0, nr)] for nr in (0, 2, 2, 2)] == [[], [0, 1], [2], []]


@pytest.mark.parametrize("timeout", [None, math.inf, 3600, 3600.5])
def test_io_getevents_ends_with_an_event_from_another_thread(ctx: int, pipe: tuple[int, int], timeout: float | None) -> None:
    reader, writer = pipe
    iocb = IOCB.poll(reader, select.POLLIN)
    io_submit(ctx, [iocb])
    other = threading.Thread(target=os.write, args=(writer, b"x"))
    other.start()
    assert [event.iocb for event in io_getevents(ctx, 1, 1, timeout)] == [iocb]
    other.join()


@pytest.mark.parametrize("timeout", [None, 3600])
def test_io_getevents_runs_signal_handlers_and_continues(ctx: int, fd: int, pipe: tuple[int, int], timeout: float | None) -> None:
    reader, writer = pipe
    early, late = IOCB.pread(fd, bytearray(1), 0), IOCB.poll(reader, select.POLLIN)
    calls: list[None] = []

    def handler() -> None:
        calls.append(None)
        if len(calls) == 3:
            os.write(writer, b"x")

    io_submit(ctx, [early, late])
    with alarms(handler):
        assert [event.iocb for event in io_getevents(ctx, 2, 2, timeout)] == [early, late]


def test_signal_handler_that_raises_loses_no_event(ctx: int, fd: int, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    early, late = [IOCB.pread(fd, bytearray(1), 0) for _ in range(3)], IOCB.poll(reader, select.POLLIN)

    def handler() -> None:
        raise InterruptedError("by the handler")

    io_submit(ctx, [*early, late])
    with pytest.raises(InterruptedError, match="by the handler"), alarms(handler):
        io_getevents(ctx, 4, 4)
    assert all(iocb.in_flight for iocb in early)
    assert take(ctx, 2) == early[:2]
    os.write(writer, b"x")
    assert take(ctx, 2) == [early[2], late]


# ---- io_cancel


def test_io_cancel_of_waiting_poll_succeeds(ctx: int, pipe: tuple[int, int]) -> None:
    waiting, complete = IOCB.poll(pipe[0], select.POLLIN), IOCB.poll(pipe[1], select.POLLOUT)
    assert io_cancel(ctx, waiting) is False
    io_submit(ctx, [waiting, complete])
    assert [io_cancel(ctx, iocb) for iocb in (complete, waiting)] == [False, True]
    assert {event.iocb: event.res & select.POLLOUT for event in io_getevents(ctx, 2, 2)} == {complete: select.POLLOUT, waiting: 0}
    assert io_cancel(ctx, waiting) is False


def test_io_cancel_of_disk_io_is_refused(ctx: int, on_disk: Path) -> None:
    memory = mmap.mmap(-1, SIZE)
    with opened(on_disk, os.O_RDWR | os.O_DIRECT) as fd:
        iocbs = [IOCB.pread(fd, memory, 0), IOCB.pwrite(fd, memory, SIZE), IOCB.fsync(fd)]
        io_submit(ctx, iocbs)
        assert [io_cancel(ctx, iocb) for iocb in iocbs] == [False] * 3
        assert {event.iocb: event.res for event in io_getevents(ctx, 3, 3)} == dict(zip(iocbs, (SIZE, SIZE, 0), strict=True))


# ---- buffers


@pytest.mark.parametrize("buffer", [b"read-only", memoryview(b"read-only")])
def test_read_into_read_only_buffer_is_refused(fd: int, buffer: Any) -> None:
    with pytest.raises(BufferError, match=f"this {type(buffer).__name__} is not"):
        IOCB.pread(fd, buffer, 0)
    with pytest.raises(BufferError, match="writable"):
        IOCB.preadv(fd, [bytearray(1), buffer], 0)


@pytest.mark.parametrize(
    ("buffer", "error"),
    [
        ("text", TypeError),
        (None, TypeError),
        (10, TypeError),
        ([1], TypeError),
        (memoryview(bytearray(9))[::2], BufferError),
        (memoryview(bytearray(9))[::-1], BufferError),
        (numpy.zeros((2, 3), order="F"), BufferError),
        (numpy.zeros(4)[::2], BufferError),
        (numpy.zeros(4)[::-1], BufferError),
    ],
    ids=["text", "None", "int", "list", "steps", "backwards", "Fortran order", "array with steps", "array backwards"],
)
def test_buffer_that_is_not_contiguous_is_refused(fd: int, buffer: Any, error: type[Exception]) -> None:
    for make in (lambda: IOCB.pread(fd, buffer, 0), lambda: IOCB.pwrite(fd, buffer, 0), lambda: IOCB.pwritev(fd, [buffer], 0)):
        with pytest.raises(error, match=r"bytes-like|contiguous"):
            make()


@pytest.mark.parametrize("dtype", [object, [("n", "i4"), ("o", "O")]], ids=repr)
def test_buffer_of_python_objects_is_refused(fd: int, dtype: Any) -> None:
    for make in (lambda: IOCB.pread(fd, numpy.zeros(2, dtype), 0), lambda: IOCB.pwritev(fd, [numpy.zeros(2, dtype)], 0)):
        with pytest.raises(TypeError, match="Python objects"):
            make()
    assert len(IOCB.pread(fd, numpy.zeros(2, [("O", "i4")]), 0).buffers) == 1  # a field of that name


def test_buffer_of_larger_items_is_filled_by_the_byte(ctx: int, fd: int) -> None:
    numbers = array.array("Q", [0, 0])
    assert perform(ctx, IOCB.pread(fd, numbers, 0), IOCB.preadv(fd, [numbers], 0)) == [16, 16]
    assert numbers.tobytes() == CONTENT[:16]


def test_buffer_of_living_iocb_cannot_be_resized(fd: int) -> None:
    buffer = bytearray(10)
    iocb = IOCB.pread(fd, buffer, 0)
    with pytest.raises(BufferError):
        buffer.append(0)
    del iocb
    buffer.append(0)


@pytest.mark.parametrize("vector", [False, True])
def test_memory_is_kept_until_the_event_is_taken(ctx: int, on_disk: Path, vector: bool) -> None:
    memory = mmap.mmap(-1, SIZE)
    with opened(on_disk, os.O_RDONLY | os.O_DIRECT) as fd:
        iocb = IOCB.preadv(fd, [memory], 0) if vector else IOCB.pread(fd, memory, 0)
        alive = weakref.ref(memory), weakref.ref(iocb)
        io_submit(ctx, [iocb])
        del memory, iocb
        gc.collect()
        assert None not in [reference() for reference in alive]
        (event,) = io_getevents(ctx, 1, 1)
    assert event.iocb is not None
    assert bytes(event.iocb.buffers[0]) == CONTENT
    del event
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


# ---- fork


def test_fork_leaves_events_to_the_parent_and_none_in_the_child() -> None:
    program = """
        import errno, os, select
        from trio_aio.lowlevel import IOCB, io_destroy, io_getevents, io_setup, io_submit

        reader, writer = os.pipe()
        iocb = IOCB.poll(reader, select.POLLIN)
        ctx = io_setup(1)
        io_submit(ctx, [iocb])
        child = os.fork()
        if not child:
            code = 1
            try:
                assert not iocb.in_flight
                try:
                    io_getevents(ctx, 0, 1, 0)
                except OSError as error:
                    assert error.errno == errno.EINVAL
                    own = io_setup(1)
                    io_submit(own, [iocb])
                    code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert iocb.in_flight
        os.write(writer, b"x")
        assert io_getevents(ctx, 1, 1)[0].iocb is iocb
        io_destroy(ctx)
    """
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
