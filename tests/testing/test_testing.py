"""FaultyContext: requests fail, are short, late or hang as a test says, and the engine does with them what it does with real ones."""

from __future__ import annotations

import errno
import gc
import importlib
import os
import pkgutil
import random
import select
import time
from typing import TYPE_CHECKING, Any, get_args

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_aio
from trio_aio import _requests, open_aio
from trio_aio._engine.descriptor import Descriptor
from trio_aio._engine.mending import start_ready
from trio_aio._engine.withdrawal import cancel_polls
from trio_aio._lanes.threads import living
from trio_aio._requests.base import Request, State
from trio_aio._requests.direct import WidenedRead
from trio_aio._requests.metadata import Stat
from trio_aio._requests.poll import Poll
from trio_aio._requests.sync import Sync
from trio_aio.testing import FaultyContext
from trio_aio.testing._rules import OperationName

from ..support.engine_loop import fail_once
from ..support.files import BLOCK, content, is_open, make_file, opened
from ..support.pipes import empty_pipe, full_pipe
from ..support.tasks import cancelled_while_blocked, until_idle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from trio_aio import AsyncFile

pytestmark = pytest.mark.trio
LANES = pytest.mark.parametrize("lane", ["workers", "kernel"])


@pytest.fixture
async def context() -> AsyncIterator[FaultyContext]:
    async with FaultyContext() as made:
        yield made


async def _open(context: FaultyContext, path: Path, lane: str, **options: Any) -> AsyncFile:
    """Open a file whose requests take `lane`."""
    file = await open_aio(path, "r+b", direct=lane == "kernel", context=context, **options)
    await until_idle(context)  # the memory for direct I/O is there
    return file


def _went_to(context: FaultyContext, lane: str) -> int:
    return getattr(context.statistics(), f"submitted_{lane}")  # type: ignore[no-any-return]


# ---- without a fault


@LANES
async def test_faulty_context_without_faults_behaves_like_a_context(disk: Path, context: FaultyContext, lane: str) -> None:
    path, data = make_file(disk)
    async with await _open(context, path, lane) as file:
        before = _went_to(context, lane)
        assert await file.pread(BLOCK, BLOCK) == data[BLOCK : 2 * BLOCK]
        assert await file.pwrite(data[:BLOCK], 0) == BLOCK
        await file.fsync()
        assert _went_to(context, lane) >= before + 3
    assert context.statistics().submitted_inline == 0
    await until_idle(context)


async def test_every_operation_has_a_public_name() -> None:
    def kinds(kind: type[Request]) -> Iterator[type[Request]]:
        for each in kind.__subclasses__():
            yield each
            yield from kinds(each)

    for module in pkgutil.iter_modules(_requests.__path__):
        importlib.import_module(f"trio_aio._requests.{module.name}")
    public = [kind for kind in kinds(Request) if kind.__module__.startswith("trio_aio.") and not kind.__name__.startswith("_")]
    assert {kind.__name__ for kind in public if kind.fault_name is None} == {"Transfer", "InSlab", "PiecesRequest"}  # bases
    assert {kind.fault_name for kind in public} - {None} == set(get_args(OperationName))


async def test_fault_with_invalid_arguments_is_refused() -> None:
    context = FaultyContext()
    bad: list[Callable[[], object]] = [
        lambda: context.fail(0),
        lambda: context.fail(-errno.EIO),
        lambda: context.fail(errno.EIO, turn=0),
        lambda: context.fail(errno.EIO, times=0),
        lambda: context.fail(errno.EIO, after=-1),
        lambda: context.fail(errno.EIO, operation="fsync"),  # type: ignore[arg-type]
        lambda: context.short(0),
        lambda: context.short(1, operation="sync"),  # type: ignore[arg-type]
        lambda: context.delay(-1),
        lambda: context.delay(float("nan")),
        lambda: context.hang(turn=0),
    ]
    for ask in bad:
        with pytest.raises(ValueError, match=r"errno|turn|times|after|operation|nbytes|seconds"):
            ask()
    with pytest.raises(TypeError):
        context.short(1.5)  # type: ignore[arg-type]
    assert not context._faults.rules


# ---- which requests


@LANES
async def test_fault_applies_to_its_file_operation_and_count(disk: Path, context: FaultyContext, lane: str) -> None:
    path, data = make_file(disk)
    other, _ = make_file(disk, name="other")
    async with await _open(context, path, lane) as file, await _open(context, other, lane) as second:
        fault = context.fail(errno.EIO, file=disk / "." / "file", operation="read", turn=2)
        await second.pread(BLOCK, 0)
        await file.pwrite(data[:BLOCK], 0)
        await file.pread(BLOCK, 0)
        assert fault.hits == 0
        with pytest.raises(OSError, match="Input/output error") as caught:
            await file.pread(BLOCK, 0)
        assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))
        assert await file.pread(BLOCK, 0) == data[:BLOCK]
        assert fault.hits == 1


