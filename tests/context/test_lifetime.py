"""Files, contexts and runs begin and end, in every order, and nothing hangs, leaks or is lost."""

from __future__ import annotations

import gc
import os
import select
import subprocess
import sys
import threading
import traceback
import warnings
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint

from trio_aio import AIOContext, AsyncFile, current_context, open_aio
from trio_aio._context.context import MAX_WORKERS
from trio_aio._context.leasing import Lease
from trio_aio._engine.drain import drain
from trio_aio._engine.withdrawal import abandon as abandon_request
from trio_aio._lanes.threads import Background, living
from trio_aio._lanes.workers import WorkerLane
from trio_aio._memory.slabs import BufferPool

from ..support.engine_loop import fail_once
from ..support.files import BLOCK, content, is_open, make_file
from ..support.pipes import empty_pipe, full_pipe
from ..support.tasks import busy, cancelled_while_blocked, until_blocked, until_idle, write_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    Run = Callable[..., Any]


def kernel_contexts() -> int:
    return Path("/proc/self/maps").read_text(encoding="ascii", errors="replace").count("/[aio]")


# ---- exceptions of the body


@pytest.mark.anyio
@pytest.mark.parametrize("cancelled", [False, True])
async def test_exception_in_the_body_of_a_file_propagates_unchanged(disk: Path, cancelled: bool) -> None:
    path, _ = make_file(disk)
    boom = ValueError("boom")
    for abandon in (False, True):
        with CancelScope() as scope:
            with pytest.raises(ValueError, match="boom") as caught:
                await _raise_in(open_aio(path, abandon_on_cancel=abandon), boom, cancel=scope if cancelled else None)
            assert caught.value is boom
            assert boom.__context__ is None
        assert not scope.cancelled_caught


@pytest.mark.anyio
async def test_exception_in_the_body_of_a_context_propagates_unchanged() -> None:
    context = AIOContext()
    with pytest.raises(KeyError, match="x"):
        await _raise_in(context, KeyError("x"), cancel=None)
    with pytest.raises(RuntimeError, match="closed"):
        await context.pread(0, 1, 0)


async def _raise_in(manager: AbstractAsyncContextManager[object], error: Exception, *, cancel: CancelScope | None) -> None:
    async with manager:
        if cancel is not None:
            cancel.cancel()
        raise error


# ---- files


@pytest.mark.slow
@pytest.mark.anyio
async def test_thousand_files_opened_and_closed_leave_nothing(disk: Path) -> None:
    path, data = make_file(disk)
    descriptors, threads, contexts = set(), set(), set()
    for i in range(1000):
        async with open_aio(path, direct=i % 2 == 1) as file:
            assert await file.pread(512, 512) == data[512:1024]
        descriptors.add(len(os.listdir("/proc/self/fd")))
        threads.add(threading.active_count())
        if i % 37 == 0:  # the list of the process's memory is long
            contexts.add(kernel_contexts())
    assert len(descriptors) == 1
    assert contexts <= {0, 1}
    assert max(threads) <= min(threads) + MAX_WORKERS


@pytest.mark.anyio
async def test_close_twice_or_by_several_tasks_succeeds(disk: Path) -> None:
    path, _ = make_file(disk)
    file = await open_aio(path)
    fd = file.fileno()
    async with create_task_group() as group:
        for _ in range(5):
            group.start_soon(file.aclose)
    await file.aclose()
    assert not is_open(fd)
    with pytest.raises(ValueError, match="I/O operation on closed file"):
        await file.pread(1, 0)


@pytest.mark.anyio
async def test_close_waits_for_the_requests_of_the_file(disk: Path) -> None:
    path, data = make_file(disk)
    async with AIOContext(max_workers=1) as context:
        file = await open_aio(path, "r+b", context=context)
        results: list[int] = []

        async def write() -> None:
            results.append(await file.pwrite(data[:10], 0))

        with full_pipe() as pipe:
            async with create_task_group() as group:
                group.start_soon(write_to, context, pipe)
                await until_blocked()
                group.start_soon(write)
                await until_blocked()
                group.start_soon(file.aclose)
                await until_blocked()
                assert file.closed
                assert is_open(file._descriptor.fd)
                pipe.release()
        assert results == [10]
        assert not is_open(file._descriptor.fd)


