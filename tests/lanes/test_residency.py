"""Reads on the event loop's thread where RWF_NOWAIT does not work: how the page cache is asked, and how long a mapping is kept."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from trio_aio import AIOContext, open_aio
from trio_aio._engine.descriptor import BY_CACHESTAT, MOST_ASKS, describe, new_residency
from trio_aio._lanes.devices import SLEEP_BACKOFF
from trio_aio._memory.exports import hold
from trio_aio._native import ffi, lib
from trio_aio._requests.transfer import read_for_worker
from trio_aio.testing import FaultyContext

from ..conftest import need
from ..support.files import BLOCK, HOUR, make_file, opened
from ..support.fuse import Misbehaving
from ..support.page_cache import attempts, cached_pages, evict, pinned
from ..support.programs import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio_aio import AIOStatistics
    from trio_aio._engine.descriptor import Descriptor

    from ..support.engine_loop import Loop

WAYS = {"tmpfs": "inline_by_cachestat", "overlay": "inline_by_mincore"}


@pytest.fixture(params=WAYS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def folder(on_filesystem: Callable[[str], Path], kind: str) -> Path:
    return on_filesystem(kind)


def mappings(path: Path) -> int:
    """Count this process's mappings of a file that may never be touched."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return sum(1 for line in lines if line.endswith(str(path)) and line.split()[1] == "---s")


def read_by_worker(engine_loop: Loop, descriptor: Descriptor, offset: int = 0) -> None:
    """Read a page as a miss of the inline lane does: the worker finds out how to ask."""
    memory = hold(bytearray(BLOCK))
    request = read_for_worker(descriptor, memory.address, BLOCK, offset, 0, memory, 0)
    assert engine_loop.run(request) == [BLOCK]


def learn(engine_loop: Loop, descriptor: Descriptor, offset: int = 0) -> None:
    """Let the lane find out that RWF_NOWAIT does not work, and a worker how to ask."""
    assert engine_loop.engine.inline.read(descriptor, BLOCK, offset) is None
    assert not descriptor.read_device.nowait
    read_by_worker(engine_loop, descriptor, offset)
    assert descriptor.residency


@contextmanager
def learned(engine_loop: Loop, path: Path, flags: int = os.O_RDONLY) -> Iterator[Descriptor]:
    """Open a file, and let a worker find out how to ask for its pages. Release what that keeps at the end."""
    with opened(path, flags) as fd:
        descriptor = engine_loop.descriptor(fd)
        with pinned(path):
            learn(engine_loop, descriptor)
        yield descriptor
        descriptor.release_residency()


def test_cached_reads_without_nowait_are_served_inline(folder: Path, kind: str) -> None:
    path, data = make_file(folder)

    async def one() -> tuple[AIOStatistics, AIOStatistics]:
        async with AIOContext() as context, await open_aio(path, context=context) as file:
            with pinned(path):
                assert await file.pread(BLOCK, 0) == data[:BLOCK]  # by a worker, which finds out how to ask
                before = context.statistics()
                memory = bytearray(5000)
                for offset in (0, 100, 32 * BLOCK, len(data) - 10, len(data)):
                    assert await file.pread(5000, offset) == data[offset : offset + 5000]
                    assert await file.preadinto(memory, offset) == len(data[offset : offset + 5000])
                return before, context.statistics()

    for _ in attempts("ten reads of which none slept"):  # on a busy machine one may; then the next ones are left to the workers
        before, after = trio.run(one)
        if not after.inline_slept:
            break
    assert after.submitted_inline - before.submitted_inline == 10
    assert after.submitted_workers == before.submitted_workers
    assert getattr(after, WAYS[kind]) == 10
    assert after.inline_by_cachestat + after.inline_by_mincore == 10