@LANES
@pytest.mark.parametrize("turn", [1, 3, 5])
async def test_sync_that_calls_share_meets_the_fault_of_each(disk: Path, context: FaultyContext, lane: str, turn: int) -> None:
    path, data = make_file(disk)
    async with await _open(context, path, lane) as file:
        await file.pwrite(data[:BLOCK], 0)
        fault = context.fail(errno.EIO, operation="sync", turn=turn)
        before = context.statistics()

        async def sync() -> None:
            with pytest.raises(OSError, match="Input/output error"):
                await file.fdatasync()

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(sync)
        now = context.statistics()
        assert now.submitted_kernel + now.submitted_workers - before.submitted_kernel - before.submitted_workers == 1
        assert fault.hits == 1
        await file.pwrite(data[:BLOCK], 0)


async def test_fault_can_be_for_a_descriptor(disk: Path, context: FaultyContext) -> None:
    path, data = make_file(disk)
    with opened(path, os.O_RDONLY) as fd, opened(path, os.O_RDONLY) as other, context.fail(errno.EIO, file=fd):
        with pytest.raises(OSError, match="Input/output"):
            await context.pread(fd, 10, 0)
        assert await context.pread(other, 10, 0) == data[:10]


async def test_fault_applies_times_often_until_the_end_of_with(disk: Path, context: FaultyContext) -> None:
    path, _ = make_file(disk)

    async def failures(count: int) -> list[bool]:
        failed = []
        for _ in range(count):
            try:
                await file.pread(10, 0)
                failed.append(False)
            except OSError:
                failed.append(True)
        return failed

    async with open_aio(path, context=context) as file:
        context.fail(errno.EIO, operation="read", turn=2, times=2)
        assert await failures(5) == [False, True, True, False, False]
        with context.fail(errno.EIO, operation="read") as fault:
            assert await failures(3) == [True, True, True]
        assert await failures(1) == [False]
        assert fault.hits == 3
        assert not context._faults.rules


async def test_faults_apply_in_the_order_of_their_calls(disk: Path, context: FaultyContext) -> None:
    path, _ = make_file(disk)
    async with open_aio(path, context=context) as file:
        context.fail(errno.EIO, operation="read", times=1)
        context.fail(errno.ENODATA, operation="read", times=2)
        for number in (errno.EIO, errno.ENODATA):  # the second has counted the first request too
            with pytest.raises(OSError, match=os.strerror(number)):
                await file.pread(10, 0)
        await file.pread(10, 0)


# ---- fail


@LANES
async def test_failed_request_has_no_effect(disk: Path, context: FaultyContext, lane: str) -> None:
    path, data = make_file(disk)
    async with await _open(context, path, lane) as file:
        calls: dict[str, list[Callable[[], Awaitable[object]]]] = {
            "read": [lambda: file.pread(BLOCK, 0), lambda: file.preadinto(bytearray(BLOCK), 0), lambda: file.preadv([bytearray(BLOCK)], 0)],
            "write": [lambda: file.pwrite(bytes(BLOCK), 0), lambda: file.pwritev([bytes(BLOCK)], 0), lambda: file.write(bytes(BLOCK))],
            "sync": [file.fsync, file.fdatasync],
            "stat": [file.stat, file.size],
            "truncate": [lambda: file.truncate(0)],
            "fallocate": [lambda: file.fallocate(0, 1 << 20)],
            "seek": [lambda: file.seek(0, os.SEEK_DATA)],
        }
        for operation, made in calls.items():
            for call in made:
                with context.fail(errno.ENOSPC, operation=operation) as fault:  # type: ignore[arg-type]
                    with pytest.raises(OSError, match="No space left") as caught:
                        await call()
                    assert operation != "write" or caught.value.characters_written == 0  # type: ignore[attr-defined]
                assert fault.hits == 1
                await call() if operation in ("read", "stat", "seek") else None
        assert await file.tell() == 0
    assert path.read_bytes() == data
    await until_idle(context)


@LANES
@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EOPNOTSUPP])
async def test_injected_errno_known_to_the_engine_is_raised(disk: Path, context: FaultyContext, lane: str, number: int) -> None:
    path, _ = make_file(disk)
    async with await _open(context, path, lane) as file:
        with context.fail(number, operation="read"), pytest.raises(OSError, match=os.strerror(number)):
            await file.pread(BLOCK, 0)
        await file.pread(BLOCK, 0)
        with context.fail(number, operation="write"), pytest.raises(OSError, match=os.strerror(number)):
            await file.pwrite(bytes(BLOCK), 0)
        await file.pwrite(bytes(BLOCK), 0)


@LANES
async def test_injected_interruption_repeats_the_request(disk: Path, context: FaultyContext, lane: str) -> None:
    path, data = make_file(disk)
    async with await _open(context, path, lane) as file:
        with context.fail(errno.EINTR) as fault:
            assert await file.pread(BLOCK, 0) == data[:BLOCK]
            assert await file.pwrite(data[:BLOCK], 0) == BLOCK
            await file.fsync()
        assert fault.hits == 3


