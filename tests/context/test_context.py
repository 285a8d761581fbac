"""AIOContext: its arguments, its engines, and its calls by descriptor."""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import TYPE_CHECKING, Any

import pytest
from anyio import CancelScope, create_task_group, move_on_after
from anyio.lowlevel import checkpoint

from trio_aio import RWF, AIOContext, AIOStatistics, current_context, open_aio
from trio_aio._errors import setup_error
from trio_aio._lanes import kernel_context as _kernel_context
from trio_aio._lanes.threads import living

from ..support.files import BLOCK, make_file, opened
from ..support.page_cache import attempts, evict, pinned
from ..support.pipes import empty_pipe
from ..support.tasks import busy, until_blocked

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


# ---- how it is made


async def test_context_with_invalid_arguments_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bad: list[tuple[type[Exception], dict[str, Any]]] = [
        (ValueError, {"max_in_flight": 0}),
        (ValueError, {"max_in_flight": 1 << 23}),
        (TypeError, {"max_in_flight": 1.5}),
        (ValueError, {"max_workers": 0}),
        (ValueError, {"engine": "uring"}),
    ]
    for kind, arguments in bad:
        with pytest.raises(kind):
            AIOContext(**arguments)
    monkeypatch.setenv("TRIO_AIO_ENGINE", "nonsense")
    with pytest.raises(ValueError, match="TRIO_AIO_ENGINE"):
        AIOContext()
    assert AIOContext(engine="workers") is not None


async def test_context_entered_twice_or_used_outside_is_refused() -> None:
    context = AIOContext()
    assert "new" in repr(context)
    for call in (lambda: context.pread(0, 1, 0), lambda: context.poll(0, 1), lambda: context.fsync(0)):
        with pytest.raises(RuntimeError, match="async with"):
            await call()
    with pytest.raises(RuntimeError, match="async with"):
        context.statistics()
    async with context as same:
        assert same is context
        with pytest.raises(RuntimeError, match="once"):
            await context.__aenter__()
    with pytest.raises(RuntimeError, match="once"):
        await context.__aenter__()
    await context.aclose()
    assert context.statistics().in_flight == 0  # can still be read


async def test_context_never_entered_can_be_closed() -> None:
    context = AIOContext()
    await context.aclose()
    with pytest.raises(RuntimeError, match="once"):
        await context.__aenter__()


@pytest.mark.parametrize(
    ("variable", "argument", "engine"), [(None, "auto", "aio"), ("workers", "auto", "workers"), ("workers", "aio", "aio")]
)
async def test_engine_argument_and_variable_select_the_engine(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, argument: Any, engine: str
) -> None:
    monkeypatch.delenv("TRIO_AIO_ENGINE", raising=False)
    if variable:
        monkeypatch.setenv("TRIO_AIO_ENGINE", variable)
    async with AIOContext(engine=argument) as context:
        assert context.engine == engine
    assert context.engine == engine


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EAGAIN, errno.EINVAL, errno.ENOMEM])
async def test_context_without_io_setup_uses_the_workers(monkeypatch: pytest.MonkeyPatch, disk: Path, code: int) -> None:
    def refuse(_: int) -> None:
        raise setup_error(code)

    monkeypatch.setattr(_kernel_context, "acquire", refuse)
    with pytest.raises(OSError, match="io_setup") as caught:
        await AIOContext(engine="aio").__aenter__()
    assert caught.value.errno == code
    if code == errno.EAGAIN:
        for word in ("fs.aio-nr is ", "fs.aio-max-nr is ", "sysctl fs.aio-max-nr="):
            assert word in str(caught.value)
    path, data = make_file(disk)
    async with AIOContext() as context:
        async with open_aio(path, "r+b", direct=True, context=context) as file:
            assert await file.pread(BLOCK, 0) == data[:BLOCK]
            await file.fsync()
        with empty_pipe() as (reader, writer):
            os.write(writer, b"x")
            assert await context.poll(reader, select.POLLIN) == select.POLLIN
        assert context.engine == "workers"
        assert context.statistics().submitted_kernel == 0


# ---- by descriptor


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_RDWR | os.O_DIRECT])
async def test_pread_and_pwrite_by_descriptor_move_all_bytes(disk: Path, flags: int) -> None:
    path, data = make_file(disk)
    context = current_context()
    with opened(path, flags) as fd:
        assert await context.pread(fd, BLOCK, BLOCK) == data[BLOCK : 2 * BLOCK]
        buffer = bytearray(BLOCK)
        assert await context.preadinto(fd, buffer, 0) == BLOCK
        assert buffer == data[:BLOCK]
        assert await context.pwrite(fd, data[:BLOCK], BLOCK, flags=RWF.DSYNC) == BLOCK
        await context.fsync(fd)
        await context.fdatasync(fd)
        assert await context.pread(fd, 2 * BLOCK, 0) == 2 * data[:BLOCK]
    assert not context._by_fd