def _drop(files: list[AsyncFile], *, elsewhere: bool = False) -> None:
    if elsewhere:
        thread = threading.Thread(target=files.clear)
        thread.start()
        thread.join()
    else:
        files.clear()
    gc.collect()


@pytest.mark.anyio
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_dropped_file_warns_and_is_closed(disk: Path, elsewhere: bool) -> None:
    path, _ = make_file(disk)
    files = [await open_aio(path)]
    fd, context = files[0].fileno(), files[0].context
    with pytest.warns(ResourceWarning, match=r"unclosed file <trio_aio\.AsyncFile name=.* mode='rb'>$"):
        _drop(files, elsewhere=elsewhere)
    while is_open(fd) or context.statistics().in_flight:
        await checkpoint()


@pytest.mark.anyio
async def test_dropped_file_is_closed_when_warnings_are_errors(disk: Path) -> None:
    path, _ = make_file(disk)
    files = [await open_aio(path)]
    fd = files[0].fileno()
    with warnings.catch_warnings(), _unraisable() as raised:
        warnings.simplefilter("error")
        _drop(files)
    assert [type(error) for error in raised] == [ResourceWarning]
    while is_open(fd):
        await checkpoint()


@contextmanager
def _unraisable() -> Iterator[list[BaseException | None]]:
    """Gather what finalizers raise."""
    raised: list[BaseException | None] = []
    before = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: raised.append(unraisable.exc_value)
    try:
        yield raised
    finally:
        sys.unraisablehook = before


@pytest.mark.anyio
async def test_dropped_file_is_closed_after_its_request_in_flight(disk: Path) -> None:
    path, _ = make_file(disk)
    async with AIOContext(max_workers=1) as context:
        files = [await open_aio(path, "r+b", context=context, abandon_on_cancel=True)]
        fd = files[0].fileno()
        engine: Any = context._core.engine
        withdraw, engine.workers.withdraw = engine.workers.withdraw, lambda _: False  # as if a worker had begun it
        async with busy(context):
            assert await cancelled_while_blocked(lambda: files[0].pread(1 << 20, 0))
            with pytest.warns(ResourceWarning, match="unclosed file"):
                _drop(files)
            await until_blocked()
            assert is_open(fd)
        engine.workers.withdraw = withdraw
        while is_open(fd):
            await checkpoint()


@pytest.mark.anyio
async def test_close_of_file_with_hung_read_can_be_abandoned(disk: Path) -> None:
    path, _ = make_file(disk)
    async with AIOContext(max_workers=1) as context:
        file = await open_aio(path, context=context, abandon_on_cancel=True)
        fd = file.fileno()
        engine: Any = context._core.engine
        withdraw, engine.workers.withdraw = engine.workers.withdraw, lambda _: False  # as if a worker had begun it
        async with busy(context):
            assert await cancelled_while_blocked(lambda: file.pread(1 << 20, 0))
            assert not await cancelled_while_blocked(file.aclose)  # gave up waiting, and leaves the close to the context
            assert file.closed
            assert is_open(fd)
        engine.workers.withdraw = withdraw
        while is_open(fd):
            await checkpoint()


@pytest.mark.anyio
async def test_close_by_two_tasks_while_the_context_closes_runs_once(disk: Path) -> None:
    path, _ = make_file(disk)
    async with AIOContext(max_workers=1) as context:
        file = await open_aio(path, context=context)
        closed: list[int] = []
        engine: Any = context._core.engine
        drop = engine.drops.add
        engine.drops.add = lambda descriptor, request: (closed.append(descriptor.fd), drop(descriptor, request))
        async with busy(context) as pipe, create_task_group() as group:
            group.start_soon(context.aclose)
            await until_blocked()
            group.start_soon(file.aclose)
            group.start_soon(file.aclose)
            await until_blocked()
            pipe.release()
        assert closed == [file._descriptor.fd]
        del engine.drops.add