@LANES
async def test_write_can_fail_in_the_middle(disk: Path, context: FaultyContext, lane: str) -> None:
    path, data = make_file(disk, 4 * BLOCK)
    new = content(4 * BLOCK, seed=1)
    async with await _open(context, path, lane) as file:
        for write in (file.pwrite, lambda data, at: file.pwritev([data[:100], data[100 : BLOCK + 1], data[BLOCK + 1 :]], at)):
            path.write_bytes(data)
            with context.fail(errno.ENOSPC, after=2 * BLOCK), pytest.raises(OSError, match="No space") as caught:
                await write(new, 0)  # type: ignore[operator]
            assert caught.value.characters_written == 2 * BLOCK  # type: ignore[attr-defined]
            assert path.read_bytes() == new[: 2 * BLOCK] + data[2 * BLOCK :]


async def test_append_can_fail_in_the_middle_or_be_short(disk: Path, context: FaultyContext) -> None:
    path, data = make_file(disk, 10)
    async with open_aio(path, "ab", context=context) as file:
        with context.fail(errno.ENOSPC, after=3), pytest.raises(OSError, match="No space") as caught:
            await file.write(b"abcdef")
        assert caught.value.characters_written == 3  # type: ignore[attr-defined]
        with context.short(2) as fault:
            assert await file.write(b"012345") == 6
        assert fault.hits == 1
        assert await file.tell() == 19
    assert path.read_bytes() == data + b"abc012345"


async def test_failed_open_leaves_nothing(disk: Path, context: FaultyContext) -> None:
    path = disk / "new"
    with context.fail(errno.EMFILE, operation="open"), pytest.raises(OSError, match="Too many open files") as caught:
        await open_aio(path, "wb", context=context)
    assert caught.value.filename == str(path)
    assert not path.exists()
    with opened(make_file(disk)[0], os.O_RDONLY) as fd, context.fail(errno.EIO, operation="open"), pytest.raises(OSError, match="Input"):
        await open_aio(fd, context=context)


async def test_failed_close_has_closed_and_needs_a_fault_by_name(disk: Path, context: FaultyContext) -> None:
    path, _ = make_file(disk)
    file = await open_aio(path, context=context)
    fd = file.fileno()
    with context.fail(errno.EDQUOT, operation="close"), pytest.raises(OSError, match="quota"):
        await file.aclose()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    file = await open_aio(path, context=context)
    with context.fail(errno.EIO):
        await file.aclose()


async def test_failed_fsync_raises_in_its_caller(disk: Path, context: FaultyContext) -> None:
    path, _ = make_file(disk)
    async with open_aio(path, "r+b", context=context) as file:
        await file.pwrite(b"x", 0)
        with context.fail(errno.EIO, operation="sync", times=1), pytest.raises(OSError, match="Input/output"):
            await file.fsync()
        await file.pwrite(b"x", 0)  # the failed sync may have lost it
        await file.fsync()


# ---- short


@LANES
async def test_short_count_is_continued(disk: Path, context: FaultyContext, lane: str) -> None:
    path, data = make_file(disk, 4 * BLOCK)
    new = content(4 * BLOCK, seed=1)
    async with await _open(context, path, lane) as file:
        with context.short(BLOCK) as fault:
            assert await file.pread(4 * BLOCK, 0) == data
            buffer = bytearray(4 * BLOCK)
            assert await file.preadinto(buffer, 0) == 4 * BLOCK
            assert buffer == data
            parts = [bytearray(100), bytearray(BLOCK), bytearray(3 * BLOCK - 100)]
            assert await file.preadv(parts, 0) == 4 * BLOCK
            assert b"".join(parts) == data
            assert await file.pwrite(new, 0) == 4 * BLOCK
            assert path.read_bytes() == new
            assert await file.pwritev([data[:1], data[1 : BLOCK + 1], data[BLOCK + 1 :]], 0) == 4 * BLOCK
            assert path.read_bytes() == data
        assert fault.hits == 5
    await until_idle(context)


@LANES
async def test_short_count_at_the_end_of_the_file_is_returned(disk: Path, context: FaultyContext, lane: str) -> None:
    path, data = make_file(disk, 4 * BLOCK)
    async with await _open(context, path, lane) as file:
        with context.short(BLOCK, end=True, operation="read"):
            assert await file.pread(3 * BLOCK, 0) == data[:BLOCK]
            assert await file.pread(BLOCK, BLOCK) == data[BLOCK : 2 * BLOCK]  # no more was asked for
        with context.short(0, end=True, operation="read", times=1):
            assert await file.pread(BLOCK, 0) == b""
        with context.short(BLOCK, end=True, operation="write"), pytest.raises(OSError, match="Input/output") as caught:
            await file.pwrite(bytes(2 * BLOCK), 0)
        assert caught.value.characters_written == BLOCK  # type: ignore[attr-defined]
    assert path.read_bytes() == bytes(BLOCK) + data[BLOCK:]


