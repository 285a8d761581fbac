"""The inline lane for names: what it answers, what it leaves to workers, and that it never sleeps."""

# What the calls are compared with blocks, and that is fine here.

from __future__ import annotations

import errno
import mmap
import os
import resource
from typing import TYPE_CHECKING, Any

import pytest
from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint

import trio_aio
from trio_aio import AIOContext, Path, current_context, open_aio, open_directory, read_bytes
from trio_aio._engine.descriptor import Descriptor
from trio_aio._lanes import names as lane_module
from trio_aio._lanes.names import SAMPLE, UNKNOWN, WATCHED_FIRST, NameLane
from trio_aio._native import ffi, lib
from trio_aio._requests.names import StatName
from trio_aio.testing import FaultyContext

from ..support.files import make_file, opened
from ..support.page_cache import attempts, cached_pages, evict

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]

TRIES = 200  # the kernel sometimes says EAGAIN of a name that is in memory


async def known(path: Any, context: AIOContext | None = None) -> None:
    """Let the lane find out that the mount of `path` is local."""
    lane = (context or current_context())._core.names
    for _ in range(TRIES):
        await trio_aio.os.stat(path, context=context)
        if lane.local_mounts:
            return
    raise AssertionError("the mount was not found to be local")


async def test_read_that_sets_the_access_time_is_left_to_a_worker(disk: pathlib.Path) -> None:
    # Setting it starts a change of the filesystem, and that may wait for the disk.
    path, data = make_file(disk, 4096)
    link = disk / "link"
    link.symlink_to("file")
    async with AIOContext() as context:
        await known(path, context)

        async def inline(call: Callable[[], Any], result: object) -> int:
            before = context.statistics().names_inline
            assert await call() == result
            return context.statistics().names_inline - before

        for name, call, result in (
            (link, lambda: trio_aio.os.readlink(link, context=context), "file"),
            (path, lambda: read_bytes(path, context=context), data),
        ):
            for _ in range(3):
                os.utime(name, ns=(1, 2), follow_symlinks=False)  # accessed before it was changed
                assert await inline(call, result) == 0
            assert os.lstat(name).st_atime_ns > 2
            assert any([await inline(call, result) for _ in range(TRIES)])


@pytest.mark.parametrize("kind", ["ext4", "tmpfs", "xfs", "btrfs", "overlay"])
async def test_cached_names_need_no_worker(on_filesystem: Callable[[str], pathlib.Path], kind: str) -> None:
    folder = on_filesystem(kind)
    path, data = make_file(folder, 4096)
    (folder / "link").symlink_to("file")
    async with AIOContext() as context:
        await known(path, context)
        calls: list[Callable[[], Any]] = [
            lambda: trio_aio.os.stat(path, context=context),
            lambda: trio_aio.os.lstat(folder / "link", context=context),
            lambda: trio_aio.os.access(path, os.R_OK, context=context),
            lambda: trio_aio.os.path.exists(path, context=context),
            lambda: trio_aio.os.readlink(folder / "link", context=context),
        ]
        for call in calls:
            await call()
            before = context.statistics().names_inline
            for _ in range(TRIES):
                await call()
                if context.statistics().names_inline > before:
                    break
            assert context.statistics().names_inline > before
        before = context.statistics().names_inline
        for _ in range(TRIES):
            async with open_aio(path, context=context) as file:
                closes_inline = file._descriptor.closes_inline
                assert await file.pread(4096, 0) == data
            if closes_inline:
                break
        assert closes_inline
        assert context.statistics().names_inline > before
        assert context.statistics().names_slept == 0