async def test_sync_by_descriptor_waits_for_earlier_writes(disk: Path) -> None:
    path, data = make_file(disk)
    context = current_context()
    order: list[str] = []
    with opened(path, os.O_RDWR) as fd:

        async def write() -> None:
            await context.pwrite(fd, data, 0)
            order.append("write")

        async def sync() -> None:
            await context.fsync(fd)
            order.append("sync")

        async with create_task_group() as group:
            group.start_soon(write)
            await checkpoint()
            group.start_soon(sync)
    assert order == ["write", "sync"]


async def test_error_by_descriptor_names_the_descriptor() -> None:
    context = current_context()
    with empty_pipe() as (reader, writer):
        for call in (lambda: context.pread(reader, 1, 0), lambda: context.pwrite(writer, b"x", 0)):
            with pytest.raises(OSError, match="Illegal seek") as caught:
                await call()
            assert caught.value.filename in (f"<fd {reader}>", f"<fd {writer}>")
    for call in (
        lambda: context.pread(1 << 20, 1, 0),
        lambda: context.fsync(1 << 20),
        lambda: context.poll(1 << 20, 1),
        lambda: context.fsync(-1),
    ):
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            await call()
        assert (caught.value.errno, caught.value.filename in ("<fd 1048576>", "<fd -1>")) == (errno.EBADF, True)


# ---- poll


@pytest.mark.parametrize("engine", ["aio", "workers"])
async def test_poll_returns_ready_events(engine: Any, disk: Path) -> None:
    path, _ = make_file(disk)
    async with AIOContext(engine=engine) as context:
        with empty_pipe() as (reader, writer):
            assert await context.poll(writer, select.POLLOUT | select.POLLIN) == select.POLLOUT
            with move_on_after(0.01) as scope:
                await context.poll(reader, select.POLLIN)
            assert scope.cancelled_caught
            got: list[int] = []

            async def watch() -> None:
                got.append(await context.poll(reader, select.POLLIN))

            async with create_task_group() as group:
                group.start_soon(watch)
                group.start_soon(watch)
                await until_blocked()
                os.write(writer, b"x")
            assert got == [select.POLLIN] * 2
        ours, theirs = socket.socketpair()
        theirs.close()
        assert await context.poll(ours.fileno(), select.POLLIN) == select.POLLIN | select.POLLHUP
        ours.close()
        with opened(path, os.O_RDONLY) as fd:
            assert await context.poll(fd, select.POLLIN) == select.POLLIN
        with pytest.raises(OSError, match="Bad file descriptor"):
            await context.poll(1 << 20, select.POLLIN)
        for bad in (-1, 1 << 16):
            with pytest.raises(ValueError, match="mask"):
                await context.poll(0, bad)


@pytest.mark.parametrize("engine", ["aio", "workers"])
async def test_poll_of_a_regular_file_for_what_never_comes_can_be_cancelled_and_ended(engine: Any, disk: Path) -> None:
    path, _ = make_file(disk)
    with opened(path, os.O_RDONLY) as fd:
        async with AIOContext(engine=engine) as context, create_task_group() as group:
            with move_on_after(0.01) as scope:
                await context.poll(fd, select.POLLPRI)
            assert scope.cancelled_caught

            async def fail() -> None:
                with pytest.raises(OSError, match="canceled"):
                    await context.poll(fd, select.POLLPRI)

            group.start_soon(fail)
            await until_blocked()
            await context.aclose()
    for thread in [*living]:
        thread.join()


@pytest.mark.parametrize("engine", ["aio", "workers"])
async def test_polls_of_two_tasks_share_the_data(engine: Any) -> None:
    got: list[bytes] = []
    async with AIOContext(engine=engine) as context:
        with empty_pipe() as (reader, writer):
            os.set_blocking(reader, False)

            async def consume() -> None:
                while True:
                    assert await context.poll(reader, select.POLLIN) == select.POLLIN
                    try:
                        got.append(os.read(reader, 1))
                    except BlockingIOError:  # the other was quicker
                        continue
                    return

            async with create_task_group() as group:
                group.start_soon(consume)
                group.start_soon(consume)
                for byte in (b"1", b"2"):
                    await until_blocked()
                    os.write(writer, byte)
    assert sorted(got) == [b"1", b"2"]


# ---- statistics