def test_second_file_of_a_device_is_read_inline_at_once_unless_it_needs_a_mapping(folder: Path, kind: str, engine_loop: Loop) -> None:
    first, _ = make_file(folder, name="first")
    second, data = make_file(folder, name="second")
    with opened(first, os.O_RDONLY) as fd, opened(second, os.O_RDONLY) as other, pinned(first), pinned(second):
        learn(engine_loop, descriptor := engine_loop.descriptor(fd))
        assert (descriptor.residency == BY_CACHESTAT) == (kind == "tmpfs")
        another = engine_loop.descriptor(other)
        assert bool(another.residency) == (kind == "tmpfs")
        if not another.residency:
            read_by_worker(engine_loop, another)
        assert engine_loop.engine.inline.read(another, BLOCK, BLOCK) == data[BLOCK : 2 * BLOCK]
        descriptor.release_residency()
        another.release_residency()


@pytest.mark.parametrize("kind", ["overlay"])
def test_missing_page_is_left_to_a_worker_and_starts_no_read_ahead(folder: Path, engine_loop: Loop) -> None:
    path, data = make_file(folder)
    inline = engine_loop.engine.inline
    with learned(engine_loop, path) as descriptor:
        for _ in attempts("a file that was not cached before and behind a read"):
            evict(path)
            before = cached_pages(path)
            found = inline.read(descriptor, BLOCK, 32 * BLOCK)
            if before == 0 and found is None and cached_pages(path) == 0:
                break
        read_by_worker(engine_loop, descriptor, 32 * BLOCK)
        with pinned(path):
            assert inline.read(descriptor, BLOCK, 32 * BLOCK) == data[32 * BLOCK : 33 * BLOCK]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Misbehaving]:
    """Yield a filesystem with a server, and one file in it, "file"."""
    need(os.geteuid() == 0 and os.path.exists("/dev/fuse"), "root and /dev/fuse, to mount a filesystem of its own")
    need(shutil.which("fusermount3") is not None and importlib.util.find_spec("pyfuse3") is not None, "fuse3 and pyfuse3")
    filesystem = Misbehaving(tmp_path)
    make_file(filesystem.source)
    yield filesystem
    filesystem.end()


def test_first_cached_read_of_a_device_with_a_server_asks_it_nothing(server: Misbehaving, engine_loop: Loop) -> None:
    path, data = make_file(server.source)
    os.utime(path, ns=(0, time.time_ns() + HOUR))  # on another filesystem, each read would set the time of access
    with opened(server.folder / path.name, os.O_RDONLY) as fd:
        assert os.pread(fd, len(data), 0) == data
        descriptor = engine_loop.descriptor(fd, known=False)
        assert engine_loop.engine.inline.read(descriptor, BLOCK, 0) is None
        assert server.count("", "statfs") == 0
        assert not descriptor.read_device.nowait


def test_device_with_a_server_is_never_read_plainly(server: Misbehaving, engine_loop: Loop) -> None:
    path = server.folder / "file"
    with opened(path, os.O_RDONLY) as fd:
        descriptor = engine_loop.descriptor(fd, known=False)
        assert engine_loop.engine.inline.read(descriptor, BLOCK, 0) is None
        read_by_worker(engine_loop, descriptor)
        assert not descriptor.residency
        assert descriptor.read_device.local is False
        assert descriptor.new_residency() is None
        assert mappings(path) == 0


def test_truncated_file_is_read_short_and_not_touched(folder: Path, engine_loop: Loop) -> None:
    path, data = make_file(folder)
    inline = engine_loop.engine.inline
    with learned(engine_loop, path) as descriptor:
        os.truncate(path, BLOCK + 100)
        with pinned(path):
            assert inline.read(descriptor, 3 * BLOCK, 0) == data[: BLOCK + 100]
            assert inline.read(descriptor, BLOCK, 20 * BLOCK) == b""
        os.truncate(path, 0)
        assert inline.read(descriptor, BLOCK, 0) == b""


@pytest.mark.parametrize("kind", ["overlay"])
def test_file_that_outgrows_its_mapping_is_mapped_anew(folder: Path, engine_loop: Loop) -> None:
    path, data = make_file(folder)
    inline = engine_loop.engine.inline
    with learned(engine_loop, path, os.O_RDWR) as descriptor:
        end = descriptor.residency.length
        os.pwrite(descriptor.fd, data, end)
        with pinned(path, end):
            assert inline.read(descriptor, BLOCK, end) is None
            assert not descriptor.residency
            assert mappings(path) == 0
            read_by_worker(engine_loop, descriptor, end)
            assert inline.read(descriptor, BLOCK, end) == data[:BLOCK]