async def test_request_shorter_than_the_fault_is_complete(disk: Path, context: FaultyContext) -> None:
    path, data = make_file(disk, 10)
    async with open_aio(path, context=context) as file:
        with context.short(5), context.fail(errno.EIO, after=5, operation="read"):
            assert await file.pread(5, 0) == data[:5]
            assert await file.pread(100, 7) == data[7:]  # the file ended before the cut


# ---- calls of many requests: each piece counts


@LANES
async def test_batch_piece_with_fault_fails_by_its_count(disk: Path, context: FaultyContext, lane: str) -> None:
    path, data = make_file(disk)
    offsets = [i * 4 * BLOCK for i in range(10)]
    ranges = [(offset, BLOCK) for offset in offsets]
    new = [(offset, content(BLOCK, seed=offset + 1)) for offset in offsets]
    async with await _open(context, path, lane) as file:
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: file.read_ranges(ranges),
            lambda: file.read_blocks(offsets, BLOCK),
            lambda: file.write_ranges(new),
        ]
        for turn in (1, 5, 10):
            for call in calls:
                path.write_bytes(data)
                with context.fail(errno.EIO, turn=turn) as fault, pytest.raises(OSError, match=f"at offset {offsets[turn - 1]}:") as caught:
                    await call()
                assert (caught.value.errno, fault.hits) == (errno.EIO, 1)
                now = path.read_bytes()
                done = turn - 1 if call is calls[2] else 0
                assert [now[offset : offset + BLOCK] == piece for offset, piece in new] == [True] * done + [False] * (10 - done)
            assert caught.value.characters_written == done * BLOCK  # type: ignore[attr-defined]
        assert await file.write_ranges(new) == 10 * BLOCK
        assert await file.read_ranges(ranges) == [piece for _, piece in new]
    await until_idle(context)


@LANES
async def test_failed_piece_of_batch_counts_its_first_part(disk: Path, context: FaultyContext, lane: str) -> None:
    path, _ = make_file(disk)
    new = [(i * 4 * BLOCK, content(2 * BLOCK, seed=i + 1)) for i in range(3)]
    async with await _open(context, path, lane) as file:
        for error in (None, errno.ENOSPC):
            fault = context.fail(error, after=BLOCK, turn=2) if error else context.short(BLOCK, end=True, turn=2)
            with fault, pytest.raises(OSError, match=f"at offset {new[1][0]}:") as caught:
                await file.write_ranges(new)
            assert caught.value.characters_written == 3 * BLOCK  # type: ignore[attr-defined]
    now = path.read_bytes()
    assert now[4 * BLOCK : 5 * BLOCK] == new[1][1][:BLOCK]


async def test_batch_with_a_pending_fault_can_be_cancelled(disk: Path) -> None:
    path, data = make_file(disk)
    async with FaultyContext(8, max_workers=1) as context, await _open(context, path, "workers") as file:
        with full_pipe() as pipe:
            assert context._core.engine is not None
            context._core.engine.submit(pipe.request())  # the only worker is busy
            with context.short(1, end=True, operation="write"):
                assert await cancelled_while_blocked(lambda: file.write_ranges([(0, b"new"), (BLOCK, b"new")]))
            pipe.release()
            await until_idle(context)
        assert path.read_bytes() == data
        assert await file.write_ranges([(0, b"new")]) == 3


@LANES
async def test_batch_pieces_meet_every_fault(disk: Path, context: FaultyContext, lane: str) -> None:
    path, data = make_file(disk)
    ranges = [(i * 4 * BLOCK, 2 * BLOCK) for i in range(8)]
    whole = [data[offset : offset + size] for offset, size in ranges]
    async with await _open(context, path, lane) as file:
        with context.short(BLOCK), context.fail(errno.EINTR):
            assert await file.read_ranges(ranges) == whole
        with context.short(BLOCK, end=True, turn=8):
            assert await file.read_ranges(ranges) == [*whole[:7], whole[7][:BLOCK]]
        with context.short(BLOCK, end=True, turn=3), pytest.raises(EOFError, match=f"offset {8 * BLOCK}"):
            await file.read_blocks([offset for offset, _ in ranges], 2 * BLOCK)
        with context.short(4 * BLOCK, end=True):
            assert await file.read_ranges(ranges) == whole
        with context.delay(0.01, turn=2) as late:
            assert await file.read_ranges(ranges) == whole
        assert late.hits == 1
        async with trio.open_nursery() as nursery:
            with context.hang(operation="read", turn=5) as hang:
                nursery.start_soon(file.read_ranges, ranges)
                await wait_all_tasks_blocked()
                assert hang.held == 1
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await wait_all_tasks_blocked()
                    assert hang.held == 1
        assert await file.read_ranges(ranges) == whole
    await until_idle(context)