@pytest.mark.parametrize("kind", ["ext4", "tmpfs", "xfs", "btrfs", "overlay"])
@pytest.mark.parametrize("mode", ["rb", "r+b"])
async def test_stat_of_an_open_file_needs_no_worker(on_filesystem: Callable[[str], pathlib.Path], kind: str, mode: str) -> None:
    path, _ = make_file(on_filesystem(kind), 4096)
    for _ in attempts("a stat that was answered inline"):  # on a busy machine a call sleeps, and the lane leaves the device for long
        async with AIOContext() as context:
            await known(path, context)
            async with open_aio(path, mode, context=context) as file:
                before = context.statistics()
                found = await file.stat()
                assert await file.size() == 4096
                now = context.statistics()
                assert tuple(found) == tuple(os.stat(path))
                assert found.st_mtime_ns == os.stat(path).st_mtime_ns
                if mode == "r+b":
                    await file.pwrite(b"more", 4096)
                    assert await file.size() == 4100
                    await file.truncate(4096)
        if now.submitted_workers == before.submitted_workers:
            break
    with pytest.raises(ValueError, match="closed file"):
        await file.stat()


async def test_stat_of_an_open_file_that_is_cancelled_raises_cancelled(disk: pathlib.Path) -> None:
    path, _ = make_file(disk, 10)
    await known(path)
    async with open_aio(path) as file:
        with CancelScope() as scope:
            scope.cancel()
            await file.stat()
        assert scope.cancelled_caught


async def test_small_cached_file_is_read_inline(on_filesystem: Callable[[str], pathlib.Path]) -> None:
    for kind in ("ext4", "tmpfs", "xfs", "btrfs"):
        folder = on_filesystem(kind)
        context = current_context()
        for size in (0, 1, 4096, 128 << 10):
            path, data = make_file(folder, size)
            for _ in range(TRIES):
                before = context.statistics()
                assert await read_bytes(path) == data
                now = context.statistics()
                if now.submitted_workers == before.submitted_workers:
                    assert now.bytes_read - before.bytes_read == size
                    break
            else:
                raise AssertionError("no read was served inline")


@pytest.mark.parametrize("kind", ["ext4", "tmpfs", "xfs", "btrfs"])
async def test_parts_of_a_cached_file_are_read_inline(on_filesystem: Callable[[str], pathlib.Path], kind: str) -> None:
    size = 1 << 20
    path, data = make_file(on_filesystem(kind), size)
    end = size - 10
    for offset, most in ((0, 1), (4095, 2), (5000, 128 << 10), (end, 10), (end, 11), (end, -1), (size, 5), (size + 1, 5)):
        wanted = data[offset:] if most < 0 else data[offset : offset + most]
        # On a busy machine a call sleeps, and the lane leaves the device for long.
        for _ in attempts(f"an inline read of {most} at {offset}", seen=lambda: (before, now, cached_pages(path))):  # noqa: B023
            async with AIOContext() as context, open_directory(path.parent, context=context) as directory:
                await known(path, context)
                before = context.statistics()
                assert await read_bytes(path, offset=offset, size=most, context=context) == wanted
                assert await directory.read_bytes("file", offset=offset, size=most) == wanted
                buffer = bytearray(20)
                assert await read_bytes(path, offset=offset, size=most, into=buffer, context=context) == len(wanted[:20])
                assert buffer[: len(wanted)] == wanted[:20]
                now = context.statistics()
            if now.submitted_workers == before.submitted_workers:
                assert now.bytes_read - before.bytes_read == 2 * len(wanted) + len(wanted[:20])
                break


async def test_open_below_a_directory_is_inline_or_one_request(disk: pathlib.Path) -> None:
    path, data = make_file(disk, 4096)
    async with open_directory(disk) as directory:
        await known(path)
        context = current_context()
        for _ in range(TRIES):
            before = context.statistics().submitted_workers
            async with directory.open("file") as file:
                opened = context.statistics().submitted_workers
                assert await file.read() == data
            if opened == before:
                break
        else:
            raise AssertionError("no open was served inline")
        before = context.statistics().submitted_workers
        file = await directory.open("file", "r+b", direct=False)
        await file.aclose()
        before = context.statistics().submitted_workers
        file = await directory.open("new", "w+b")
        assert context.statistics().submitted_workers == before + 1
        assert os.get_blocking(file.fileno())
        await file.aclose()


