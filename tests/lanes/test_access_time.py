"""The first read after a change sets the time of access, and the filesystem may wait: the event loop's thread makes no such read."""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import trio_aio
from trio_aio import AIOContext, open_aio
from trio_aio._engine.descriptor import Descriptor, describe
from trio_aio._lanes.protocols import State
from trio_aio._memory.exports import export_buffer
from trio_aio._native import lib
from trio_aio._requests.direct import WidenedRead
from trio_aio._requests.pieces import Pieces, PiecesRead
from trio_aio._requests.transfer import Write

from ..support.engine_loop import Loop, loop
from ..support.files import BLOCK, make_file, next_moment, opened, set_no_access_time
from ..support.page_cache import attempts, pinned
from ..support.pipes import empty_pipe
from ..support.reading import READS
from ..support.requests import direct_read, poll, warm_slab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio_aio import AsyncFile
    from trio_aio._requests.base import Request

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]

SIZE = 16 * BLOCK
TIME = 10**18  # nanoseconds


def make_fresh_file(folder: Path, size: int = SIZE) -> Path:
    """Make a file whose times are now."""
    path, _ = make_file(folder, size)
    os.utime(path)
    return path


async def read_inline(file: AsyncFile, context: AIOContext) -> None:
    """Read until a read needs no worker: then the time of access is set, and the device known."""
    for _ in attempts("a read without a worker", 20_000):  # the first are too early: the time has a grain of milliseconds
        before = context.statistics()
        await file.pread(BLOCK, 0)
        if context.statistics().submitted_inline > before.submitted_inline:
            return


async def reads_by_others(file: AsyncFile, context: AIOContext, call: Callable[[AsyncFile], Any]) -> bool:
    """Make a read. Return whether it set the time; the loop's thread never does."""
    before, accessed = context.statistics(), os.stat(file.fileno()).st_atime_ns
    await call(file)
    after = context.statistics()
    others = after.submitted_workers + after.submitted_kernel - before.submitted_workers - before.submitted_kernel
    is_set = os.stat(file.fileno()).st_atime_ns != accessed
    assert others or not is_set
    return is_set


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "overlay"])
@pytest.mark.parametrize("name", READS)
async def test_read_that_sets_the_time_is_left_to_others(on_filesystem: Callable[[str], Path], kind: str, name: str) -> None:
    path = make_fresh_file(on_filesystem(kind))
    with pinned(path):
        async with AIOContext() as context, open_aio(path, "r+b", context=context) as file:
            for _ in range(5):
                await read_inline(file, context)
                await file.seek(0)
                await trio_aio.os.utime(path, ns=(TIME, TIME), context=context)
                assert await reads_by_others(file, context, READS[name])