@LANES
async def test_chunks_and_writer_meet_faults(disk: Path, context: FaultyContext, lane: str) -> None:
    path, data = make_file(disk)
    async with await _open(context, path, lane) as file:
        got = []

        async def collect() -> None:
            async for chunk in file.chunks(BLOCK):
                got.append(chunk)

        async def write() -> None:
            async with file.writer(size=BLOCK) as writer:
                for _ in range(8):
                    await writer.write(bytes(BLOCK))

        with context.fail(errno.EIO, operation="read", turn=3), pytest.raises(OSError, match="Input/output"):
            await collect()
        assert b"".join(got) == data[: 2 * BLOCK]
        with context.short(BLOCK, operation="read"):
            assert b"".join([chunk async for chunk in file.chunks(4 * BLOCK)]) == data
        with context.fail(errno.ENOSPC, operation="write", turn=2), pytest.raises(OSError, match=f"writing at offset {BLOCK}"):
            await write()
    await until_idle(context)


# ---- late


@LANES
async def test_late_request_is_complete(disk: Path, context: FaultyContext, lane: str) -> None:
    path, data = make_file(disk)
    async with await _open(context, path, lane) as file:
        started = time.monotonic()
        with context.delay(0.05, operation="read") as fault:
            got: dict[int, bytes] = {}

            async def read(i: int) -> None:
                got[i] = await file.pread(BLOCK, i * BLOCK)

            async with trio.open_nursery() as nursery:
                for i in range(8):
                    nursery.start_soon(read, i)
                await wait_all_tasks_blocked()
                assert context.statistics().in_flight >= 8
        assert time.monotonic() >= started + 0.05
        assert got == {i: data[i * BLOCK : (i + 1) * BLOCK] for i in range(8)}
        assert fault.hits == 8


# ---- hang


@LANES
async def test_hung_request_keeps_its_slot_and_continues_when_released(disk: Path, context: FaultyContext, lane: str) -> None:
    path, data = make_file(disk)
    async with await _open(context, path, lane) as file:
        with context.hang(file=path, operation="read", times=1) as hang:
            results: list[bytes] = []

            async def read() -> None:
                results.append(await file.pread(BLOCK, 0))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await wait_all_tasks_blocked()
                assert (hang.held, context.statistics().in_flight) == (1, 1)
                assert await file.pread(BLOCK, BLOCK) == data[BLOCK : 2 * BLOCK]  # others do not wait for it
                assert not results
                hang.release()
            assert results == [data[:BLOCK]]
            assert (hang.held, hang.hits) == (0, 1)
            hang.release()
    await until_idle(context)


@LANES
async def test_hung_write_cannot_be_cancelled_and_keeps_its_result(disk: Path, context: FaultyContext, lane: str) -> None:
    path, data = make_file(disk)
    new = content(BLOCK, seed=1)
    async with await _open(context, path, lane) as file:
        with context.hang(operation="write") as hang, trio.CancelScope() as scope:

            async def cancel_then_release() -> None:
                await wait_all_tasks_blocked()
                scope.cancel()
                with trio.CancelScope(shield=True):
                    await wait_all_tasks_blocked()
                    assert hang.held == 1
                    assert path.read_bytes() == data
                    hang.release()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_then_release)
                assert await file.pwrite(new, 0) == BLOCK
                assert scope.cancel_called
    assert path.read_bytes() == new + data[BLOCK:]


@LANES
async def test_abandoned_hung_read_keeps_its_memory_until_released(disk: Path, context: FaultyContext, lane: str) -> None:
    path, data = make_file(disk)
    async with await _open(context, path, lane, abandon_on_cancel=True) as file:
        buffer = bytearray(b"-" * BLOCK)
        with context.hang(operation="read") as hang:
            for _ in range(3):
                assert await cancelled_while_blocked(lambda: file.pread(BLOCK, 0))
            if lane == "workers":
                assert await cancelled_while_blocked(lambda: file.preadinto(buffer, 0))
                with pytest.raises(BufferError):
                    buffer.append(0)
            gc.collect()
            assert hang.held == context.statistics().in_flight == 3 + (lane == "workers")
        await until_idle(context)
        if lane == "workers":
            assert buffer == data[:BLOCK]
        assert await file.pread(BLOCK, 0) == data[:BLOCK]


@LANES
async def test_hung_request_can_be_made_to_fail(disk: Path, context: FaultyContext, lane: str) -> None:
    path, _ = make_file(disk)
    async with await _open(context, path, lane) as file:
        with context.hang(operation="sync") as hang:

            async def fail() -> None:
                await wait_all_tasks_blocked()
                hang.release(errno.EIO)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)
                with pytest.raises(OSError, match="Input/output"):
                    await file.fsync()
    async with await _open(context, path, lane) as file:  # a failed sync is remembered until the file is opened again
        await file.fsync()


async def test_close_waits_for_an_injected_hang(disk: Path, context: FaultyContext) -> None:
    path, _ = make_file(disk)
    file = await open_aio(path, context=context)
    fd = file.fileno()
    with context.hang(operation="read") as hang:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.pread, 10, 0)
            await wait_all_tasks_blocked()
            nursery.start_soon(file.aclose)
            await wait_all_tasks_blocked()
            os.fstat(fd)
            hang.release()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


async def test_hung_request_released_from_a_thread_continues(disk: Path, context: FaultyContext) -> None:
    path, data = make_file(disk)
    async with open_aio(path, context=context) as file:
        with context.hang(operation="read") as hang:

            async def release() -> None:
                await wait_all_tasks_blocked()
                await trio.to_thread.run_sync(hang.release)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(release)
                assert await file.pread(10, 0) == data[:10]


