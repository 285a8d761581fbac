"""Syncs after a sync that has failed: what was written before may be lost, and the kernel reports that once."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from anyio import CancelScope, create_task_group, to_thread
from anyio.lowlevel import checkpoint

import trio_aio
from trio_aio import RWF, AIOContext, open_aio, write_bytes
from trio_aio.testing import FaultyContext

from ..conftest import need
from ..support.files import BLOCK
from ..support.tasks import until_blocked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]

DIRECT = pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])


async def answer(sync: Callable[[], Awaitable[object]]) -> int:
    """Return the errno of a sync; 0: durable."""
    try:
        await sync()
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.fixture
def path(disk: Path) -> Path:
    """A file of four blocks."""
    path = disk / "file"
    path.write_bytes(bytes(4 * BLOCK))
    return path


@DIRECT
async def test_bytes_written_by_a_thread_stay_lost_until_the_whole_file_is_written_again(path: Path, direct: bool) -> None:
    async with FaultyContext() as context, open_aio(path, "r+b", direct=direct, context=context) as file:
        with file.blocking() as blocking:
            await to_thread.run_sync(blocking.write, b"t" * BLOCK)
        await file.pwrite(b"a" * BLOCK, BLOCK)
        context.fail(errno.EIO, operation="sync", times=1)
        assert await answer(file.fsync) == errno.EIO
        await file.pwrite(b"a" * BLOCK, BLOCK)
        assert await answer(file.fsync) == errno.EIO
        await file.pwrite(b"a" * (4 * BLOCK), 0)
        assert await answer(file.fsync) == 0


@DIRECT
async def test_write_of_a_thread_that_has_not_returned_when_a_sync_fails_is_lost(
    path: Path, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite, written, go_on = os.pwrite, threading.Event(), threading.Event()

    def stay(fd: int, data: memoryview, offset: int) -> int:
        count = pwrite(fd, data, offset)
        written.set()
        go_on.wait()
        return count

    monkeypatch.setattr(os, "pwrite", stay)
    async with FaultyContext() as context, open_aio(path, "r+b", direct=direct, context=context) as file:
        with file.blocking() as blocking:
            async with create_task_group() as group:
                group.start_soon(to_thread.run_sync, blocking.write, b"t" * BLOCK)
                await to_thread.run_sync(written.wait)
                try:
                    await file.pwrite(b"a" * BLOCK, BLOCK)
                    context.fail(errno.EIO, operation="sync", times=1)
                    assert await answer(file.fsync) == errno.EIO
                finally:
                    go_on.set()
        await file.pwrite(b"a" * BLOCK, BLOCK)
        assert await answer(file.fsync) == errno.EIO
        await file.pwrite(b"a" * (4 * BLOCK), 0)
        assert await answer(file.fsync) == 0


@DIRECT
@pytest.mark.parametrize("later", ["fsync", "fdatasync"])
async def test_sync_after_a_failed_sync_fails_until_all_is_written_again(path: Path, direct: bool, later: str) -> None:
    async with FaultyContext() as context, open_aio(path, "r+b", direct=direct, context=context) as file:
        await file.pwrite(b"a" * BLOCK, 0)
        await file.pwrite(b"b" * 100, 2 * BLOCK)
        context.fail(errno.EIO, operation="sync", times=1)
        assert await answer(file.fsync) == errno.EIO
        sync = getattr(file, later)
        assert [await answer(sync) for _ in range(3)] == [errno.EIO] * 3
        await file.pwrite(b"a" * BLOCK, 0)
        assert await answer(sync) == errno.EIO
        await file.pwrite(b"b" * 99, 2 * BLOCK)
        assert await answer(sync) == errno.EIO
        await file.pwrite(b"b", 2 * BLOCK + 99)
        assert await answer(sync) == 0
        assert await answer(sync) == 0


WRITES: dict[str, Callable[[Any], Awaitable[object]]] = {
    "pwritev": lambda file: file.pwritev([b"a" * BLOCK, b"b" * BLOCK], 0),
    "write_ranges": lambda file: file.write_ranges([(BLOCK, b"b" * BLOCK), (0, b"a" * BLOCK)]),
    "write_ranges of parts": lambda file: file.write_ranges([(BLOCK, b"b" * BLOCK), (7, b"a" * 100)]),
    "write": lambda file: file.write(b"a" * BLOCK),
}


@DIRECT
@pytest.mark.parametrize("shared", [False, True], ids=["own cursor", "kernel's cursor"])
@pytest.mark.parametrize("call", WRITES)
async def test_each_kind_of_write_is_lost_and_heals(path: Path, direct: bool, shared: bool, call: str) -> None:
    async with FaultyContext() as context, open_aio(path, "r+b", direct=direct, context=context) as file:
        if shared:
            file.fileno()
        await WRITES[call](file)
        context.fail(errno.ENOSPC, operation="sync", times=1)
        assert [await answer(file.fsync) for _ in range(2)] == [errno.ENOSPC] * 2
        await file.seek(0)
        await WRITES[call](file)
        assert await answer(file.fsync) == 0


async def test_lost_bytes_of_a_writer_heal_by_a_writer(path: Path) -> None:
    async def write(file: Any) -> None:
        async with file.writer(size=1000) as writer:
            for _ in range(10):
                await writer.write(b"w" * 700)

    async with FaultyContext() as context, open_aio(path, "r+b", context=context) as file:
        await write(file)
        context.fail(errno.EIO, operation="sync", times=1)
        assert [await answer(file.fsync) for _ in range(2)] == [errno.EIO] * 2
        await write(file)
        assert await answer(file.fsync) == 0


async def test_appended_bytes_stay_lost_until_they_are_cut_off(path: Path) -> None:
    async with FaultyContext() as context, open_aio(path, "a+b", context=context) as file:
        await file.write(b"line\n")
        context.fail(errno.EIO, operation="sync", times=1)
        assert await answer(file.fsync) == errno.EIO
        await file.write(b"line\n")
        assert await answer(file.fsync) == errno.EIO
        await file.truncate(4 * BLOCK)
        await file.write(b"line\n")
        assert await answer(file.fsync) == 0


async def test_sync_after_a_failed_sync_of_a_file_that_nothing_wrote_to_fails(path: Path) -> None:
    async with FaultyContext() as context, open_aio(path, "r+b", context=context) as file:
        context.fail(errno.EIO, operation="sync", times=1)
        assert [await answer(file.fsync) for _ in range(2)] == [errno.EIO] * 2
        await file.pwrite(bytes(4 * BLOCK), 0)
        assert await answer(file.fsync) == 0


@DIRECT
async def test_all_files_of_the_inode_fail_except_one_opened_later(path: Path, direct: bool) -> None:
    async with (
        FaultyContext() as context,
        open_aio(path, "r+b", context=context) as first,
        open_aio(path, "r+b", direct=direct, context=context) as second,
    ):
        await first.pwrite(b"a" * BLOCK, 0)
        context.fail(errno.EIO, operation="sync", times=1)
        assert await answer(first.fsync) == errno.EIO
        assert await answer(second.fdatasync) == errno.EIO
        async with open_aio(path, "r+b", context=context) as anew:
            assert await answer(anew.fsync) == 0
            assert await answer(second.fsync) == errno.EIO
            await anew.pwrite(b"a" * BLOCK, 0)
        assert await answer(first.fsync) == 0
        assert await answer(second.fsync) == 0


async def test_sync_by_fd_fails_after_a_sync_by_fd_has_failed(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        async with FaultyContext() as context:
            await context.pwrite(fd, b"a" * 100, 0)
            context.fail(errno.EIO, operation="sync", times=1)
            assert [await answer(partial(context.fsync, fd)) for _ in range(2)] == [errno.EIO] * 2
            assert await answer(partial(context.fdatasync, fd)) == errno.EIO
            async with open_aio(fd, "r+b", closefd=False, context=context) as adopted:
                assert await answer(adopted.fsync) == errno.EIO
                await adopted.pwrite(b"a" * 100, 0)
            assert await answer(partial(context.fsync, fd)) == 0
    finally:
        os.close(fd)


async def test_new_file_with_the_inode_of_a_lost_one_can_be_synced(path: Path) -> None:
    async with FaultyContext() as context:
        fd = os.open(path, os.O_RDWR)
        await context.pwrite(fd, b"a", 0)
        context.fail(errno.EIO, operation="sync", times=1)
        assert await answer(partial(context.fsync, fd)) == errno.EIO
        os.unlink(path)
        os.close(fd)
        fd = os.open(path, os.O_RDWR | os.O_CREAT)  # ext4 gives it the inode number that is free
        await context.pwrite(fd, b"a", 0)
        assert await answer(partial(context.fsync, fd)) == 0
        os.close(fd)


@pytest.mark.parametrize("direct", [False, True])
async def test_new_file_inherits_nothing_from_a_closed_one_whose_object_is_kept(path: Path, direct: bool) -> None:
    async with FaultyContext() as context:
        async with open_aio(path, "r+b", direct=direct, context=context) as kept:
            await kept.pwrite(b"a" * BLOCK, 0)
            await kept.pread(BLOCK, 0)
            context.fail(errno.EIO, operation="sync", times=1)
            assert await answer(kept.fsync) == errno.EIO
        inode = os.stat(path).st_ino
        os.unlink(path)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
        os.truncate(path, 4 * BLOCK)
        async with open_aio(path, "r+b", direct=direct, context=context) as file:
            if os.stat(path).st_ino == inode:  # as ext4 does
                assert file._descriptor.shared_file is not kept._descriptor.shared_file
            assert not file._descriptor.block_map.has(0, BLOCK)
            assert await answer(file.fsync) == 0


async def test_followers_and_later_syncs_of_a_failed_sync_fail(path: Path) -> None:
    async with FaultyContext() as context, open_aio(path, "r+b", context=context) as file:
        answers: dict[str, int] = {}

        async def sync(name: str) -> None:
            answers[name] = await answer(file.fsync)

        await file.pwrite(b"a" * BLOCK, 0)
        context.fail(errno.EIO, operation="sync", times=1)
        with context.hang(operation="sync", times=1) as hang:
            async with create_task_group() as group:
                group.start_soon(sync, "first")
                await until_blocked()
                for name in ("second", "third"):
                    group.start_soon(sync, name)
                await until_blocked()
                await file.pwrite(b"b" * BLOCK, BLOCK)
                group.start_soon(sync, "fourth")
                await until_blocked()
                hang.release(errno.EIO)
        assert set(answers.values()) == {errno.EIO}
        assert len(answers) == 4


@DIRECT
async def test_write_in_flight_when_a_sync_fails_is_lost(path: Path, direct: bool) -> None:
    async with (
        FaultyContext() as context,
        open_aio(path, "r+b", direct=direct, context=context) as file,
        open_aio(path, "r+b", context=context) as other,
    ):
        await file.pwrite(b"a" * BLOCK, 0)
        context.fail(errno.EIO, operation="sync", times=1)
        with context.hang(operation="write", times=1) as hang:
            async with create_task_group() as group:
                group.start_soon(file.pwrite, b"b" * BLOCK, BLOCK)
                await until_blocked()
                assert await answer(other.fsync) == errno.EIO
                hang.release()
        await file.pwrite(b"a" * BLOCK, 0)
        assert await answer(file.fsync) == errno.EIO
        await file.pwrite(b"b" * BLOCK, BLOCK)
        assert await answer(file.fsync) == 0
        assert await answer(other.fsync) == 0


async def test_syncs_of_one_inode_run_one_after_the_other(path: Path) -> None:
    async with (
        FaultyContext() as context,
        open_aio(path, "r+b", context=context) as first,
        open_aio(path, "r+b", context=context) as second,
    ):
        answers: list[int] = []

        async def sync(file: Any) -> None:
            answers.append(await answer(file.fsync))

        await first.pwrite(b"a", 0)
        with context.hang(operation="sync", times=1) as hang:
            async with create_task_group() as group:
                group.start_soon(sync, first)
                await until_blocked()
                group.start_soon(sync, second)
                await until_blocked()
                assert answers == []
                hang.release(errno.EIO)
        assert answers == [errno.EIO, errno.EIO]


async def test_cancelled_sync_that_waits_for_another_file_has_no_effect(path: Path) -> None:
    async with (
        FaultyContext() as context,
        open_aio(path, "r+b", context=context) as first,
        open_aio(path, "r+b", context=context) as second,
    ):
        with context.hang(operation="sync", times=1) as hang:
            async with create_task_group() as group:
                group.start_soon(first.fsync)
                await until_blocked()
                with CancelScope() as scope:
                    scope.cancel()
                    await second.fsync()
                assert scope.cancelled_caught
                hang.release()
        assert await answer(second.fsync) == 0


@DIRECT
@pytest.mark.parametrize("how", ["RWF.DSYNC", "O_DSYNC"])
async def test_sync_after_a_failed_synchronous_write_fails(path: Path, direct: bool, how: str) -> None:
    flags = RWF.DSYNC if how == "RWF.DSYNC" else RWF(0)

    def opener(name: str, mode: int) -> int:
        return os.open(name, mode | (0 if flags else os.O_DSYNC))

    async with (
        FaultyContext() as context,
        open_aio(path, "r+b", direct=direct, context=context) as file,
        open_aio(path, "r+b", opener=opener, context=context) as synchronous,
    ):
        await file.pwrite(b"a" * BLOCK, 0)
        context.fail(errno.EIO, operation="write", times=1)
        with pytest.raises(OSError, match="Input/output error"):
            await synchronous.pwrite(b"b" * BLOCK, BLOCK, flags=flags)
        assert await answer(synchronous.fsync) == errno.EIO
        assert await answer(file.fsync) == errno.EIO
        await synchronous.pwrite(b"a" * BLOCK, 0, flags=flags)
        assert await answer(file.fsync) == 0


async def test_file_fails_after_a_durable_write_by_path_has_failed(tmp_path: Path) -> None:
    with full_disk(tmp_path) as folder:
        path = folder / "file"
        path.write_bytes(b"")
        async with AIOContext() as context, open_aio(path, "r+b", context=context) as file:
            await file.pwrite(b"a" * BLOCK, 0)
            assert await answer(lambda: write_bytes(path, os.urandom(16 << 20), offset=BLOCK, durable=True, context=context)) != 0
            assert [await answer(file.fsync) != 0 for _ in range(3)] == [True] * 3


@contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    """Mount an ext4 of 64 MiB whose device has room for 8 MiB: a write is accepted, and its write-back fails."""
    need(os.geteuid() == 0, "root, to mount")
    below, mounted = folder / "below", folder / "mounted"
    below.mkdir()
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(below)], check=True)
    try:
        image = below / "image"
        with image.open("wb") as made:
            made.truncate(64 << 20)
        subprocess.run(
            ["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1", str(image)], check=True, capture_output=True
        )
        subprocess.run(["mount", "-o", "loop", str(image), str(mounted)], check=True)
        try:
            yield mounted
        finally:
            subprocess.run(["umount", "-l", str(mounted)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(below)], check=True)


@pytest.mark.parametrize("how", ["by path", "by fd", "dup"])
async def test_sync_of_a_device_without_room_never_succeeds_later(tmp_path: Path, how: str) -> None:
    with full_disk(tmp_path) as folder:
        path = folder / "file"
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        async with AIOContext() as context:
            try:
                files = [path, path] if how == "by path" else [fd, os.dup(fd)]
                async with open_aio(files[0], "r+b", context=context) as first, open_aio(files[1], "r+b", context=context) as second:
                    writes = [first, second] * 8
                    for at, file in enumerate(writes):
                        await file.pwrite(os.urandom(1 << 20), at << 20)
                    answers: list[int] = []

                    async def sync(file: Any) -> None:
                        answers.append(await answer(file.fsync))

                    async with create_task_group() as group:
                        for file in writes:
                            group.start_soon(sync, file)
                    answers.extend([await answer(file.fdatasync) for file in writes])
                    if how == "by fd":
                        answers.append(await answer(lambda: context.fsync(first.fileno())))
                    assert 0 not in answers
            finally:
                if how == "by path":
                    os.close(fd)


async def test_file_that_a_thread_made_longer_heals_only_when_all_of_it_is_written_again(tmp_path: Path) -> None:
    async with FaultyContext() as context, open_aio(tmp_path / "file", "w+b", context=context) as file:
        with file.blocking() as blocking:
            await to_thread.run_sync(blocking.write, b"t" * 100_000)
        context.fail(errno.EIO, operation="sync", times=1)
        assert await answer(file.fsync) == errno.EIO
        await file.pwrite(b"t", 0)
        assert await answer(file.fsync) == errno.EIO
        await file.pwrite(b"t" * 100_000, 0)
        assert await answer(file.fsync) == 0


@pytest.mark.parametrize("cut_by", ["file", "path"])
async def test_bytes_that_were_cut_off_are_not_missed(path: Path, cut_by: str) -> None:
    async def cut(size: int) -> None:
        await (file.truncate(size) if cut_by == "file" else trio_aio.os.truncate(path, size, context=context))

    async with FaultyContext() as context, open_aio(path, "r+b", context=context) as file:
        await file.pwrite(b"a" * 100_000, 0)
        await cut(0)
        await file.pwrite(b"b" * BLOCK, 0)
        context.fail(errno.EIO, operation="sync", times=1)
        assert await answer(file.fsync) == errno.EIO
        assert await answer(file.fsync) == errno.EIO
        await file.pwrite(b"b" * BLOCK, 0)
        assert await answer(file.fsync) == 0
        await file.pwrite(b"c" * 100_000, 0)
        context.fail(errno.EIO, operation="sync", times=1)
        assert await answer(file.fsync) == errno.EIO
        await file.pwrite(b"c" * BLOCK, 0)
        assert await answer(file.fsync) == errno.EIO
        await cut(BLOCK)
        assert await answer(file.fsync) == 0


@pytest.mark.parametrize("call", ["pwrite", "write_ranges"])
async def test_every_piece_of_a_write_in_flight_when_a_sync_fails_is_lost(path: Path, call: str) -> None:
    async with FaultyContext() as context, open_aio(path, "r+b", context=context) as file:
        await file.pwrite(b"a", 0)
        with context.hang(operation="sync", times=1) as sync, context.hang(operation="write") as write:
            async with create_task_group() as tasks:
                failed: list[int] = []

                async def fail() -> None:
                    failed.append(await answer(file.fsync))

                tasks.start_soon(fail)
                while not sync.held:
                    await checkpoint()
                if call == "pwrite":
                    tasks.start_soon(file.pwrite, b"x" * (2 * BLOCK), BLOCK)
                else:
                    tasks.start_soon(file.write_ranges, [(BLOCK, b"x" * BLOCK), (2 * BLOCK, b"x" * BLOCK)])
                while not write.held:
                    await checkpoint()
                sync.release(errno.EIO)
                while not failed:
                    await checkpoint()
                write.release()
        assert failed == [errno.EIO]
        await file.pwrite(b"a", 0)
        assert await answer(file.fsync) == errno.EIO
        await file.pwrite(b"x" * BLOCK, BLOCK)
        assert await answer(file.fsync) == errno.EIO
        await file.pwrite(b"x" * BLOCK, 2 * BLOCK)
        assert await answer(file.fsync) == 0


async def test_sync_that_no_task_waits_for_any_more_does_not_start(path: Path) -> None:
    async with FaultyContext() as context:
        fd = os.open(path, os.O_RDWR)
        with context.hang(operation="sync", times=1) as hang:
            async with create_task_group() as tasks:
                tasks.start_soon(context.fsync, fd)
                while not hang.held:
                    await checkpoint()
                async with create_task_group() as others:
                    for call in (context.fsync, context.fdatasync):
                        others.start_soon(call, fd)
                        await until_blocked()
                    others.cancel_scope.cancel()
                before = context.statistics()
                hang.release()
        os.close(fd)
        assert (before.cancelled, before.in_flight + before.queued) == (2, 1)
        after = context.statistics()
        assert (after.completed - before.completed, after.cancelled, after.submitted_workers) == (1, 2, before.submitted_workers)


@pytest.mark.backends("asyncio")
@pytest.mark.parametrize("where", ["write", "end"])
async def test_native_cancel_of_a_writer_whose_block_fails_is_raised(path: Path, where: str) -> None:
    async with FaultyContext() as context, open_aio(path, "r+b", context=context) as file:
        ran_on = False

        async def job() -> None:
            nonlocal ran_on
            try:
                async with file.writer(size=BLOCK, depth=1) as writer:
                    await writer.write(b"b" * (BLOCK if where == "end" else 3 * BLOCK))
            except OSError:
                pass
            ran_on = True

        with context.hang(operation="write") as hang:
            task = asyncio.ensure_future(job())
            while not hang.held:
                await checkpoint()
            await until_blocked()
            task.cancel()
            await until_blocked()
            hang.release(errno.ENOSPC)
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not ran_on