@pytest.mark.usefixtures("no_read_slept")
async def test_statistics_count_requests_by_lane(disk: Path) -> None:
    path, _ = make_file(disk)
    async with AIOContext(4, max_workers=2) as context:
        assert context.statistics() == AIOStatistics("aio", 4, *[0] * 14)
        async with open_aio(path, "r+b", context=context) as file:
            with pinned(path):
                for _ in range(3):
                    await file.pread(1000, 0)
            await file.pwrite(b"12345", 0)
            before = context.statistics()
            assert (before.submitted_inline, before.submitted_workers) == (3, 3)  # a look at the mount, open, write
            still_cached = 0
            for _ in attempts("a read of a page that was not cached"):
                evict(path)
                await file.pread(BLOCK, 0)
                if context.statistics().submitted_workers > before.submitted_workers:
                    break
                still_cached += 1
        now = context.statistics()
        # A look at the mount, open, write, the read that missed, close.
        assert (now.submitted_inline, now.submitted_workers, now.submitted_kernel) == (3 + still_cached, 5, 0)
        assert (now.completed, now.bytes_read, now.bytes_written) == (8 + still_cached, 3000 + (1 + still_cached) * BLOCK, 5)
        with empty_pipe() as (reader, _):
            async with create_task_group() as group:
                for _ in range(6):
                    group.start_soon(context.poll, reader, select.POLLIN)
                await until_blocked()
                now = context.statistics()
                assert (now.in_flight, now.queued, now.submit_calls >= 1) == (4, 2, True)
                group.cancel_scope.cancel()
        now = context.statistics()
        assert (now.in_flight, now.queued, now.cancelled) == (0, 0, 6)
        with pytest.raises(AttributeError):
            now.completed = 0  # type: ignore[misc]


async def test_uncached_reads_of_many_tasks_are_complete(disk: Path) -> None:
    path, data = make_file(disk, 1 << 20)
    results: dict[int, bytes] = {}
    async with AIOContext(8) as context, open_aio(path, context=context) as file:
        for _ in range(5):
            evict(path)

            async def read(i: int) -> None:
                results[i] = await file.pread(BLOCK, i * BLOCK)

            async with create_task_group() as group:
                for i in range(256):
                    group.start_soon(read, i)
            assert results == {i: data[i * BLOCK :][:BLOCK] for i in range(256)}
            results.clear()


async def test_statistics_count_each_range_by_its_size(disk: Path) -> None:
    path, _ = make_file(disk)
    async with AIOContext(4) as context, open_aio(path, direct=True, context=context) as file:
        await file.read_ranges([(0, 512), (BLOCK, 8 * BLOCK)])
        assert context.statistics().bytes_read == 512 + 8 * BLOCK


async def test_statistics_count_a_sync_that_continues_for_others_once(disk: Path) -> None:
    path, _ = make_file(disk)

    async def sync(scope: CancelScope) -> None:
        with scope:
            await file.fsync()

    async with AIOContext(4, max_workers=1) as context, open_aio(path, "r+b", context=context) as file:
        before = context.statistics()
        async with busy(context) as pipe, create_task_group() as group:
            group.start_soon(file.pwrite, b"x", 0)
            await until_blocked()
            scopes = [CancelScope(), CancelScope()]
            for scope in scopes:
                group.start_soon(sync, scope)
                await until_blocked()
            scopes[0].cancel()
            await until_blocked()
            pipe.release()
        after = context.statistics()
    # What kept the worker busy, the write, two syncs.
    assert (after.completed - before.completed, after.cancelled - before.cancelled) == (3, 1)


async def test_statistics_count_each_completed_request_once(disk: Path) -> None:
    path, _ = make_file(disk)
    for _ in attempts("three blocks of which none was cached"):
        async with AIOContext(4, max_workers=1) as context:
            async with open_aio(path, context=context, abandon_on_cancel=True) as file:
                before = context.statistics()
                with empty_pipe() as (reader, _):
                    async with create_task_group() as group:
                        group.start_soon(context.poll, reader, select.POLLIN)
                        await until_blocked()
                        group.cancel_scope.cancel()
                evict(path)
                async with busy(context), create_task_group() as group:
                    group.start_soon(file.read_blocks, [0, BLOCK, 2 * BLOCK], 32 << 10)  # withdrawn
                    await until_blocked()
                    group.cancel_scope.cancel()
            after = context.statistics()
        cached = after.submitted_inline - before.submitted_inline
        # What kept the worker busy, the close and the blocks that were cached; the poll and the other blocks.
        assert (after.completed - before.completed, after.cancelled - before.cancelled) == (2 + cached, 4 - cached)
        if not cached:
            break