@pytest.mark.anyio
async def test_file_dropped_while_workers_exit_is_closed(disk: Path) -> None:
    path, _ = make_file(disk)
    async with AIOContext() as context:
        files = [await open_aio(path, context=context)]
        fd = files[0].fileno()
        engine: Any = context._core.engine
        stop = engine.stop

        def stop_and_drop() -> None:
            stop()
            files.clear()
            gc.collect()

        engine.stop = stop_and_drop
        with pytest.warns(ResourceWarning, match="unclosed file"):
            await context.aclose()
        del engine.stop
    assert not is_open(fd)


@pytest.mark.anyio
async def test_file_of_closed_context_can_only_be_closed(disk: Path) -> None:
    path, _ = make_file(disk)
    async with AIOContext() as context:
        file = await open_aio(path, context=context)
        fd = file.fileno()
    with pytest.raises(RuntimeError, match="closed"):
        await file.pread(1, 0)
    await file.aclose()
    assert not is_open(fd)


# ---- contexts


@pytest.mark.anyio
async def test_context_close_waits_for_requests_while_the_loop_runs(disk: Path) -> None:
    path, data = make_file(disk)
    ticks = 0
    done: list[str] = []

    async def tick() -> None:
        nonlocal ticks
        while "closed" not in done:
            ticks += 1
            await checkpoint()

    async with AIOContext(max_workers=1) as context, create_task_group() as group:
        file = await open_aio(path, context=context)

        async def read() -> None:
            assert await file.readall() == data
            done.append("read")

        async def close() -> None:
            await context.aclose()
            done.append("closed")

        with full_pipe() as pipe:
            group.start_soon(write_to, context, pipe)
            await until_blocked()
            group.start_soon(file.stat)
            await until_blocked()
            group.start_soon(close)
            await until_blocked()
            with pytest.raises(RuntimeError, match="closing"):
                await context.pread(0, 1, 0)
            group.start_soon(tick)
            for _ in range(100):
                await checkpoint()
            assert ticks > 50
            assert not done
            pipe.release()
            while not done:
                await checkpoint()
        await file.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("engine", ["aio", "workers"])
@pytest.mark.parametrize("waiting", [False, True])
async def test_poll_fails_when_its_context_closes(engine: Any, waiting: bool) -> None:
    with empty_pipe() as (reader, _):
        async with AIOContext(1, engine=engine) as context, create_task_group() as group:

            async def watch() -> None:
                with pytest.raises(OSError, match="cancel") as caught:
                    await context.poll(reader, select.POLLIN)
                assert isinstance(caught.value, OSError)

            group.start_soon(watch)
            await until_blocked()
            if waiting:  # the second has no slot
                group.start_soon(watch)
                await until_blocked()
            group.start_soon(context.aclose)
            group.start_soon(context.aclose)


@pytest.mark.anyio
async def test_context_closes_in_cancelled_scope() -> None:
    with CancelScope() as scope:
        async with AIOContext() as context:
            scope.cancel()
            await checkpoint()
    with pytest.raises(RuntimeError, match="closed"):
        await context.fsync(0)


@pytest.mark.anyio
@pytest.mark.parametrize("slots", [1, 2, 7, 128])
@pytest.mark.parametrize("direct", [False, True])
async def test_reads_of_more_tasks_than_slots_are_complete(disk: Path, slots: int, direct: bool) -> None:
    path, data = make_file(disk)
    async with AIOContext(slots, max_workers=2) as context, open_aio(path, direct=direct, context=context) as file:
        for count in {slots - 1, slots, slots + 1, 2 * slots, 4 * slots}:
            results: dict[int, bytes] = {}

            async def read(i: int, results: dict[int, bytes] = results) -> None:
                results[i] = await file.pread(BLOCK, i % 64 * BLOCK)

            async with create_task_group() as group:
                for i in range(count):
                    group.start_soon(read, i)
            assert results == {i: data[i % 64 * BLOCK :][:BLOCK] for i in range(count)}
        await until_idle(context)  # memory for the next direct read may be in the making
        assert (context.statistics().in_flight, context.statistics().queued) == (0, 0)