def test_mapping_ends_with_the_file(folder: Path, kind: str) -> None:
    path, _ = make_file(folder)

    async def main() -> None:
        async with AIOContext() as context:
            with pinned(path):
                file = await open_aio(path, context=context)
                for _ in range(3):
                    await file.pread(BLOCK, 0)
                assert mappings(path) == (2 if kind == "overlay" else 0)  # the file, and a page behind its end
                await file.aclose()
                assert mappings(path) == 0
                file = await open_aio(path, context=context)
                await file.pread(BLOCK, 0)
                await file.pread(BLOCK, 0)
                with pytest.warns(ResourceWarning):
                    del file
                while mappings(path):  # until the reaper has closed it
                    await trio.lowlevel.checkpoint()

    trio.run(main)


@pytest.mark.usefixtures("no_read_slept")
def test_calls_by_descriptor_keep_no_mapping(folder: Path, kind: str) -> None:
    path, data = make_file(folder)

    async def main() -> None:
        with opened(path, os.O_RDONLY) as fd, pinned(path):
            async with AIOContext() as context:
                for _ in range(4):
                    assert await context.pread(fd, BLOCK, BLOCK) == data[BLOCK : 2 * BLOCK]
                    assert mappings(path) == 0
                assert context.statistics().submitted_inline == (3 if kind == "tmpfs" else 0)

    trio.run(main)


@pytest.mark.parametrize("kind", ["overlay"])
def test_mincore_that_is_not_truthful_is_not_believed(folder: Path, engine_loop: Loop) -> None:
    path, data = make_file(folder)
    path.chmod(0o644)
    inline = engine_loop.engine.inline
    with opened(path, os.O_RDONLY) as fd, opened(path, os.O_RDONLY) as other, pinned(path):
        descriptor, later = engine_loop.descriptor(fd), engine_loop.descriptor(other)
        learn(engine_loop, descriptor)
        assert inline.read(descriptor, BLOCK, 0) == data[:BLOCK]
        os.seteuid(65534)  # neither owns the file nor may write to it; of all threads
        try:
            assert inline.read(descriptor, BLOCK, 0) is None
            assert not descriptor.residency
            read_by_worker(engine_loop, later)
            assert not later.residency
        finally:
            os.seteuid(0)
        assert descriptor.new_residency() is None  # not again
        assert mappings(path) == 0


def test_device_where_a_plain_read_slept_is_left_to_the_workers(folder: Path, engine_loop: Loop) -> None:
    path, data = make_file(folder)
    inline = engine_loop.engine.inline
    with learned(engine_loop, path) as descriptor, pinned(path):
        assert inline._without_sleep(descriptor, BLOCK + lib.TAIO_SLEPT) == BLOCK
        skipped = 0
        while inline.read(descriptor, BLOCK, 0) is None:
            skipped += 1
        assert (skipped, inline.slept) == (SLEEP_BACKOFF, 1)
        assert inline.read(descriptor, BLOCK, 0) == data[:BLOCK]


@pytest.mark.parametrize("kind", ["overlay"])
def test_files_are_mapped_up_to_a_limit(folder: Path) -> None:
    path, _ = make_file(folder, BLOCK)
    most = 1024
    with opened(path, os.O_RDONLY) as fd, pinned(path):
        kept = []
        for _ in range(most + 1):
            kept.append(new_residency(is_local=True, may_map=True))
            lib.taio_residency_find(kept[-1], fd, 0)
        assert [record.way for record in kept] == [lib.TAIO_BY_MINCORE] * most + [lib.TAIO_NO_WAY]
        assert mappings(path) == 2 * most
        kept.clear()
        assert mappings(path) == 0
        again = new_residency(is_local=True, may_map=True)
        lib.taio_residency_find(again, fd, 0)
        assert again.way == lib.TAIO_BY_MINCORE
        lib.taio_residency_release(again)