async def test_calls_while_the_context_closes_are_refused(disk: pathlib.Path) -> None:
    path, _ = make_file(disk, 10)
    await known(path)
    context = current_context()
    calls: list[Callable[[], Any]] = [Path(path).stat, Path(path).exists, Path(path).read_bytes, lambda: trio_aio.os.stat(path)]
    async with create_task_group() as group:
        group.start_soon(context.aclose)
        while context._core.state == "open":
            await checkpoint()
        for call in calls:
            with pytest.raises(RuntimeError, match=r"AIOContext is clos(ed|ing)"):
                await call()


async def test_absent_name_is_answered_inline(disk: pathlib.Path) -> None:
    await known(disk)
    with pytest.raises(FileNotFoundError) as caught:
        await trio_aio.os.stat(disk / "absent")
    assert caught.value.filename == str(disk / "absent")
    context = current_context()
    for _ in range(TRIES):
        before = context.statistics()
        assert not await Path(disk / "absent").exists()
        if context.statistics().submitted_workers == before.submitted_workers:
            return
    raise AssertionError("no answer came from memory")


async def test_what_is_no_regular_file_is_opened_by_a_worker(disk: pathlib.Path) -> None:
    await known(disk)
    os.mkfifo(disk / "fifo")
    await trio_aio.os.stat(disk / "fifo")
    with pytest.raises(OSError, match="FIFO"):
        await open_aio(disk / "fifo")
    with pytest.raises(OSError, match="FIFO"):
        await read_bytes(disk / "fifo")
    with pytest.raises(IsADirectoryError):
        await read_bytes(disk)
    # No reader ever opened it: a writer still finds none.
    with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
        os.open(disk / "fifo", os.O_WRONLY | os.O_NONBLOCK)


async def test_file_that_was_unlinked_is_closed_by_a_worker(disk: pathlib.Path) -> None:
    path, _ = make_file(disk)
    await known(path)
    context = current_context()
    for _ in range(TRIES):
        file = await open_aio(path)
        if file._descriptor.closes_inline:
            break
        await file.aclose()
    before = context.statistics().submitted_workers
    path.unlink()
    await file.aclose()
    assert context.statistics().submitted_workers == before + 1


async def test_opened_file_is_nonblocking_no_more(disk: pathlib.Path) -> None:
    path, _ = make_file(disk)
    await known(path)
    for mode in ("rb", "r+b"):
        for _ in range(5):
            async with open_aio(path, mode) as file:
                assert os.get_blocking(file.fileno())
                assert not os.get_inheritable(file.fileno())


async def test_descriptor_limit_is_no_error_of_stat(disk: pathlib.Path) -> None:
    await known(disk)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = os.stat(disk)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        status = await trio_aio.os.stat(disk)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert status == wanted


async def test_faults_meet_calls_on_names(disk: pathlib.Path) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context:
        for _ in range(3):
            await trio_aio.os.stat(path, context=context)
        for operation, call in (
            ("stat", lambda: trio_aio.os.stat(path, context=context)),
            ("list", lambda: trio_aio.os.listdir(disk, context=context)),
            ("change", lambda: trio_aio.os.mkdir(disk / "new", context=context)),
            ("sync", lambda: trio_aio.os.sync_directory(disk, context=context)),
        ):
            with context.fail(errno.EIO, operation=operation), pytest.raises(OSError, match=os.strerror(errno.EIO)):
                await call()
    assert sorted(os.listdir(disk)) == ["file"]


# ---- the lane alone