# ---- runs


def test_run_without_kernel_lane_creates_no_kernel_context(run: Run, disk: Path) -> None:
    path, data = make_file(disk)
    before = kernel_contexts()

    async def main() -> None:
        async with open_aio(path) as file:
            assert await file.read() == data
        assert kernel_contexts() == before

    run(main)


def test_fifty_runs_share_one_kernel_context(run: Run, disk: Path) -> None:
    path, data = make_file(disk)

    async def main() -> int:
        async with open_aio(path, direct=True) as file:
            while not file.context.statistics().submitted_kernel:
                assert await file.pread(BLOCK, 0) == data[:BLOCK]
            kernel = file.context._core.engine.kernel  # type: ignore[union-attr]
            assert kernel is not None
            return kernel.context.id

    assert len({run(main) for _ in range(50)}) == 1


def test_run_may_end_with_open_files_and_abandoned_requests(run: Run, disk: Path) -> None:
    path, _ = make_file(disk)
    contexts: list[AIOContext] = []
    with full_pipe() as pipe:

        async def main() -> AsyncFile:
            context = current_context()
            contexts.append(context)
            file = await open_aio(path, abandon_on_cancel=True)
            engine: Any = context._core.engine
            with CancelScope() as scope:
                async with create_task_group() as group:
                    group.start_soon(lambda: context._core.submit_and_wait(pipe.request(), abandon=True))
                    while not pipe.begun:
                        await checkpoint()
                    scope.cancel()
            assert scope.cancelled_caught
            assert engine.outstanding == engine.abandoned == 1
            return file

        files = [run(main)]
        fd = files[0].fileno()
        assert is_open(fd)
        with pytest.raises(RuntimeError, match="closed"):
            contexts[0]._core.check()
        pipe.release()  # a thread has kept the request's memory until here
        with pytest.warns(ResourceWarning, match="unclosed file"):
            _drop(files)
        for thread in [*living]:
            if thread.name == "trio_aio drain":
                thread.join()
        assert not is_open(fd)


def test_system_task_waiting_at_the_end_of_the_run_is_served() -> None:
    served: list[str] = []
    with full_pipe() as pipe:

        async def write() -> None:
            await write_to(current_context(), pipe)
            served.append("write")

        async def release() -> None:
            try:
                await trio.sleep_forever()
            finally:  # main has returned, and trio cancels the system tasks
                pipe.release()

        async def main() -> None:
            trio.lowlevel.spawn_system_task(write)
            trio.lowlevel.spawn_system_task(release)
            while not pipe.begun:
                await checkpoint()

        trio.run(main)
    assert served == ["write"]


def test_runs_in_two_threads_do_not_interfere(run: Run, disk: Path) -> None:
    path, data = make_file(disk)
    failures: list[BaseException] = []

    async def main() -> None:
        async with open_aio(path) as file, open_aio(path, direct=True) as direct, create_task_group() as group:

            async def read(i: int) -> None:
                for k in range(50):
                    at = (i * 50 + k) % 64 * BLOCK
                    assert await file.pread(BLOCK, at) == await direct.pread(BLOCK, at) == data[at : at + BLOCK]

            for i in range(8):
                group.start_soon(read, i)

    def run_one() -> None:
        try:
            run(main)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run_one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_file_used_from_another_run_or_thread_is_refused(run: Run, disk: Path) -> None:
    path, data = make_file(disk)
    kept: list[AsyncFile] = []

    async def use(match: str) -> None:
        for call in (lambda: kept[0].pread(1, 0), lambda: kept[0].read(), lambda: kept[0].context.fsync(0), lambda: kept[0].stat()):
            with pytest.raises(RuntimeError, match=match):
                await call()

    async def main() -> None:
        kept.append(await open_aio(path))
        await anyio.to_thread.run_sync(lambda: run(use, "another thread"))
        assert await kept[0].pread(10, 0) == data[:10]

    run(main)
    run(use, "closed")
    run(kept[0].aclose)
    with pytest.raises(RuntimeError, match=r"trio\.run, asyncio\.run"):
        current_context()