@pytest.mark.parametrize("path", ["/proc/self/status", "/sys/kernel/mm/transparent_hugepage/enabled"])
def test_files_that_the_kernel_makes_up_are_read_by_workers(path: str) -> None:
    async def main() -> None:
        async with AIOContext() as context, await open_aio(path, context=context) as file:
            for _ in range(MOST_ASKS + 2):
                assert await file.pread(16, 0)
            statistics = context.statistics()
            assert (statistics.inline_by_cachestat, statistics.inline_by_mincore) == (0, 0)

    trio.run(main)


def test_number_of_a_closed_file_says_nothing_of_the_next_file(disk: Path) -> None:
    size = 1 << 20
    path, _ = make_file(disk, size)
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    memory = ffi.new("char[]", BLOCK)
    for _ in attempts("two cached pages, behind which a read-ahead would start"):
        evict(other)
        with opened(other, os.O_RDONLY) as fd:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            os.pread(fd, 2 * BLOCK, 0)
        with opened(path, os.O_RDONLY) as number:
            os.pread(number, size, 0)
            describe(number)
            is_cached = lib.taio_pread_cached(number, ffi.NULL, memory, BLOCK, 0) == BLOCK
        with opened(other, os.O_RDONLY) as fd:
            describe(fd)
            answer, pages = lib.taio_pread_cached(fd, ffi.NULL, memory, BLOCK, 0), cached_pages(other)
        if fd == number and is_cached and pages == 2:
            assert answer == -errno.EAGAIN
            break


def test_file_that_is_evicted_and_truncated_meanwhile_is_read_right(folder: Path) -> None:
    """Another process drops the file's pages, and makes it shorter and whole again. What is read are bytes of it."""
    path, _ = make_file(folder, 16 * BLOCK)
    run(
        """
read, write = os.pipe()
child = os.fork()
if not child:
    os.close(write)
    with open(path, "r+b", 0) as file:
        size = len(data)
        os.set_blocking(read, False)
        while True:
            try:
                if not os.read(read, 1):
                    os._exit(0)
            except BlockingIOError:
                pass
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            size = (size + 5 * BLOCK) % len(data)
            os.ftruncate(file.fileno(), size)
            os.pwrite(file.fileno(), data[size:], size)
            os.fsync(file.fileno())
os.close(read)

async def main():
    async with AIOContext() as context, await open_aio(path, context=context) as file:
        for i in range(1500):
            offset = i * 3000 % len(data)
            found = await file.pread(BLOCK, offset)
            wanted = data[offset : offset + len(found)]
            # A write may be half done, and what lies between the old end and its start is zero.
            assert all(a == b or not a for a, b in zip(found, wanted)), offset

try:
    trio.run(main)
finally:
    os.close(write)
    os.waitpid(child, 0)
""",
        path,
    )


@pytest.mark.parametrize("kind", ["overlay"])
def test_child_of_fork_leaves_the_mappings_of_the_parent_alone(folder: Path) -> None:
    path, _ = make_file(folder)
    run(
        """
warnings.simplefilter("ignore")  # fork with threads

async def main():
    async with AIOContext() as context, await open_aio(path, context=context) as file:
        await file.pread(BLOCK, 0)
        child = os.fork()
        if not child:
            del file._descriptor, file
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        before = context.statistics().inline_by_mincore
        for offset in range(0, len(data), BLOCK):
            assert await file.pread(BLOCK, offset) == data[offset : offset + BLOCK]
        assert context.statistics().inline_by_mincore > before

trio.run(main)
""",
        path,
    )


def test_fault_meets_reads_without_nowait_too(folder: Path) -> None:
    path, data = make_file(folder)

    async def main() -> None:
        async with FaultyContext() as context, await open_aio(path, context=context) as file:
            for _ in range(3):
                assert await file.pread(BLOCK, 0) == data[:BLOCK]
            context.fail(errno.EIO)
            with pytest.raises(OSError, match="Input/output error"):
                await file.pread(BLOCK, 0)
            assert context.statistics().submitted_inline == 0

    trio.run(main)
