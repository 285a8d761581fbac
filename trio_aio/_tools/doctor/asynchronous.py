"""Which requests are asynchronous here, found by trying.

How the kernel works. `io_submit` either starts a request and returns, or performs all of it before it returns, and does not say
which. After a request that it performed, the completion is there when it returns. A fast disk may also complete a request before
anyone can look.

`io_submit` may also sleep before a request is started: where a server answers for the filesystem, where more are in flight than the
device or the server takes, and for writes wherever the filesystem can be frozen. The count of voluntary context switches shows it.

What we do about it. A trial submits several large requests in one call, because large ones take longer to move than to submit. One
completion that comes later, in one of several trials, proves that the requests are asynchronous. If none ever does, they are not.
"""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from trio_aio import AIOContext, open_aio
from trio_aio._tools.doctor.engine import AT_ONCE, MANY
from trio_aio._tools.doctor.place import PIECE
from trio_aio._tools.doctor.report import Tried, Waits
from trio_aio.lowlevel import IOCB, io_getevents, io_submit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio_aio._tools.doctor.place import Place
    from trio_aio._tools.doctor.report import Report

__all__ = ("examine_requests", "examine_waits")

TRIES = 8
# Trials whose result another process disturbed do not count, so more may be needed.
MOST_TRIES = 4 * TRIES


def examine_requests(report: Report, place: Place, context: int) -> None:
    """Try each kind of request that the place allows, in the order in which the report shows them."""
    trials = _Trials(place)

    def try_requests(name: str, make: Callable[[], list[IOCB]]) -> None:
        report.requests[name] = _tried(context, make)

    if place.direct is not None:
        direct = place.direct
        try_requests("direct read", lambda: trials.reads(direct))
        if place.writable:
            try_requests("direct overwrite", lambda: trials.writes(direct, 0))
            try_requests("direct append", lambda: trials.appends(direct))
            try_requests("direct write into a fallocated range", lambda: trials.writes_into_allocated(direct))
            try_requests("fsync", lambda: trials.syncs(direct, IOCB.fsync))
            try_requests("fdatasync", lambda: trials.syncs(direct, IOCB.fdsync))
    os.pread(place.fd, len(place.memory), place.start)
    try_requests("buffered read, cached", lambda: trials.reads(place.fd))
    if place.writable:
        os.fsync(place.fd)
        try_requests("buffered read, not cached", trials.cold_reads)


def examine_waits(report: Report, place: Place, context: int) -> None:
    """Find out where `io_submit` waits before it has started its requests: for one request, and for many at once."""
    if place.direct is None:
        return
    size = max(place.unit, 512)
    parts = [memoryview(place.memory)[at * size : (at + 1) * size] for at in range(MANY)]
    kinds = {"read": IOCB.pread, "write": IOCB.pwrite} if place.writable else {"read": IOCB.pread}
    for direction, make in kinds.items():
        requests = [make(place.direct, part, place.start + number * size) for number, part in enumerate(parts)]
        for name, chosen in (("one", requests[:1]), ("many at once", requests)):
            waits = Waits()
            with _errors_into(waits):
                for _ in range(TRIES):
                    waits.slept += _sleeps(context, chosen)
                    waits.tries += 1
            report.waits[f"direct {direction}, {name}"] = waits


def _sleeps(context: int, requests: list[IOCB]) -> bool:
    """Submit `requests`, wait for all, and return whether `io_submit` slept. OSError if a request failed."""
    slept = False
    done = 0
    while done < len(requests):
        before = resource.getrusage(resource.RUSAGE_THREAD)
        accepted = io_submit(context, requests[done : done + AT_ONCE])
        slept = slept or resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw > before.ru_nvcsw
        done += accepted
    for event in io_getevents(context, done, done):
        if event.res < 0:
            raise OSError(-event.res, os.strerror(-event.res))
    return slept


class _Trials:
    """Makes the requests of one trial. They share the place's memory."""

    def __init__(self, place: Place) -> None:
        self._place: Place = place
        self._parts: list[memoryview] = [memoryview(place.memory)[at : at + PIECE] for at in range(0, len(place.memory), PIECE)]

    def reads(self, fd: int) -> list[IOCB]:
        return [IOCB.pread(fd, part, self._place.start + number * PIECE) for number, part in enumerate(self._parts)]

    def cold_reads(self) -> list[IOCB]:
        self._place.evict()
        return self.reads(self._place.fd)

    def writes(self, fd: int, start: int) -> list[IOCB]:
        return [IOCB.pwrite(fd, part, start + number * PIECE) for number, part in enumerate(self._parts)]

    def appends(self, fd: int) -> list[IOCB]:
        return self.writes(fd, os.fstat(fd).st_size)

    def writes_into_allocated(self, fd: int) -> list[IOCB]:
        start = os.fstat(fd).st_size
        trio.run(_allocate, self._place, start, len(self._place.memory))
        return self.writes(fd, start)

    def syncs(self, fd: int, make: Callable[[int], IOCB]) -> list[IOCB]:
        # A sync of a file that has nothing to write completes at once.
        os.pwrite(self._place.fd, self._parts[0], 0)
        return [make(fd) for _ in range(AT_ONCE)]


async def _allocate(place: Place, start: int, length: int) -> None:
    async with AIOContext(engine="workers") as context, open_aio(place.path, "r+b", context=context) as file:
        await file.fallocate(start, length)


def _tried(context: int, make: Callable[[], list[IOCB]]) -> Tried:
    tried = Tried()
    with _errors_into(tried):
        for _ in range(MOST_TRIES):
            asynchronous = _is_asynchronous(context, make())
            if asynchronous is not None:
                tried.asynchronous += asynchronous
                tried.tries += 1
            if tried.tries == TRIES:
                break
    return tried


@contextmanager
def _errors_into(tried: Tried | Waits) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        tried.error = error.strerror or str(error)


def _is_asynchronous(context: int, requests: list[IOCB]) -> bool | None:
    """Submit `requests`, wait for all, and return whether a completion was still missing when `io_submit` returned.

    None: this cannot be known, because another process had the processor before we could look, and the requests may have completed
    meanwhile. A call that slept of its own accord has waited for the disk, and counts as not asynchronous. OSError if a request failed.
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
        # The first request that was not accepted raises its error.
        io_submit(context, requests[accepted:])
    return asynchronous