def test_each_run_has_its_own_shared_context(run: Run) -> None:
    async def main() -> AIOContext:
        assert current_context() is current_context()
        return current_context()

    assert run(main) is not run(main)


def test_closed_context_is_garbage_collected(run: Run, disk: Path) -> None:
    path, _ = make_file(disk)

    async def main() -> None:
        async with AIOContext() as context:
            async with open_aio(path, direct=True, context=context) as file, create_task_group() as group:
                for i in range(8):
                    group.start_soon(file.pread, BLOCK, i * BLOCK)
            watch = weakref.ref(context)
        del context, file, group
        for _ in range(2):
            await checkpoint()
        gc.collect()
        assert watch() is None

    run(main)


@pytest.mark.anyio
async def test_engine_name_of_context_draining_in_a_thread_is_kept(disk: Path) -> None:
    path, _ = make_file(disk)
    async with AIOContext(max_workers=1) as context:
        file = await open_aio(path, context=context, abandon_on_cancel=True)
        engine: Any = context._core.engine
        engine.workers.withdraw = lambda _: False  # as if a worker had begun it
        with full_pipe() as pipe:
            async with create_task_group() as group:
                request = pipe.request()
                context._core.engine.submit(request)  # type: ignore[union-attr]
                abandon_request(engine, request)
                assert await cancelled_while_blocked(lambda: file.pread(1 << 20, 0))
                group.start_soon(context.aclose)
            assert engine.kernel is None
            assert context.engine == "aio"  # and no io_setup behind the thread's back
            assert engine.kernel is None
            pipe.release()
            await file.aclose()
            for thread in [*living]:
                if thread.name == "trio_aio drain":
                    await anyio.to_thread.run_sync(thread.join)


def no_more_threads(_: Background) -> None:
    raise RuntimeError("there is no memory for a new thread")