async def test_requests_queued_after_hung_ones_can_be_cancelled(disk: Path) -> None:
    path, data = make_file(disk)
    async with FaultyContext(2) as context, open_aio(path, context=context) as file:
        results: dict[int, bytes] = {}

        async def read(i: int) -> None:
            results[i] = await file.pread(BLOCK, i * BLOCK)

        with context.hang(operation="read") as hang:
            async with trio.open_nursery() as nursery:
                for i in range(2):
                    nursery.start_soon(read, i)
                await wait_all_tasks_blocked()
                nursery.start_soon(read, 2)
                await wait_all_tasks_blocked()
                assert (hang.held, context.statistics().queued) == (2, 1)
                assert await cancelled_while_blocked(lambda: file.pread(BLOCK, 0))  # it had no slot: it never ran
                hang.release()
        assert results == {i: data[i * BLOCK : (i + 1) * BLOCK] for i in range(3)}
        assert hang.hits == 4


async def test_hung_poll_can_be_cancelled_and_ends_with_its_context() -> None:
    async with FaultyContext(2) as context:
        with empty_pipe() as (reader, writer):
            os.write(writer, b"x")
            hang = context.hang(operation="poll", times=2)
            assert await cancelled_while_blocked(lambda: context.poll(reader, select.POLLIN))
            await until_idle(context)
            async with trio.open_nursery() as nursery:

                async def poll() -> None:
                    with pytest.raises(OSError, match="canceled"):
                        await context.poll(reader, select.POLLIN)

                nursery.start_soon(poll)
                await wait_all_tasks_blocked()
                assert hang.held == 1
                await context.aclose()
            hang.release()  # there is nothing left of it


async def test_poll_with_a_pending_fault_can_be_cancelled(context: FaultyContext) -> None:
    with empty_pipe() as (reader, _), context.fail(errno.EIO, operation="poll") as fault:
        request = Poll(Descriptor(reader), select.POLLIN)
        context._core.check().submit(request)
        assert context._core.check().cancel(request)
    assert request.state is State.WITHDRAWN
    assert fault.hits == 1
    await until_idle(context)


async def test_poll_with_a_pending_fault_ends_with_its_context(context: FaultyContext) -> None:
    with empty_pipe() as (reader, _), context.fail(errno.EIO, operation="poll"):
        request = Poll(Descriptor(reader), select.POLLIN)
        context._core.check().submit(request)
        cancel_polls(context._core.check())  # as closing does
    assert request.finished
    assert request.result == -errno.ECANCELED


async def test_released_poll_returns_ready_events() -> None:
    async with FaultyContext() as context:
        with empty_pipe() as (reader, writer), context.hang(operation="poll") as hang:
            os.write(writer, b"x")
            async with trio.open_nursery() as nursery:

                async def release() -> None:
                    await wait_all_tasks_blocked()
                    hang.release()

                nursery.start_soon(release)
                assert await context.poll(reader, select.POLLIN) == select.POLLIN


async def test_context_close_leaves_an_abandoned_request_to_a_thread(disk: Path) -> None:
    path, data = make_file(disk)
    buffer = bytearray(BLOCK)
    async with FaultyContext() as context:
        file = await open_aio(path, context=context, abandon_on_cancel=True)
        hang = context.hang(operation="read")
        assert await cancelled_while_blocked(lambda: file.preadinto(buffer, 0))
    assert buffer == bytes(BLOCK)
    assert any(thread.name.startswith("trio_aio drain") for thread in living)
    hang.release()
    for thread in [*living]:
        if thread.name.startswith("trio_aio drain"):
            thread.join()
    assert buffer == data[:BLOCK]
    await file.aclose()


