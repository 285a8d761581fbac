"""The place on a disk: its mount, a file for the trials, what O_DIRECT does there, and whether RWF_NOWAIT works.

A filesystem may accept O_DIRECT and use the page cache all the same (tmpfs does), and no call reports that. So a direct read is
made, and cachestat(2), or mincore(2), says whether it left pages behind. The alignment is what `AsyncFile.alignment` reports.

Where no temporary file can be made, a file or block device that the user names is only read. A user's file stays in the page cache
as it is: only pages of the temporary file are evicted. It may be sparse, and no device answers for a hole: reads of holes are never
asynchronous, and take any alignment. So only a part of the file that has data is read.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import tempfile
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

import trio

from trio_aio import AIOContext, open_aio
from trio_aio._tools.doctor.cachestat import cached_pages
from trio_aio._tools.doctor.engine import AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from trio_aio import Alignment
    from trio_aio._tools.doctor.report import Report

__all__ = ("PIECE", "Place", "examine_direct", "examine_mount", "examine_nowait", "find_place")

# Bytes of one request. Large ones take longer to move than to submit, so that a fast disk has not completed them too early.
PIECE = 256 << 10
LENGTH = AT_ONCE * PIECE


@dataclass
class Place:
    """A file for trials."""

    fd: int
    path: str
    """To open the file again."""
    writable: bool
    size: int
    start: int = 0
    """Offset of the LENGTH bytes that trials read and overwrite."""
    direct: int | None = None
    """The file's second fd, with O_DIRECT; None where that is refused."""
    unit: int = 1
    """What offsets and lengths of direct requests must be multiples of, in bytes."""
    memory: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, LENGTH))

    def evict(self) -> None:
        """Remove the file's clean pages from the page cache."""
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)


def examine_mount(report: Report) -> None:
    """Find the mount of the path: the longest mount point that contains it, and the last of equal ones."""
    longest = ""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        before, _, after = line.partition(" - ")
        point = _unescaped(before.split()[4])
        if os.path.commonpath((point, report.path)) == point and len(point) >= len(longest):
            longest = point
            kind, device = after.split()[:2]
            report.mount_point, report.filesystem, report.device = point, kind, _unescaped(device)


def _unescaped(text: str) -> str:
    for code in ("\\040", "\\011", "\\012", "\\134"):
        text = text.replace(code, chr(int(code[1:], 8)))
    return text


def find_place(report: Report, mode: int, stack: ExitStack) -> Place | None:
    """Return a temporary file in the folder of the path; otherwise the path itself, for reading; None if neither can be had."""
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
            return Place(fd, f"/proc/self/fd/{fd}", writable=True, size=0)
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
        return Place(fd, report.path, writable=False, size=os.lseek(fd, 0, os.SEEK_END))
    return Place(fd, report.path, writable=False, size=os.fstat(fd).st_size)


def examine_direct(report: Report, place: Place, stack: ExitStack) -> bool:
    """Find out what O_DIRECT does, and return whether the file is ready for further trials: filled, or long enough."""
    alignment = trio.run(_alignment, place)
    if alignment is None:
        report.direct = "refused"
    else:
        report.alignment_offset, report.alignment_memory = alignment.offset, alignment.memory
        place.unit = max(alignment.offset, alignment.memory)
    # Memory that was never touched faults when it is used, and btrfs then reads through the page cache.
    place.memory.write(os.urandom(LENGTH))
    if place.writable:
        try:
            _fill(place)
        except OSError as error:
            # The disk is full, or a quota is used up.
            report.not_tried_because = f"the temporary file cannot be written: {error.strerror}"
            return False
    elif place.size < LENGTH:
        why = f"{report.path} is smaller than the {LENGTH} bytes that trials need"
        report.not_tried_because = f"{report.not_tried_because}; {why}" if report.not_tried_because else why
        return False
    elif (start := _data_start(place.fd)) is None:
        why = f"{report.path} is sparse, and trials need {LENGTH} bytes of data without a hole"
        report.not_tried_because = f"{report.not_tried_because}; {why}" if report.not_tried_because else why
        return False
    else:
        place.start = start
    if alignment is not None:
        flags = os.O_RDWR if place.writable else os.O_RDONLY
        place.direct = direct = os.open(place.path, flags | os.O_DIRECT | os.O_CLOEXEC)
        stack.callback(os.close, direct)
        report.direct = _heeds_direct(place, direct)
        report.alignment_enforced = _enforces_alignment(place, direct)
    return True


async def _alignment(place: Place) -> Alignment | None:
    try:
        async with (
            # Workers can open a file whatever the environment and `io_setup` say.
            AIOContext(engine="workers") as context,
            open_aio(place.path, "r+b" if place.writable else "rb", direct=True, context=context) as file,
        ):
            return file.alignment
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return None
        raise


def _fill(place: Place) -> None:
    # A full disk makes the first write short, and the second one raises the error.
    if os.pwrite(place.fd, place.memory, 0) < LENGTH:
        os.pwrite(place.fd, place.memory, LENGTH)
    os.fsync(place.fd)
    place.size = LENGTH


def _heeds_direct(place: Place, direct: int) -> Literal["accepted", "ignored"] | None:
    """Return whether a direct read leaves the page cache alone; None where that cannot be seen."""
    if place.writable:
        place.evict()
    before = cached_pages(place.fd, place.start, LENGTH)
    os.preadv(direct, [place.memory], place.start)
    after = cached_pages(place.fd, place.start, LENGTH)
    if before is None or after is None:
        return None
    # A user's file is not evicted. If all of it is cached, a read adds nothing that could be seen.
    if before == after == LENGTH // mmap.PAGESIZE and not place.writable:
        return None
    return "ignored" if after > before or (place.writable and after) else "accepted"


def _data_start(fd: int) -> int | None:
    """Return the offset of LENGTH bytes of data without a hole; None if a file has no such part. lseek(2), SEEK_DATA."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            # A block device has no holes, and does not know the question.
            return None if error.errno == errno.ENXIO else 0
        start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        if end - start >= LENGTH:
            return start


def _enforces_alignment(place: Place, direct: int) -> bool:
    try:
        os.preadv(direct, [bytearray(1)], place.start + 1)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return True
        raise
    return False


def examine_nowait(report: Report, place: Place) -> None:
    """Find out where RWF_NOWAIT works: an answer or EAGAIN means yes, EOPNOTSUPP means no."""
    if place.writable:
        # Into the page cache, so that a buffered read has an answer.
        os.pread(place.fd, LENGTH, place.start)
    for name, fd in (("buffered", place.fd), ("direct", place.direct)):
        if fd is None:
            continue
        for direction, call in (("read", os.preadv), ("write", os.pwritev)):
            if direction == "read" or place.writable:
                report.nowait[f"{name} {direction}"] = _nowait_works(partial(call, fd, [place.memory], place.start, os.RWF_NOWAIT))


def _nowait_works(call: Callable[[], int]) -> bool | None:
    try:
        call()
    except BlockingIOError:
        return True
    except OSError as error:
        return False if error.errno == errno.EOPNOTSUPP else None
    return True
