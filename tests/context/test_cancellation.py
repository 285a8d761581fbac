"""A call that raises Cancelled had no effect; what cannot be stopped is waited for; memory is owned until the kernel is done."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import sys
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio import CancelScope, create_task_group, move_on_after
from anyio.lowlevel import checkpoint

from trio_aio import AIOContext, AsyncFile, open_aio
from trio_aio._lanes import inline
from trio_aio._native import lib
from trio_aio._requests.base import Request, State

from ..support.files import BLOCK, content, make_file
from ..support.page_cache import attempts, evict, pinned
from ..support.pipes import empty_pipe, full_pipe
from ..support.tasks import busy, cancel_at_tick, cancel_when_blocked, cancelled_while_blocked, idle, until_blocked, until_idle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


# ---- it never ran


@pytest.mark.anyio
@pytest.mark.parametrize("slots", [1, 8])
async def test_cancelled_write_not_started_never_runs(disk: Path, slots: int) -> None:
    path, data = make_file(disk)
    async with AIOContext(slots, max_workers=1) as context, open_aio(path, "r+b", context=context) as file:
        async with busy(context):
            assert await cancelled_while_blocked(lambda: file.pwrite(b"never", 0))
            assert context.statistics().cancelled == 1
        await until_idle(context)
        assert await file.pread(BLOCK, 0) == data[:BLOCK]


@pytest.mark.anyio
async def test_cancelled_sync_waiting_for_writes_never_runs(disk: Path) -> None:
    path, _ = make_file(disk)
    async with AIOContext(8, max_workers=1) as context, open_aio(path, "r+b", context=context) as file:
        async with busy(context), create_task_group() as group:
            group.start_soon(file.pwrite, b"x", 0)
            await until_blocked()
            assert await cancelled_while_blocked(file.fsync)
            group.cancel_scope.cancel()
        assert context.statistics().cancelled == 2


@pytest.mark.anyio
@pytest.mark.parametrize("direct", [False, True])
async def test_call_in_cancelled_scope_has_no_effect(disk: Path, direct: bool) -> None:
    path, data = make_file(disk)
    async with open_aio(path, "r+b", direct=direct) as file:
        await until_idle(file.context)
        before = file.context.statistics()
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: file.pread(BLOCK, 0),
            lambda: file.preadinto(bytearray(BLOCK), 0),
            lambda: file.preadv([bytearray(BLOCK)], 0),
            lambda: file.pwrite(bytes(BLOCK), 0),
            lambda: file.pwritev([bytes(BLOCK)], 0),
            lambda: file.read(BLOCK),
            file.readall,
            lambda: file.readinto(bytearray(BLOCK)),
            lambda: file.write(bytes(BLOCK)),
            lambda: file.seek(0, os.SEEK_END),
            lambda: file.seek(5),
            file.tell,
            lambda: file.truncate(0),
            lambda: file.fallocate(0, 1 << 20),
            file.flush,
            file.fsync,
            file.fdatasync,
            file.stat,
            file.size,
            lambda: file.pread(0, 0),
            lambda: file.context.poll(0, select.POLLIN),
            lambda: _open(disk / "new"),
        ]
        for call in calls:
            with CancelScope() as scope:
                scope.cancel()
                await call()
            assert scope.cancelled_caught
            await until_idle(file.context)  # memory for the next direct request may be in the making
            assert file.context.statistics() == before
        assert await file.tell() == 0
    assert path.read_bytes() == data
    assert not (disk / "new").exists()


async def _open(path: Path) -> AsyncFile:
    return await open_aio(path, "wb")


# ---- it is in flight


@pytest.mark.anyio
async def test_accepted_io_cancel_raises_cancelled_at_completion() -> None:
    async with AIOContext(1) as context:
        with empty_pipe() as (reader, writer):
            assert await cancelled_while_blocked(lambda: context.poll(reader, select.POLLIN))
            assert idle(context)
            os.write(writer, b"x")
            assert await context.poll(reader, select.POLLIN) == select.POLLIN  # the only slot is free again
        assert context.statistics().cancelled == 1


@pytest.mark.anyio
async def test_poll_ready_before_the_cancel_returns_its_result() -> None:
    async with AIOContext() as context:
        with empty_pipe() as (reader, writer):
            os.write(writer, b"x")
            with CancelScope() as scope, _cancel_behind_submit(context, scope):
                assert await context.poll(reader, select.POLLIN) == select.POLLIN
                assert scope.cancel_called
        assert context.statistics().cancelled == 0


@pytest.mark.anyio
@pytest.mark.parametrize("writing", [False, True])
async def test_cancelled_disk_request_in_flight_returns_and_cancels_at_the_next_checkpoint(disk: Path, writing: bool) -> None:
    path, data = make_file(disk)
    async with open_aio(path, "r+b", direct=True) as file:
        await _warm(file)
        for _ in range(1000):
            before = file.context.statistics()
            results: list[object] = []
            with CancelScope() as scope:
                with _cancel_behind_submit(file.context, scope):
                    results.append(await (file.pwrite(data[BLOCK : 2 * BLOCK], 0) if writing else file.pread(BLOCK, BLOCK)))
                assert scope.cancel_called
                await checkpoint()
                results.append("this is never reached")
            assert scope.cancelled_caught
            after = file.context.statistics()
            if (after.submitted_kernel, after.retried) == (before.submitted_kernel + 1, before.retried) and results:
                break  # else the kernel would have slept, and it was a worker that was stopped; or no submitter had taken it yet
        assert results == [BLOCK if writing else data[BLOCK : 2 * BLOCK]]
        if writing:
            assert await file.pread(BLOCK, 0) == data[BLOCK : 2 * BLOCK]


async def _warm(file: AsyncFile) -> None:
    """Have the memory for direct I/O made, so that the kernel lane is taken."""
    while (await file.pread(BLOCK, 0)) and not file.context.statistics().submitted_kernel:
        pass


_SHORT_WAYS = ("start_short", "gather_short")


class _cancel_behind_submit:
    """Cancel a scope right behind the next submit, before anybody could reap."""

    def __init__(self, context: AIOContext, scope: CancelScope) -> None:
        self._engine: Any = context._core.engine
        self._scope: CancelScope = scope

    def __enter__(self) -> None:
        submit = self._engine.submit

        def submit_and_cancel(request: Request) -> None:
            submit(request)
            self._scope.cancel()

        self._engine.submit = submit_and_cancel
        kernel = self._engine.kernel
        if kernel is None:
            return
        for name in _SHORT_WAYS:
            setattr(kernel, name, self._and_cancel(getattr(kernel, name)))

    def _and_cancel(self, start: Callable[..., int]) -> Callable[..., int]:
        def start_and_cancel(*arguments: Any) -> int:
            answer = start(*arguments)
            self._scope.cancel()
            return answer

        return start_and_cancel

    def __exit__(self, *_: object) -> None:
        del self._engine.submit
        if self._engine.kernel is not None:
            for name in _SHORT_WAYS:
                self._engine.kernel.__dict__.pop(name, None)


@pytest.mark.anyio
async def test_cancelled_write_started_by_a_worker_is_waited_for(disk: Path) -> None:
    async with AIOContext(max_workers=1) as context:
        with full_pipe() as pipe, CancelScope() as scope:
            request = pipe.request()

            async def cancel_twice_then_release() -> None:
                while not pipe.begun:
                    await checkpoint()
                scope.cancel()
                scope.cancel()
                with CancelScope(shield=True):
                    await until_blocked()
                    assert request.state is State.WORKER_IN_FLIGHT
                    pipe.release()

            async with create_task_group() as group:
                group.start_soon(cancel_twice_then_release)
                # A pipe has no position: the write succeeds and the lseek behind it fails.
                with pytest.raises(OSError, match="Illegal seek"):
                    await context._core.submit_and_wait(request)
        assert idle(context)


@pytest.mark.anyio
async def test_cancel_of_the_scope_around_a_file_closes_it(disk: Path) -> None:
    path, _ = make_file(disk)
    with CancelScope() as scope:
        async with open_aio(path) as file:
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert file.closed
    assert idle(file.context)


@pytest.mark.anyio
async def test_cancel_while_closing_still_closes_the_file(disk: Path) -> None:
    path, _ = make_file(disk)
    async with AIOContext(max_workers=1) as context:
        file = await open_aio(path, context=context)
        fd = file.fileno()
        with CancelScope() as scope:
            async with busy(context) as pipe:

                async def cancel() -> None:
                    await until_blocked()
                    scope.cancel()
                    os.fstat(fd)
                    pipe.release()

                async with create_task_group() as group:
                    group.start_soon(cancel)
                    with pytest.raises(anyio.get_cancelled_exc_class()):
                        await file.aclose()
                    with pytest.raises(OSError, match="Bad file descriptor"):
                        os.fstat(fd)
        assert scope.cancel_called
        assert file.closed


@pytest.mark.anyio
async def test_poll_cancelled_with_the_owner_of_its_context_raises_cancelled() -> None:
    with empty_pipe() as (reader, _), CancelScope() as scope:
        async with AIOContext() as context, create_task_group() as group:
            group.start_soon(context.poll, reader, select.POLLIN)
            group.start_soon(context.poll, reader, select.POLLIN)
            await until_blocked()
            scope.cancel()
    assert scope.cancelled_caught


@pytest.mark.anyio
async def test_cancel_of_outer_scope_is_caught_by_the_outer_scope() -> None:
    async with AIOContext() as context:
        with empty_pipe() as (reader, _), CancelScope() as outer:
            async with create_task_group() as group:
                group.start_soon(cancel_when_blocked, outer)
                with move_on_after(1000) as inner:
                    await context.poll(reader, select.POLLIN)
        assert (outer.cancelled_caught, inner.cancelled_caught, idle(context)) == (True, False, True)


@pytest.mark.anyio
async def test_passed_deadline_cancels_before_any_effect(disk: Path) -> None:
    path, data = make_file(disk)
    async with open_aio(path, "r+b") as file:
        with CancelScope(deadline=anyio.current_time() - 1) as scope:
            await file.pwrite(b"never", 0)
        assert scope.cancelled_caught
    assert path.read_bytes() == data


# ---- abandon_on_cancel


@pytest.mark.anyio
async def test_abandoned_read_raises_at_once_and_keeps_its_memory(disk: Path) -> None:
    path, data = make_file(disk)
    for _ in attempts("a read that had to wait"):
        async with AIOContext(max_workers=1) as context:
            file = await open_aio(path, context=context, abandon_on_cancel=True)
            engine: Any = context._core.engine
            buffer = bytearray(b"-" * BLOCK)
            async with create_task_group() as group:
                held: list[Request] = []
                submit, withdraw = engine.submit, engine.workers.withdraw
                async with busy(context):
                    engine.submit = lambda request, submit=submit, held=held: (held.append(request), submit(request))
                    engine.workers.withdraw = lambda _: False  # as if a worker had begun it
                    evict(path)
                    with CancelScope() as scope:
                        group.start_soon(cancel_when_blocked, scope)
                        await file.preadinto(buffer, 0)
                    if held:
                        assert scope.cancelled_caught
                        assert buffer == b"-" * BLOCK
                        with pytest.raises(BufferError):  # still exported
                            buffer.append(0)
                        assert (held[-1].abandoned, held[-1].finished) == (True, False)
                        assert engine.outstanding - engine.abandoned == 1
                engine.workers.withdraw = withdraw
                engine.submit = submit
                while held and not held[-1].finished:
                    await checkpoint()
            assert buffer == data[:BLOCK]  # the late result went to the memory it was promised
            await file.aclose()
        if held:
            break


@pytest.mark.anyio
async def test_slabs_of_abandoned_direct_reads_are_reused(disk: Path) -> None:
    path, _ = make_file(disk)
    async with AIOContext() as context, open_aio(path, direct=True, abandon_on_cancel=True, context=context) as file:
        await _warm(file)
        pool = context._core.engine.buffers  # type: ignore[union-attr]
        for _ in range(50):
            with CancelScope() as scope, _cancel_behind_submit(context, scope):
                await file.pread(BLOCK, 0)
            await until_idle(context)
        assert sum(chunk.in_use for chunk in {slab.page for slab in pool._free[BLOCK]}) == 0
        assert len(pool._free[BLOCK]) == 512


@pytest.mark.anyio
async def test_released_memory_is_never_written(disk: Path) -> None:
    path, _ = make_file(disk, 256 * BLOCK)
    async with open_aio(path, direct=True, abandon_on_cancel=True) as file:
        await _warm(file)
        for _ in range(20):
            with CancelScope() as scope:
                async with create_task_group() as group:
                    for i in range(64):
                        group.start_soon(file.pread, BLOCK, i * BLOCK)
                    await checkpoint()
                    scope.cancel()
            gc.collect()
            fresh = [bytearray(BLOCK) for _ in range(64)]
            slabs = [file.context._core.engine.buffers.take(BLOCK) for _ in range(64)]  # type: ignore[union-attr]
            before = [slab.copy_out(BLOCK) for slab in slabs]
            await until_idle(file.context)
            assert not any(map(any, fresh))
            assert [slab.copy_out(BLOCK) for slab in slabs] == before
            for slab in slabs:
                file.context._core.engine.buffers.return_slab(slab)  # type: ignore[union-attr]


# ---- at any moment


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio")
@pytest.mark.parametrize("lane", ["inline", "workers", "kernel"])
@pytest.mark.parametrize(
    "name",
    [
        *("pread", "preadinto", "pwrite", "pwritev", "read", "write", "truncate", "fsync", "stat", "readall"),
        *("read_blocks", "read_ranges", "write_ranges", "pwrite unaligned", "chunks", "writer"),
    ],
)
async def test_cancel_at_every_tick_is_all_or_nothing(disk: Path, lane: str, name: str) -> None:
    path, data = make_file(disk, 8 * BLOCK)
    new = content(BLOCK, seed=1)
    calls: dict[str, Callable[[AsyncFile], Awaitable[object]]] = {
        "pread": lambda file: file.pread(BLOCK, BLOCK),
        "preadinto": lambda file: file.preadinto(bytearray(BLOCK), BLOCK),
        "pwrite": lambda file: file.pwrite(new, 0),
        "pwritev": lambda file: file.pwritev([new[:1024], new[1024:]], 0),
        "read": lambda file: file.read(BLOCK),
        "readall": lambda file: file.readall(),
        "write": lambda file: file.write(new),
        "truncate": lambda file: file.truncate(BLOCK),
        "fsync": lambda file: file.fsync(),
        "stat": lambda file: file.stat(),
        "read_blocks": lambda file: file.read_blocks([0, BLOCK, 3 * BLOCK], BLOCK),
        "read_ranges": lambda file: file.read_ranges([(0, 10), (3 * BLOCK, BLOCK)]),
        "write_ranges": lambda file: file.write_ranges([(0, new[:1024]), (1024, new[1024:1500]), (1500, new[1500:])]),
        "pwrite unaligned": lambda file: file.pwrite(new[:1000], 0),
        "chunks": _all_chunks,
        "writer": lambda file: _write_behind(file, new),
    }
    changed = dict.fromkeys(("pwrite", "pwritev", "write", "write_ranges", "writer"), new + data[BLOCK:])
    changed |= {"truncate": data[:BLOCK], "pwrite unaligned": new[:1000] + data[1000:]}
    async with open_aio(path, "r+b", direct=lane == "kernel") as file:
        if lane == "kernel":
            await _warm(file)
        for ticks in range(1, 400):
            path.write_bytes(data)
            await file.seek(0)
            if lane == "workers":
                evict(path)
            with CancelScope() as scope:
                completed = False
                with cancel_at_tick(scope, ticks):
                    await calls[name](file)
                    completed = True
                    before = scope.cancel_called
            left = path.read_bytes()
            if name == "writer" and not completed:  # a beginning of it, or all: leaving writes it, and then raises Cancelled
                assert left in [new[:n] + data[n:] for n in range(0, BLOCK + 1, 1024)]
            else:
                assert left == (changed.get(name, data) if completed else data)
            assert await file.tell() == ((BLOCK if name != "readall" else len(data)) * (completed and name in ("read", "write", "readall")))
            await until_idle(file.context)
            if completed and not before:
                break
        else:
            pytest.fail("it never completed")


async def _all_chunks(file: AsyncFile) -> None:
    async with file.chunks(BLOCK, depth=2) as chunks:
        async for chunk in chunks:
            assert len(chunk) == BLOCK


async def _write_behind(file: AsyncFile, data: bytes) -> None:
    async with file.writer(size=1024, depth=2) as writer:
        await writer.write(data)


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio")
async def test_cancel_at_every_tick_of_aclose_closes(disk: Path) -> None:
    path, _ = make_file(disk)
    for ticks in range(1, 100):
        file = await open_aio(path)
        fd = file.fileno()
        raised = True
        with CancelScope() as scope:
            with cancel_at_tick(scope, ticks):
                await file.aclose()
            raised = False
            cancelled_in_time = scope.cancel_called
        assert raised == scope.cancelled_caught
        assert raised or not cancelled_in_time
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        if not scope.cancel_called:
            return
    pytest.fail("it never completed")


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio")
@pytest.mark.parametrize("engine", ["aio", "workers"])
async def test_cancel_at_every_tick_of_poll_frees_the_slot(engine: Any) -> None:
    async with AIOContext(1, engine=engine) as context:
        for ticks in range(1, 10):
            with empty_pipe() as (reader, writer), CancelScope() as scope, cancel_at_tick(scope, ticks, awake=True):
                if ticks == 9:  # it is never cancelled: what was left by the others would be in its way
                    os.write(writer, b"x")
                assert await context.poll(reader, select.POLLIN) == select.POLLIN
            assert scope.cancelled_caught == (ticks < 9)
            assert idle(context)


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio")
async def test_cancel_at_every_tick_of_open_leaves_no_descriptor(disk: Path) -> None:
    path, _ = make_file(disk)
    for ticks in range(1, 100):
        file = None
        with CancelScope() as scope:
            with cancel_at_tick(scope, ticks):
                file = await open_aio(path)
        if file is not None:
            await file.aclose()
            if not scope.cancel_called:
                return
    pytest.fail("it never completed")


@pytest.fixture
def _sigint() -> Iterator[None]:
    # A shell starts what it puts into the background with SIGINT ignored, and trio then leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_sigint")
def test_keyboard_interrupt_with_requests_in_flight_ends_the_run(run: Callable[..., Any], disk: Path) -> None:
    path, _ = make_file(disk)

    async def main() -> None:
        async with open_aio(path) as file, open_aio(path, direct=True) as direct:
            with empty_pipe() as (reader, _):
                async with create_task_group() as group:
                    group.start_soon(file.context.poll, reader, select.POLLIN)
                    for i in range(16):
                        group.start_soon(direct.pread, BLOCK, i * BLOCK)
                    await checkpoint()
                    signal.raise_signal(signal.SIGINT)
                    await anyio.sleep_forever()

    with pytest.raises(BaseException) as caught:  # noqa: PT011 - bare, or in the group's
        run(main)
    error = caught.value
    # On asyncio before 3.11 it is the cancellation of the main task, and no more.
    kinds = KeyboardInterrupt if sys.version_info >= (3, 11) else (KeyboardInterrupt, asyncio.CancelledError)
    assert isinstance(error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error, kinds)


@pytest.mark.anyio
async def test_cancelled_read_partly_in_the_buffer_is_waited_for(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shortened(fd: int, residency: Any, memory: Any, size: int, offset: int) -> int:
        # As if the rest was dropped between the question for it and the read.
        return lib.taio_pread_cached(fd, residency, memory, min(size, BLOCK), offset)

    monkeypatch.setattr(inline, "_pread_cached", shortened)
    path, data = make_file(disk, 64 * BLOCK)
    for _ in attempts("a range of which the first page alone was cached"):
        memory = bytearray(b"\xee" * (4 * BLOCK))
        results: list[int] = []
        scope = CancelScope()

        async def read(file: AsyncFile, memory: bytearray = memory, results: list[int] = results, scope: CancelScope = scope) -> None:
            with scope:
                results.append(await file.preadinto(memory, 8 * BLOCK))

        async with AIOContext(max_workers=1) as context, open_aio(path, context=context) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            evict(path)
            with pinned(path, 8 * BLOCK, BLOCK):
                async with busy(context) as pipe, create_task_group() as tasks:
                    tasks.start_soon(read, file)
                    await until_blocked()
                    waited = not results
                    assert memory[:BLOCK] == data[8 * BLOCK : 9 * BLOCK]
                    scope.cancel()
                    await until_blocked()
                    pipe.release()
            assert results == [len(memory)]
            assert memory == data[8 * BLOCK : 12 * BLOCK]
        if waited:
            break