def test_lane_watches_the_first_calls_and_then_samples(disk: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lane = NameLane()
    path = os.fsencode(disk)
    assert lane.stat(-100, path, 0) == UNKNOWN
    assert lane.should_probe()
    lane.note_probe(lane._local.key, False)
    watched = []
    for _ in range(WATCHED_FIRST + 10 * SAMPLE):
        lane.stat(-100, path, 0)
        watched.append(lane._local.watched)
    assert sum(watched[:WATCHED_FIRST]) == WATCHED_FIRST
    assert sum(watched[WATCHED_FIRST:]) == 10


def test_lane_leaves_a_mount_whose_attributes_live_on_a_server(disk: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(lane_module.time, "monotonic", lambda: now[0])
    lane = NameLane()
    path = os.fsencode(disk)
    lane.stat(-100, path, 0)
    lane.note_probe(lane._local.key, True)
    assert lane.left_mounts == 1
    assert lane.stat(-100, path, 0) == UNKNOWN
    assert not lane.should_probe()
    now[0] = lane_module.LEFT_FOR + 1
    assert lane.should_probe()


def test_lane_leaves_a_mount_where_a_call_slept(disk: pathlib.Path) -> None:
    lane = NameLane()
    path = os.fsencode(disk)
    lane.stat(-100, path, 0)
    lane.note_probe(lane._local.key, False)
    assert lane.stat(-100, path, 0) == 0
    assert lane._judged(lib.TAIO_NAME_SLEPT) == 0  # as the C code reports it
    assert lane.slept == 1
    assert (lane.local_mounts, lane.left_mounts) == (0, 1)
    assert lane.stat(-100, path, 0) == UNKNOWN
    assert not lane.should_probe()


def test_wait_for_a_page_of_the_program_says_nothing_of_the_mount(disk: pathlib.Path) -> None:
    # The page that the path lies in stands for one of the code that runs.
    lane = NameLane()
    path = disk / "path"
    path.write_bytes(os.fsencode(disk) + b"\0")
    lane.stat(-100, os.fsencode(disk), 0)
    lane.note_probe(lane._local.key, False)
    with opened(path, os.O_RDONLY) as fd:
        for _ in attempts("a call that waited for a page of the program"):
            evict(path)
            with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
                block = ffi.from_buffer("char[]", mapped)
                lane._local.first = 1  # so the call is watched
                before = resource.getrusage(resource.RUSAGE_THREAD)
                answer = lib.taio_inline_stat(lane._local, -100, block, 0, 0, lane._status)
                after = resource.getrusage(resource.RUSAGE_THREAD)
                ffi.release(block)
            faults, sleeps = after.ru_majflt - before.ru_majflt, after.ru_nvcsw - before.ru_nvcsw
            if faults and sleeps == 1 and answer != -errno.EAGAIN:
                break
    assert answer == 0


def test_mount_is_left_for_twice_as_long_each_time_a_call_slept(disk: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(lane_module.time, "monotonic", lambda: now[0])
    lane = NameLane()

    def left_for() -> float:
        """Let a call sleep, and return for how many seconds no worker probes the mount. Then one does, and finds it local."""
        lane.stat(-100, os.fsencode(disk), 0)
        lane.note_probe(lane._local.key, False)
        assert lane.stat(-100, os.fsencode(disk), 0) == 0
        assert lane._judged(lib.TAIO_NAME_SLEPT) == 0  # as the C code reports it
        start = now[0]
        while not lane.should_probe():
            now[0] += 0.5
        return now[0] - start

    assert [left_for() for _ in range(12)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]
    now[0] += 599
    assert left_for() == 600
    now[0] += 600  # so long no call has slept
    assert [left_for() for _ in range(2)] == [1, 2]


def test_lane_keeps_the_mounts_it_was_told_of_last() -> None:
    lane = NameLane()
    most = lane_module._MOST
    for key in range(1, most + 10):
        lane.note_probe(key, False)
        lane.note_probe(key, False)
    assert lane.local_mounts == most
    assert list(lane._local.keys) == list(range(10, most + 10))


def test_lane_without_openat2_is_turned_off() -> None:
    lane = NameLane()
    lane._judged(-errno.ENOSYS)
    assert not lane.on
    lane = NameLane()
    lane._local.last = -errno.EPERM
    lane._judged(-errno.EPERM)
    assert lane.on
    lane.note_worker_succeeded()
    assert not lane.on


async def test_probe_without_a_descriptor_finds_nothing_out(disk: pathlib.Path) -> None:
    context = current_context()
    await trio_aio.os.listdir(disk)  # a worker runs
    request = StatName(Descriptor(-100, disk), os.fsencode(disk), probe=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        await context._core.submit_and_wait(request)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert request.status() == os.stat(disk)
    assert request.record.key == 0
    context._core.names.note_probe(request.record.key, False)
    assert context._core.names.local_mounts == 0