async def test_hung_close_that_fails_has_closed_the_descriptor(disk: Path) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context, trio.open_nursery() as nursery:
        file = await open_aio(path, "r+b", direct=True, context=context)
        await file.pwrite(b"z", 3)
        fd = file.fileno()
        hang = context.hang(operation="close")

        async def close() -> None:
            with pytest.raises(OSError, match="Input/output error"):
                await file.aclose()

        nursery.start_soon(close)
        await wait_all_tasks_blocked()
        hang.release(errno.EIO)
        while is_open(fd):
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 8))])
async def test_random_faults_and_cancellations_leave_writes_as_reported(disk: Path, seed: int) -> None:
    size, stride = 97, 1000
    path = disk / "file"
    for number in range(25):
        chance = random.Random(f"{seed} {number}")
        count = chance.choice([20, 100, 300])
        path.write_bytes(bytes(stride * (count + 1)))
        done = [0] * count  # bytes that each write says it has written
        pieces = [bytes([i % 255 + 1]) * size for i in range(count)]
        scopes = [trio.CancelScope() for _ in range(count)]

        async def write(file: AsyncFile, i: int, done: list[int], pieces: list[bytes], scope: trio.CancelScope) -> None:
            with scope:
                try:
                    if i % 3 == 0:
                        done[i] = await file.write_ranges([(i * stride + 1, pieces[i])])
                    elif i % 3 == 1:
                        done[i] = await file.pwritev([pieces[i][:50], pieces[i][50:]], i * stride + 1)
                    else:
                        done[i] = await file.pwrite(pieces[i], i * stride + 1)
                except OSError as error:
                    done[i] = error.characters_written  # type: ignore[attr-defined]

        async with FaultyContext(chance.choice([4, 16, 128]), max_workers=chance.choice([1, 2, 4])) as context:
            async with open_aio(path, "r+b", direct=chance.random() < 0.4, context=context) as file:
                for _ in range(chance.randrange(5)):
                    turn = chance.randrange(1, count)
                    chance.choice(
                        [
                            lambda turn=turn: context.short(3, operation="write", turn=turn),
                            lambda turn=turn: context.short(3, end=True, operation="write", turn=turn),
                            lambda turn=turn: context.fail(errno.ENOSPC, after=5, operation="write", turn=turn),
                            lambda turn=turn: context.fail(errno.ENOSPC, operation="write", turn=turn),
                            lambda turn=turn: context.delay(0.001, operation="write", turn=turn),
                        ]
                    )()
                async with trio.open_nursery() as nursery:
                    for i, scope in enumerate(scopes):
                        nursery.start_soon(write, file, i, done, pieces, scope)
                    for _ in range(chance.randrange(4)):
                        await trio.lowlevel.checkpoint()
                    for scope in chance.sample(scopes, count // 3):
                        scope.cancel()
                    nursery.start_soon(file.fsync)
            await until_idle(context)
        data = path.read_bytes()
        for i, piece in enumerate(pieces):
            assert data[i * stride + 1 :][:size] == piece[: done[i]].ljust(size, b"\0"), (number, i)


async def test_completion_that_raises_leaves_later_answers_for_the_next_tick(disk: Path) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context, open_aio(path, context=context) as file:
        engine = context._core.engine
        assert engine is not None
        fail_once(engine, RuntimeError("a bug"))
        requests = [Stat(file._descriptor) for _ in range(3)]
        with context.fail(errno.EIO, operation="stat"):
            for request in requests:
                engine.submit(request)
        with pytest.raises(RuntimeError, match="a bug"):
            engine.reap(drain=True)
        await until_idle(context)  # by the reaper, which no other task wakes
        assert [request.result for request in requests] == [-errno.EIO] * 3


async def test_faults_forget_withdrawn_reads(disk: Path) -> None:
    path, data = make_file(disk)
    async with FaultyContext(8, max_workers=1) as context, await _open(context, path, "workers") as file:
        engine: Any = context._core.engine
        with full_pipe() as pipe:
            engine.submit(pipe.request())  # the only worker is busy
            with context.short(100, operation="read"):
                for _ in range(5):
                    assert await cancelled_while_blocked(lambda: file.pread(BLOCK, 0))
                assert not context._faults._cuts
            pipe.release()
            await until_idle(context)
        assert await file.pread(BLOCK, 0) == data[:BLOCK]


async def test_close_returns_when_the_last_task_abandons_its_read(tmp_path: Path) -> None:
    path, _ = make_file(tmp_path)
    with opened(path, os.O_RDONLY) as fd:
        async with FaultyContext() as context, trio.open_nursery() as nursery:
            file = await open_aio(fd, "rb", closefd=False, context=context, abandon_on_cancel=True)
            scope = trio.CancelScope()

            async def read() -> None:
                with scope:
                    await file.pread(BLOCK, 0)

            with context.hang(operation="read") as hang:
                nursery.start_soon(read)
                await wait_all_tasks_blocked()
                assert hang.held == 1
                async with trio.open_nursery() as closing:
                    closing.start_soon(context.aclose)
                    await wait_all_tasks_blocked()
                    scope.cancel()
                assert scope.cancelled_caught
                assert hang.held == 1


async def test_close_returns_when_the_last_request_is_cancelled(disk: Path) -> None:
    path, _ = make_file(disk)
    with opened(path, os.O_RDWR | os.O_DIRECT) as fd:
        async with FaultyContext(1) as context, trio.open_nursery() as nursery:
            file = await open_aio(fd, "r+b", closefd=False, context=context)
            await until_idle(context)
            assert await file.pread(BLOCK, 0)
            engine = context._core.check()
            first, last = (Sync(file._descriptor, data_only=False), WidenedRead(file._descriptor, BLOCK, 0, 0))
            flush, engine.flush = engine.flush, lambda: None  # type: ignore[method-assign]
            engine.submit(first)
            engine.syncs.release()  # as the end of a tick does
            start_ready(engine)
            engine.submit(last)
            assert (first.state, last.state) == (State.KERNEL_PREPARED, State.KERNEL_QUEUED)
            nursery.start_soon(context.aclose)
            await wait_all_tasks_blocked()
            assert engine.cancel(first)
            assert engine.cancel(last)
            engine.flush = flush  # type: ignore[method-assign]


async def test_fault_is_for_every_name_of_a_call_wherever_it_starts_from(disk: Path, context: FaultyContext) -> None:
    (disk / "tree").mkdir()
    for name in ("one", "two", "three"):
        (disk / name).write_text(name)
        (disk / "tree" / name).write_text(name)
    (disk / "link").symlink_to("tree")
    top = await trio_aio.open_directory(disk, context=context)
    async with top:
        calls: list[tuple[str, Callable[[], Awaitable[Any]]]] = [
            ("new", lambda: trio_aio.os.rename(disk / "one", disk / "new", context=context)),
            ("new", lambda: trio_aio.os.link(disk / "one", disk / "new", context=context)),
            ("new", lambda: trio_aio.os.symlink("one", disk / "new", context=context)),
            ("new", lambda: trio_aio.copy_file(disk / "one", disk / "new", context=context)),
            ("new", lambda: top.rename("one", "new")),
            ("one", lambda: top.rename("one", "new")),
            ("new", lambda: top.mkdir("new")),
            ("new", lambda: top.write_bytes("new", b"")),
            ("tree/one", lambda: top.unlink("tree/one")),
            ("link/one", lambda: top.unlink("tree/one")),
            ("tree", lambda: top.listdir("tree")),
            ("one", lambda: trio_aio.read_bytes(disk / "one", context=context)),
            ("one", lambda: trio_aio.read_bytes(disk / "one", offset=1, context=context)),
            ("one", lambda: trio_aio.read_text(disk / "one", context=context)),
            ("new", lambda: trio_aio.write_bytes(disk / "new", b"data", context=context)),
            ("new", lambda: trio_aio.write_text(disk / "new", "text", context=context)),
            ("new", lambda: trio_aio.write_bytes(disk / "new", b"data", atomic=True, context=context)),
            ("tree", lambda: trio_aio.remove_tree(disk / "tree", context=context)),
            ("tree/three", lambda: trio_aio.remove_tree(disk / "tree", context=context)),
        ]
        for name, call in calls:
            with context.fail(errno.EDQUOT, file=disk / name) as fault:
                with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
                    await call()
                assert fault.hits == 1, name
        with context.fail(errno.EDQUOT, file=disk / "absent") as fault:
            await top.symlink("absent", "points to it")
        assert fault.hits == 0
    assert sorted(os.listdir(disk)) == ["link", "one", "points to it", "three", "tree", "two"]


async def test_fault_of_one_of_many_files_is_that_of_its_path(disk: Path, context: FaultyContext) -> None:
    paths = [disk / f"{i}" for i in range(10)]
    for path in paths:
        path.write_text(path.name)
    with context.fail(errno.EIO, file=paths[7]):
        found = await trio_aio.read_files(paths, on_error="return", context=context)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
            await trio_aio.read_files(paths, context=context)
    assert str(caught.value.filename) == str(paths[7])
    assert [data for data in found if isinstance(data, bytes)] == [b"%d" % i for i in range(10) if i != 7]
    assert isinstance(found[7], OSError)
    assert (found[7].errno, str(found[7].filename)) == (errno.EIO, str(paths[7]))


@pytest.mark.parametrize("rule", [{"times": 1}, {"turn": 1}, {"turn": 3}])
async def test_fault_counts_each_file_that_read_files_reads(disk: Path, context: FaultyContext, rule: dict[str, int]) -> None:
    paths = [disk / f"{i}" for i in range(5)]
    for path in paths:
        path.write_text(path.name)
    with context.fail(errno.EIO, operation="read", **rule) as fault:
        found = await trio_aio.read_files(paths, on_error="return", context=context)
    assert fault.hits == 1
    bad = rule.get("turn", 1) - 1
    assert [isinstance(data, OSError) for data in found] == [i == bad for i in range(5)]
    with context.short(0, end=True, file=paths[2]) as fault:
        assert await trio_aio.read_files(paths, context=context) == [b"0", b"1", b"", b"3", b"4"]
    assert fault.hits == 1


async def test_fault_of_a_path_needs_no_working_directory_and_takes_nothing_else_for_a_name(
    disk: Path, context: FaultyContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("file", "user.y"):
        (disk / name).write_text(name)
    os.setxattr(disk / "file", "user.y", b"value")
    (disk / "gone").mkdir()
    monkeypatch.chdir(disk)
    with context.fail(errno.EIO, file="user.y") as fault:
        assert await trio_aio.os.getxattr("file", "user.y", context=context) == b"value"
    with context.fail(errno.EIO, file=disk) as other, pytest.raises(FileNotFoundError):
        await trio_aio.copy_file("file", "absent/copy", context=context)
    monkeypatch.chdir(disk / "gone")
    (disk / "gone").rmdir()
    with context.fail(errno.EIO, file=disk / "user.y"):
        await trio_aio.copy_file(disk / "file", disk / "copy", context=context)
    assert (fault.hits, other.hits) == (0, 0)
    assert (disk / "copy").read_text() == "file"