# The last two make the file longer, but by no page: a page that nobody pinned may be dropped. A file that becomes shorter loses its pins.
CHANGES: dict[str, Callable[[AsyncFile, int], Any]] = {
    "pwrite": lambda file, size: file.pwrite(b"x", 0),
    "pwritev": lambda file, size: file.pwritev([b"x", b"y"], 0),
    "write_ranges": lambda file, size: file.write_ranges([(0, b"x"), (BLOCK, b"y")]),
    "write": lambda file, size: file.write(b"x"),
    "truncate": lambda file, size: file.truncate(size),
    "fallocate": lambda file, size: file.fallocate(0, size),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_read_after_a_change_goes_to_a_worker(disk: Path, name: str) -> None:
    path = make_fresh_file(disk, SIZE - 100)
    with pinned(path):
        seen = 0  # not each time: the kernel's clock for times has a grain of some milliseconds
        async with AIOContext() as context, open_aio(path, "r+b", context=context) as file:
            for i in range(20):
                await read_inline(file, context)
                await CHANGES[name](file, SIZE - 99 + i)
                await file.flush()
                seen += await reads_by_others(file, context, READS["pread"])
        assert seen


@contextmanager
def direct_file(folder: Path, slots: int = 8) -> Iterator[tuple[Loop, Path, Descriptor]]:
    """Yield an engine, and a file of it whose direct reads need no submitter."""
    path, _ = make_file(folder, SIZE)
    with loop(slots) as made, opened(path, os.O_RDWR | os.O_DIRECT) as fd:
        descriptor = made.descriptor(fd)
        made.warm()
        yield made, path, descriptor


def many_reads(descriptor: Descriptor) -> PiecesRead:
    """Return a read of two blocks that lie apart, into memory that is not aligned."""
    into = export_buffer(bytearray(2 * BLOCK), writable=True)
    return PiecesRead(descriptor, Pieces.blocks(descriptor, array.array("q", [0, 4 * BLOCK]), BLOCK, into))


def direct_reads(made: Loop, descriptor: Descriptor) -> dict[str, tuple[Request, Callable[[], None]]]:
    """Return a request of each kind that a direct file is read by, and how it is started."""
    plain, blocks = direct_read(made, descriptor, BLOCK, 0), many_reads(descriptor)
    widened, short = WidenedRead(descriptor, 100, 50, 0), WidenedRead(descriptor, 100, 50, 0)
    return {
        "aligned": (plain, lambda: made.submit(plain)),
        "widened": (widened, lambda: made.submit(widened)),
        "by the short way": (short, lambda: short.start_short(made.engine)),
        "many": (blocks, lambda: made.submit(blocks)),
    }


@pytest.mark.parametrize("name", ["aligned", "widened", "by the short way", "many"])
@pytest.mark.parametrize("others", [0, 3])
def test_direct_read_that_sets_the_time_is_left_to_a_submitter(disk: Path, name: str, others: int) -> None:
    with direct_file(disk) as (made, path, descriptor), empty_pipe() as (reader, writer):
        watches = [poll(reader) for _ in range(others)]
        made.submit(*watches)
        for due in (True, False):
            request, start = direct_reads(made, descriptor)[name]
            if due:
                next_moment()
                os.utime(descriptor.fd, ns=(TIME, TIME))
                next_moment()
            else:
                set_no_access_time(descriptor.fd)
            accessed = os.stat(path).st_atime_ns
            start()
            made.wait_for(request)
            assert request.offload is due
            assert request.result >= 0
            assert (os.stat(path).st_atime_ns != accessed) == due
        os.write(writer, b"x")
        made.wait_for(*watches)


def test_times_are_looked_at_when_a_read_that_was_queued_starts(disk: Path) -> None:
    with direct_file(disk, 2) as (made, _, descriptor), empty_pipe() as (reader, writer):
        watches = [poll(reader) for _ in range(2)]
        made.submit(*watches)
        for request in (direct_read(made, descriptor, BLOCK, 0), WidenedRead(descriptor, 100, 50, 0), many_reads(descriptor)):
            set_no_access_time(descriptor.fd)
            made.submit(request)
            while request.state is State.HELD:  # it waits for memory
                made.turn()
            assert request.state is State.KERNEL_QUEUED
            os.utime(descriptor.fd, ns=(TIME, TIME))
            next_moment()
            os.write(writer, b"x")
            made.wait_for(*watches, request)
            assert request.offload
            os.read(reader, 1)
            watches = [poll(reader) for _ in range(2)]
            made.submit(*watches)
        os.write(writer, b"x")
        made.wait_for(*watches)


class WriteByLoop(Write):
    """An overwrite that the loop submits: a submitter counts its writes, but perhaps after the loop has taken the completion."""

    __slots__ = ()

    offload = False


def test_completion_of_a_direct_write_says_that_the_file_has_changed(disk: Path) -> None:
    with direct_file(disk) as (made, _, descriptor):
        fd = descriptor.fd
        os.utime(fd, ns=(TIME, TIME))
        for _ in range(20):
            while lib.taio_sets_access_time(fd):
                os.preadv(fd, [mmap.mmap(-1, BLOCK)], 0)
            next_moment()
            assert not lib.taio_sets_access_time(fd)
            slab = warm_slab(made, BLOCK)
            made.run(WriteByLoop(descriptor, slab.address, BLOCK, 0, 0, slab))
            times = os.stat(fd)
            assert bool(lib.taio_sets_access_time(fd)) == (times.st_atime_ns <= times.st_mtime_ns)


async def test_change_by_another_process_is_seen_after_some_milliseconds(disk: Path) -> None:
    path = make_fresh_file(disk)
    with pinned(path), opened(path, os.O_WRONLY) as theirs:
        seen = 0
        async with AIOContext() as context, open_aio(path, context=context) as file:
            for _ in range(20):
                await read_inline(file, context)
                os.pwrite(theirs, b"x", 0)
                next_moment()
                seen += await reads_by_others(file, context, READS["pread"])
        assert seen


def keep_time(path: Path) -> None:
    """Let reads leave the time of access as it is. chattr(1), +A."""
    get_flags, set_flags, no_time = 0x80086601, 0x40086602, 0x80  # linux/fs.h
    with opened(path, os.O_RDONLY) as fd:
        flags = array.array("l", [0])
        fcntl.ioctl(fd, get_flags, flags)
        fcntl.ioctl(fd, set_flags, array.array("l", [flags[0] | no_time]))


@pytest.fixture
def lower(disk: Path) -> Iterator[tuple[Path, Path]]:
    """Return a folder that is a lower layer of an overlayfs, and its mount point."""
    places = [disk / name for name in ("lower", "upper", "work", "mounted")]
    for place in places:
        place.mkdir()
    options = "lowerdir={},upperdir={},workdir={}".format(*places)
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", str(places[3])], check=True)
    yield places[0], places[3]
    subprocess.run(["umount", "-l", str(places[3])], check=True)


@pytest.fixture(params=["attribute", "lower_layer"])
def keeping(request: pytest.FixtureRequest, disk: Path) -> Path:
    """Return a file that keeps its time of access, which is older than its last change."""
    folder, there = (disk, disk) if request.param == "attribute" else request.getfixturevalue("lower")
    path = make_fresh_file(folder)
    os.utime(path, ns=(TIME, TIME))
    if folder is there:
        keep_time(path)
    return Path(there) / path.name


async def test_file_that_keeps_its_time_is_read_inline(keeping: Path) -> None:
    with pinned(keeping):
        async with AIOContext() as context, open_aio(keeping, context=context) as file:
            await read_inline(file, context)
        assert os.stat(keeping).st_atime_ns == TIME


async def test_file_that_keeps_its_time_is_read_inline_by_name(disk: Path) -> None:
    keeping = make_fresh_file(disk)  # not on overlayfs: there no file is read inline by name
    os.utime(keeping, ns=(TIME, TIME))
    keep_time(keeping)
    with pinned(keeping):
        async with AIOContext() as context:
            for _ in attempts("a read by name without a worker"):
                await trio_aio.os.stat(keeping, context=context)  # so that the mount is found to be local
                before = context.statistics().names_inline
                await trio_aio.read_bytes(keeping, context=context)
                if context.statistics().names_inline > before:
                    break
        assert os.stat(keeping).st_atime_ns == TIME


def test_file_that_keeps_its_time_is_read_directly_by_the_loop(disk: Path) -> None:
    with direct_file(disk) as (made, path, descriptor):
        os.utime(path, ns=(TIME, TIME))
        keep_time(path)
        first, second = (direct_read(made, descriptor, BLOCK, 0) for _ in range(2))
        made.run(first)
        made.run(second)
        assert (first.offload, second.offload) == (True, False)


def test_read_that_began_before_the_file_was_changed_says_nothing(disk: Path) -> None:
    path, _ = make_file(disk, SIZE)
    with opened(path, os.O_RDWR) as fd:
        descriptor = Descriptor(fd, fd)
        descriptor.load(describe(fd).value)
        left = lib.taio_read_begins(lib.taio_use_of(fd))
        os.utime(fd, ns=(TIME, TIME))
        next_moment()
        assert lib.taio_sets_access_time(fd)
        assert left != lib.taio_read_begins(lib.taio_use_of(fd))
        lib.taio_read_has_ended(lib.taio_use_of(fd), fd, left)
        next_moment()
        assert lib.taio_sets_access_time(fd)


async def test_file_without_the_time_is_read_inline_after_a_change(disk: Path) -> None:
    path = make_fresh_file(disk)
    with pinned(path), opened(path, os.O_RDWR | os.O_NOATIME) as fd:
        async with AIOContext() as context, open_aio(fd, "r+b", closefd=False, context=context) as file:
            await read_inline(file, context)
            for _ in attempts("a read without a worker behind a change"):
                await trio_aio.os.utime(path, ns=(TIME, TIME), context=context)
                before = context.statistics()
                await file.pread(BLOCK, 0)
                after = context.statistics()
                if after.submitted_inline > before.submitted_inline:
                    break
        assert os.stat(path).st_atime_ns == TIME
