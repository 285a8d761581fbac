"""``python -m trio_aio doctor``: what this kernel, its limits and a place on a disk give, and what to do about it.

Whether a request is asynchronous depends on the filesystem, its options and the kernel, and no call tells. So it is tried: when
``io_submit`` returns, the events of requests that it did itself are there already. A quick disk may be done before anybody has looked, too.
So several requests go in one call, and large ones, which take longer to move than to submit: one event that comes later, in
one of some tries, is proof that they are asynchronous; none ever is as good as proof that they are not.

All is tried on a temporary file that loses its name as soon as it is open, so that nothing is left behind whatever happens.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import platform
import resource
import stat
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

import trio

from trio_aio import AIOContext, current_context, open_aio
from trio_aio.lowlevel import IOCB, io_destroy, io_getevents, io_setup, io_submit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio_aio import Alignment

__all__ = ("Report", "examine", "run")

TRIES = 8
AT_ONCE = 8
PIECE = 256 << 10  # bytes of a request
DEPTH = 128  # what a run's context asks io_setup for
_RING_MAGIC = 0xA10A10A1
_CACHESTAT = 451  # the system call's number, on all machines but Alpha


@dataclass
class Tried:
    """How many of some tries went on in the background."""

    asynchronous: int = 0
    tries: int = 0
    error: str | None = None
    """Why there were none, or no more."""

    @property
    def verdict(self) -> str:
        """Say it in a word or two."""
        if self.error is not None:
            return self.error
        if not self.tries:
            return "not known: the machine is too busy"
        if self.asynchronous in (0, self.tries):
            return "yes" if self.asynchronous else "no"
        return f"yes, seen in {self.asynchronous} of {self.tries} tries"


@dataclass
class Report:
    """What was found. None: it could not be found out."""

    kernel: str = ""
    python: str = ""
    engine: Literal["aio", "workers"] | None = None
    engine_because: str = ""
    aio_nr: int | None = None
    aio_max_nr: int | None = None
    completions: Literal["ring", "io_getevents"] | None = None
    """How they are taken: from the ring in user space, or by a system call."""
    path: str = ""
    filesystem: str | None = None
    mount_point: str | None = None
    device: str | None = None
    tried_on: str | None = None
    """The file, or that it was a temporary one; None: nothing could be tried."""
    not_tried_because: str | None = None
    direct: Literal["accepted", "ignored", "refused"] | None = None
    """O_DIRECT; ignored: the page cache is used all the same."""
    alignment_offset: int | None = None
    alignment_memory: int | None = None
    alignment_enforced: bool | None = None
    """Whether a direct read that is not aligned is an error."""
    requests: dict[str, Tried] = field(default_factory=dict)
    nowait: dict[str, bool | None] = field(default_factory=dict)
    cachestat: bool = False
    advice: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """The exit status."""
        return 0 if self.engine == "aio" else 1


def run(path: str, *, as_json: bool) -> int:
    """Examine and print; give the exit status: 1 if native AIO cannot be used, 2 if there is no such path."""
    try:
        report = examine(path)
    except FileNotFoundError as error:
        print(f"trio_aio doctor: {error}", file=sys.stderr)
        return 2
    if as_json:
        requests = {name: asdict(tried) | {"verdict": tried.verdict} for name, tried in report.requests.items()}
        print(json.dumps({"version": 1, **asdict(report), "requests": requests, "status": report.status}, indent=1))
    else:
        print("\n".join(_lines(report)))
    return report.status


def examine(path: str) -> Report:
    """Find out everything; FileNotFoundError."""
    mode = os.stat(path).st_mode
    report = Report(kernel=platform.release(), python=platform.python_version(), path=os.path.realpath(path))
    report.aio_nr, report.aio_max_nr = _limit("aio-nr"), _limit("aio-max-nr")
    report.cachestat = _has_cachestat()
    _examine_engine(report)
    _examine_mount(report)
    context = _set_up(report)
    try:
        with ExitStack() as stack:
            place = _find_place(report, mode, stack)
            if place is not None:
                _examine_place(report, place, context)
    finally:
        if context is not None:
            io_destroy(context)
    report.advice = list(_advice(report))
    return report


# ---- the kernel


def _limit(name: str) -> int | None:
    try:
        with open(f"/proc/sys/fs/{name}", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _examine_engine(report: Report) -> None:
    async def ask() -> Literal["aio", "workers"]:
        return current_context().engine

    async def insist() -> None:
        async with AIOContext(engine="aio"):
            pass

    setting = os.environ.get("TRIO_AIO_ENGINE")
    try:
        report.engine = trio.run(ask)
    except (ValueError, OSError) as error:
        report.engine_because = str(error)
        return
    if report.engine == "aio":
        report.engine_because = "io_setup works"
        return
    try:
        trio.run(insist)
    except OSError as error:
        report.engine_because = error.strerror or str(error)
    else:
        report.engine_because = f"TRIO_AIO_ENGINE={setting} is set in the environment"


def _has_cachestat() -> bool:
    fd = os.memfd_create("trio_aio doctor")
    try:
        return _cached_pages(fd, 0, 0) is not None
    finally:
        os.close(fd)


def _set_up(report: Report) -> int | None:
    """Give a context of io_setup for trying, and say how its completions are taken."""
    try:
        context = io_setup(AT_ONCE)
    except OSError:  # `_examine_engine` has reported it
        return None
    # Through /proc/self/mem, because where there is no ring the id may be no address, and reading there would be the end.
    try:
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            head = os.pread(memory.fileno(), 32, context)
    except OSError:
        head = b""
    magic, incompatible = (int.from_bytes(head[at : at + 4], sys.byteorder) for at in (16, 24))
    report.completions = "ring" if (magic, incompatible) == (_RING_MAGIC, 0) else "io_getevents"
    return context


# ---- the place


def _examine_mount(report: Report) -> None:
    """Find the mount that the path is under: the longest mount point, the last of equal ones."""
    best = ""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        before, _, after = line.partition(" - ")
        point = _unescaped(before.split()[4])
        if os.path.commonpath((point, report.path)) == point and len(point) >= len(best):
            best = point
            kind, device = after.split()[:2]
            report.mount_point, report.filesystem, report.device = point, kind, _unescaped(device)


def _unescaped(text: str) -> str:
    for code in ("\\040", "\\011", "\\012", "\\134"):
        text = text.replace(code, chr(int(code[1:], 8)))
    return text


@dataclass
class _Place:
    """A file to try on."""

    fd: int
    path: str  # to open it again
    writable: bool
    size: int


def _find_place(report: Report, mode: int, stack: ExitStack) -> _Place | None:
    """Give a temporary file in the folder of the path, else the file itself to read from."""
    if not stat.S_ISBLK(mode):
        folder = report.path if stat.S_ISDIR(mode) else os.path.dirname(report.path)
        try:
            fd, name = tempfile.mkstemp(prefix=".trio-aio-doctor-", dir=folder)
        except OSError as error:
            report.not_tried_because = f"no temporary file can be made in {folder}: {error.strerror}"
        else:
            os.unlink(name)
            stack.callback(os.close, fd)
            report.tried_on = "a temporary file"
            return _Place(fd, f"/proc/self/fd/{fd}", True, 0)
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        return None
    try:
        fd = os.open(report.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        report.not_tried_because = f"{report.path}: {error.strerror}"
        return None
    stack.callback(os.close, fd)
    report.tried_on = report.path
    if stat.S_ISBLK(mode):
        report.not_tried_because = "writes are not tried on a block device"
        return _Place(fd, report.path, False, os.lseek(fd, 0, os.SEEK_END))
    return _Place(fd, report.path, False, os.fstat(fd).st_size)


def _examine_place(report: Report, place: _Place, context: int | None) -> None:
    alignment = trio.run(_alignment, place)
    if alignment is None:
        report.direct = "refused"
    else:
        report.alignment_offset, report.alignment_memory = alignment.offset, alignment.memory
    length = AT_ONCE * PIECE
    memory = mmap.mmap(-1, length)
    memory.write(os.urandom(length))  # untouched memory faults, and btrfs then reads through the page cache
    if place.writable:
        try:
            _fill(place, memory)
        except OSError as error:  # the disk is full, a quota is used up
            report.not_tried_because = f"the temporary file cannot be written: {error.strerror}"
            return
    elif place.size < length:
        why = f"{report.path} is smaller than {length} bytes, which trying takes"
        report.not_tried_because = f"{report.not_tried_because}; {why}" if report.not_tried_because else why
        return
    flags = os.O_RDWR if place.writable else os.O_RDONLY
    with ExitStack() as stack:
        direct: int | None = None
        if alignment is not None:
            direct = os.open(place.path, flags | os.O_DIRECT | os.O_CLOEXEC)
            stack.callback(os.close, direct)
            report.direct = _is_direct(place, direct, memory)
            report.alignment_enforced = _enforces_alignment(direct)
        if place.writable:
            os.pread(place.fd, len(memory), 0)
        _examine_nowait(report, place, direct, memory)
        if context is not None:
            _examine_requests(report, place, direct, memory, context)


async def _alignment(place: _Place) -> Alignment | None:
    try:
        async with (
            AIOContext(engine="workers") as context,  # whatever the environment says
            open_aio(place.path, "r+b" if place.writable else "rb", direct=True, context=context) as file,
        ):
            return file.alignment
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return None
        raise


def _fill(place: _Place, memory: mmap.mmap) -> None:
    if os.pwrite(place.fd, memory, 0) < len(memory):  # the next write says why
        os.pwrite(place.fd, memory, len(memory))
    os.fsync(place.fd)
    place.size = len(memory)


def _forget(place: _Place) -> None:
    os.posix_fadvise(place.fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _is_direct(place: _Place, direct: int, memory: mmap.mmap) -> Literal["accepted", "ignored"] | None:
    """Whether a direct read leaves the page cache alone."""
    if place.writable:
        _forget(place)
    # Somebody's file is left as it is: if all of it is cached, nothing can be seen.
    before = _cached_pages(place.fd, 0, len(memory))
    os.preadv(direct, [memory], 0)
    after = _cached_pages(place.fd, 0, len(memory))
    if before is None or after is None or (before == after == len(memory) // mmap.PAGESIZE and not place.writable):
        return None
    return "ignored" if after > before or (place.writable and after) else "accepted"


def _enforces_alignment(direct: int) -> bool:
    try:
        os.preadv(direct, [bytearray(1)], 1)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return True
        raise
    return False


class _CachestatRange(ctypes.Structure):
    _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _Cachestat(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted"))


def _cached_pages(fd: int, offset: int, length: int) -> int | None:
    """cachestat(2): how many pages of a range are in the page cache; None where there is no such call, or it is not allowed."""
    asked, found = _CachestatRange(offset, length), _Cachestat()
    if ctypes.CDLL(None).syscall(_CACHESTAT, fd, ctypes.byref(asked), ctypes.byref(found), 0) < 0:
        return None
    return int(found.cache)


# ---- what is asynchronous


@contextmanager
def _trying(tried: Tried) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        tried.error = error.strerror or str(error)


def _examine_requests(report: Report, place: _Place, direct: int | None, memory: mmap.mmap, context: int) -> None:
    parts = [memoryview(memory)[at : at + PIECE] for at in range(0, len(memory), PIECE)]

    def reads(fd: int) -> list[IOCB]:
        return [IOCB.pread(fd, part, at * PIECE) for at, part in enumerate(parts)]

    def writes(fd: int, start: int) -> list[IOCB]:
        return [IOCB.pwrite(fd, part, start + at * PIECE) for at, part in enumerate(parts)]

    def try_it(name: str, make: Callable[[], list[IOCB]]) -> None:
        tried = report.requests[name] = Tried()
        with _trying(tried):
            for _ in range(4 * TRIES):
                asynchronous = _is_asynchronous(context, make())
                if asynchronous is not None:
                    tried.asynchronous += asynchronous
                    tried.tries += 1
                if tried.tries == TRIES:
                    break

    def cold_reads() -> list[IOCB]:
        _forget(place)
        return reads(place.fd)

    def appends() -> list[IOCB]:
        assert direct is not None
        return writes(direct, os.fstat(place.fd).st_size)

    def into_allocated() -> list[IOCB]:
        assert direct is not None
        start = os.fstat(place.fd).st_size
        trio.run(_allocate, place, start, len(memory))
        return writes(direct, start)

    def sync(make: Callable[[int], IOCB]) -> Callable[[], list[IOCB]]:
        def made() -> list[IOCB]:
            assert direct is not None
            os.pwrite(place.fd, parts[0], 0)  # for it to have something to do
            return [make(direct) for _ in range(AT_ONCE)]

        return made

    if direct is not None:
        fd = direct
        try_it("direct read", lambda: reads(fd))
        if place.writable:
            try_it("direct overwrite", lambda: writes(fd, 0))
            try_it("direct append", appends)
            try_it("direct write into a fallocated range", into_allocated)
            try_it("fsync", sync(IOCB.fsync))
            try_it("fdatasync", sync(IOCB.fdsync))
    os.pread(place.fd, len(memory), 0)
    try_it("buffered read, cached", lambda: reads(place.fd))
    if place.writable:
        os.fsync(place.fd)
        try_it("buffered read, not cached", cold_reads)


def _is_asynchronous(context: int, requests: list[IOCB]) -> bool | None:
    """Submit, and give whether an event was still to come when io_submit returned. OSError if a request failed.

    None: another process had the processor before we could look. A call that was preempted may have found everything done for that reason;
    one that slept of its own accord has waited for the disk.
    """
    before = resource.getrusage(resource.RUSAGE_THREAD)
    accepted = io_submit(context, requests)
    events = io_getevents(context, 0, accepted, 0)
    after = resource.getrusage(resource.RUSAGE_THREAD)
    asynchronous: bool | None = len(events) < accepted
    if not asynchronous and after.ru_nivcsw > before.ru_nivcsw and after.ru_nvcsw == before.ru_nvcsw:
        asynchronous = None
    events += io_getevents(context, accepted - len(events), accepted - len(events))
    for event in events:
        if event.res < 0:
            raise OSError(-event.res, os.strerror(-event.res))
    if accepted < len(requests):
        io_submit(context, requests[accepted:])  # it says why
    return asynchronous


async def _allocate(place: _Place, start: int, length: int) -> None:
    async with AIOContext(engine="workers") as context, open_aio(place.path, "r+b", context=context) as file:
        await file.fallocate(start, length)


def _examine_nowait(report: Report, place: _Place, direct: int | None, memory: mmap.mmap) -> None:
    """RWF_NOWAIT: served, or not just now (EAGAIN), is yes; EOPNOTSUPP is no."""
    for name, fd in (("buffered", place.fd), ("direct", direct)):
        if fd is None:
            continue
        for direction, call in (("read", os.preadv), ("write", os.pwritev)):
            if direction == "write" and not place.writable:
                continue
            try:
                call(fd, [memory], 0, os.RWF_NOWAIT)
                answer: bool | None = True
            except BlockingIOError:
                answer = True
            except OSError as error:
                answer = False if error.errno == errno.EOPNOTSUPP else None
            report.nowait[f"{name} {direction}"] = answer


# ---- what to say


def _advice(report: Report) -> Iterator[str]:
    """Give one line for each thing amiss."""
    if report.engine != "aio":
        yield f"Native AIO is not used: {report.engine_because}. Workers (threads) do everything meanwhile."
    elif report.aio_nr is not None and report.aio_max_nr is not None and report.aio_nr + DEPTH > 0.9 * report.aio_max_nr:
        yield (
            f"fs.aio-nr is near its limit, and each process takes {DEPTH}: "
            f"`sysctl fs.aio-max-nr={max(1 << 20, 2 * report.aio_max_nr)}` on the host."
        )
    if report.completions == "io_getevents":
        yield "The ring of completions is not mapped as Linux does it: each look at it is a system call."
    if report.not_tried_because is not None:
        yield f"Not all was tried: {report.not_tried_because}. Name a folder of the same filesystem that can be written to."
    if report.direct == "refused":
        yield "O_DIRECT is refused here: open files without direct=True, or keep them on another filesystem (ext4, xfs)."
    elif report.direct == "ignored":
        yield "O_DIRECT is taken and ignored here: direct=True changes nothing, reads and writes go through the page cache."
    else:
        yield from _advice_on_direct(report.requests)
    if report.nowait.get("buffered read") is False:
        yield (
            "Buffered reads know no RWF_NOWAIT here, so cached ones too go to workers: "
            "keep files that are read a lot on a volume of its own (ext4, xfs, btrfs), not in a container's image."
        )


def _advice_on_direct(requests: dict[str, Tried]) -> Iterator[str]:
    def never(name: str) -> bool:
        return name in requests and requests[name].error is None and not requests[name].asynchronous

    if never("direct read"):
        yield "Direct reads are not asynchronous here: they go to workers, and are no quicker than buffered ones."
    if never("direct overwrite"):
        yield "Direct writes are not asynchronous here: they go to workers, so only as many as there are workers run at once."
    elif never("direct append"):
        if never("direct write into a fallocated range"):
            yield "Direct appends are not asynchronous here: write the file to its full length once, and overwrite."
        else:
            yield "Direct appends are not asynchronous here: `fallocate` ahead and `pwrite` into that."


def _lines(report: Report) -> Iterator[str]:
    def row(name: str, text: str) -> str:
        return f"{name:<52}{text}"

    yield row("kernel", f"{report.kernel}, Python {report.python}")
    yield row("engine", f"{report.engine or 'none'}: {report.engine_because}")
    yield row("fs.aio-nr", f"{_shown(report.aio_nr)} of {_shown(report.aio_max_nr)} (fs.aio-max-nr)")
    if report.completions is not None:
        yield row("completions", {"ring": "from the ring, without a system call", "io_getevents": "by io_getevents"}[report.completions])
    yield row("cachestat", _yes(report.cachestat))
    yield ""
    yield row("path", report.path)
    yield row("filesystem", f"{report.filesystem or 'unknown'} on {report.device}, mounted at {report.mount_point}")
    yield row("tried on", report.tried_on or "nothing")
    yield row("O_DIRECT", _direct(report))
    for name, answer in report.nowait.items():
        yield row(f"RWF_NOWAIT, {name}", _yes(answer))
    for name, tried in report.requests.items():
        yield row(f"asynchronous: {name}", tried.verdict)
    yield ""
    if not report.advice:
        yield "Nothing is amiss."
    for line in report.advice:
        yield f"- {line}"


def _direct(report: Report) -> str:
    if report.direct is None and report.alignment_offset is None:
        return "not tried"
    text: str = report.direct or "accepted, and whether it is heeded cannot be seen"
    if report.alignment_offset is not None and report.direct != "ignored":
        text += f"; offsets and sizes in multiples of {report.alignment_offset} bytes, memory of {report.alignment_memory}"
        if report.alignment_enforced is False:
            text += ", but takes others too"
    return text


def _shown(number: int | None) -> str:
    return "unknown" if number is None else str(number)


def _yes(answer: bool | None) -> str:
    return "unknown" if answer is None else "yes" if answer else "no"