@pytest.mark.anyio
async def test_aclose_waits_for_abandoned_requests_itself_where_no_thread_can_be_had(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = make_file(disk)
    context = await AIOContext(max_workers=1).__aenter__()
    file = await open_aio(path, context=context, abandon_on_cancel=True)
    engine: Any = context._core.engine
    with full_pipe() as pipe:
        request = pipe.request()
        engine.submit(request)
        abandon_request(engine, request)
        monkeypatch.setattr(Background, "start", no_more_threads)
        async with create_task_group() as group:
            group.start_soon(context.aclose)
            for _ in range(3):
                await until_blocked()
            state = context._core.state
            pipe.release()
    assert (state, context._core.state, request.finished, engine.outstanding) == ("closing", "closed", True, 0)
    await file.aclose()


def test_run_that_ends_without_a_thread_for_abandoned_requests_keeps_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with full_pipe() as pipe:
        request = pipe.request()

        async def main() -> Any:
            engine: Any = current_context()._core.engine
            engine.submit(request)
            abandon_request(engine, request)
            monkeypatch.setattr(Background, "start", no_more_threads)
            return engine

        engine = run(main)
        assert (engine.outstanding, engine.drops.closed, engine.workers.kept) == (1, False, engine)
        monkeypatch.undo()
        pipe.release()
        drain(engine)  # or its threads would outlive the test
    assert request.finished


def test_finished_run_leaves_no_thread_and_no_descriptor(run: Run, disk: Path) -> None:
    path, _ = make_file(disk)

    async def main() -> None:
        async with open_aio(path, "r+b") as file, create_task_group() as group:
            for i in range(64):
                group.start_soon(file.pwrite, content(BLOCK), i * BLOCK)

    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    run(main)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


@pytest.mark.parametrize("slots", [1, 8])
def test_reaper_error_is_reported_and_ends_the_run_after_its_tasks_are_served(
    disk: Path, caplog: pytest.LogCaptureFixture, slots: int
) -> None:
    path, data = make_file(disk)
    found = []

    async def read(context: AIOContext, file: AsyncFile) -> None:
        with trio.CancelScope(shield=True):
            found.append(await file.size())

    async def main() -> None:
        async with AIOContext(slots, max_workers=1) as context, open_aio(path, context=context) as file:
            assert context._core.engine is not None
            fail_once(context._core.engine, RuntimeError("a bug"))
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(read, context, file)

    with pytest.raises(trio.TrioInternalError) as caught:
        trio.run(main)
    assert found == [len(data)] * 3
    assert "a bug" in caplog.text
    assert "RuntimeError: a bug" in "".join(traceback.format_exception(caught.value))


@pytest.mark.anyio
async def test_context_that_is_closed_is_not_closed_again() -> None:
    """An interrupt while it is opened lets two of those that own it close it: what opens it, and the reaper when it is dropped."""
    async with AIOContext() as context:
        fd = context._core.check().event_fd
    context._core.close_in_thread()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(RuntimeError, match="closed"):
        context._core.check()


CRASH = """
import sys, trio, trio_aio
files = []

async def crash():
    files.append(await trio_aio.open_aio(sys.argv[1]))
    def abort(_):
        raise ValueError("a bug")
    with trio.move_on_after(0):
        await trio.lowlevel.wait_task_rescheduled(abort)

async def next_run():
    for call in (files[0].size, files[0].fsync, lambda: files[0].read_blocks([0], 1), files[0].aclose):
        try:
            await call()
        except RuntimeError as error:
            assert "another run" in str(error), error
        else:
            raise AssertionError(call)
    print(len(await trio_aio.read_bytes(sys.argv[1])), (await trio_aio.Path(sys.argv[1]).stat()).st_size)
    async with trio_aio.open_aio(sys.argv[1]) as file:
        print(len(await file.read()), len(await file.read_blocks([0], 1)))

try:
    trio.run(crash)
except trio.TrioInternalError:
    pass
assert "asyncio" not in sys.modules  # then less has to be looked at
trio.run(next_run)
"""


def test_run_after_one_that_crashed_has_a_context_of_its_own(disk: Path) -> None:
    """trio throws the tasks of a crashed run away. The next run, in the same thread, must not take its context: nobody reaps there."""
    path, data = make_file(disk, 4 << 20)
    done = subprocess.run([sys.executable, "-c", CRASH, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(data))] * 3 + ["1"]
    assert "trio_aio's reaper" not in done.stderr


@pytest.mark.trio
async def test_interrupt_never_leaves_the_counts_of_the_engine_inconsistent(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KeyboardInterrupt between a hand-over and its count would keep the run from ending."""
    path, data = make_file(disk)
    found: list[tuple[str, bool]] = []

    def watch(cls: Any, name: str) -> None:
        method = getattr(cls, name)

        def watched(self: Any, *arguments: Any, **options: Any) -> Any:
            found.append((name, trio.lowlevel.currently_ki_protected()))
            return method(self, *arguments, **options)

        monkeypatch.setattr(cls, name, watched)

    watch(BufferPool, "prepare")
    watch(Lease, "_take")
    watch(WorkerLane, "accept")
    async with AIOContext() as context, open_aio(path, "r+b", direct=True, context=context) as file:
        assert b"".join([chunk async for chunk in file.chunks(5000)]) == data
        assert await file.read_ranges([(1, 10)]) == [data[1:11]]
        await file.write_ranges([(0, data[:BLOCK])])
    assert {name for name, _ in found} == {"prepare", "_take", "accept"}
    assert all(protected for _, protected in found), found
