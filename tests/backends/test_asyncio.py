"""asyncio's own ways: native cancellation, and loops that end tidily or not."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import subprocess
import sys
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import uvloop
from anyio.lowlevel import checkpoint

from trio_aio import AIOContext, AsyncFile, current_context, open_aio, read_bytes
from trio_aio._lanes.threads import living
from trio_aio._memory.exports import export_buffer
from trio_aio._native import lib
from trio_aio._requests.base import State
from trio_aio._requests.transfer import Append

from ..support.files import BLOCK, is_open, make_file
from ..support.page_cache import attempts
from ..support.pipes import FullPipe, empty_pipe, full_pipe
from ..support.tasks import busy, until_blocked, until_idle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine

    Main = Coroutine[Any, Any, Any]


def debugging_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    return loop


@pytest.fixture(params=[asyncio.new_event_loop, debugging_loop, uvloop.new_event_loop], ids=["asyncio", "debug", "uvloop"])
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes an event loop of each kind."""
    made: Callable[[], asyncio.AbstractEventLoop] = request.param
    return made


@pytest.fixture(params=["run", "close"])
def run(request: pytest.FixtureRequest, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> Callable[[Main], Any]:
    """Return what runs a coroutine to its end: as asyncio.run does, and on a loop that is closed and nothing more."""

    def run_as_asyncio_does(main: Main) -> Any:
        return anyio.run(lambda: main, backend_options={"loop_factory": new_loop})

    def run_and_close(main: Main) -> Any:
        loop = new_loop()
        try:
            return loop.run_until_complete(main)
        finally:
            loop.close()

    return run_as_asyncio_does if request.param == "run" else run_and_close


def drop(things: list[Any]) -> None:
    things.clear()
    gc.collect()


def join_drains() -> None:
    for thread in [*living]:
        if thread.name == "trio_aio drain":
            thread.join()


async def hang(context: AIOContext, pipe: FullPipe) -> int:
    """Make a request that a worker is busy with until the pipe is released."""
    return await context._core.submit_and_wait(pipe.request())


async def until_begun(pipe: FullPipe) -> None:
    while not pipe.begun:
        await checkpoint()


# ---- native cancellation


def test_native_cancel_of_call_not_started_raises_at_once_without_effect(disk: Path) -> None:
    path, data = make_file(disk)

    async def main() -> None:
        async with AIOContext(max_workers=1) as context, open_aio(path, "r+b", context=context) as file:
            with full_pipe() as pipe:
                hanging = asyncio.ensure_future(hang(context, pipe))
                await until_begun(pipe)
                write = asyncio.ensure_future(file.pwrite(b"never", 0))
                await until_blocked()
                write.cancel("why")
                with pytest.raises(asyncio.CancelledError) as caught:
                    await write
                assert sys.version_info < (3, 11) or caught.value.args == ("why",)
                assert not hanging.done()
                pipe.release()
                with pytest.raises(OSError, match="Illegal seek"):
                    await hanging
            assert context.statistics().cancelled == 1
            assert await file.pread(5, 0) == data[:5]

    asyncio.run(main())


@pytest.mark.parametrize("how_often", [1, 3])
def test_native_cancel_of_started_call_raises_at_completion(how_often: int) -> None:
    async def main() -> None:
        async with AIOContext(max_workers=1) as context:
            with full_pipe() as pipe:
                request = pipe.request()
                task = asyncio.ensure_future(context._core.submit_and_wait(request))
                await until_begun(pipe)
                for _ in range(how_often):
                    task.cancel()
                    await until_blocked()
                    assert not task.done()
                assert request.state is State.WORKER_IN_FLIGHT
                pipe.release()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert request.state is State.COMPLETED
            assert context.statistics().in_flight == 0

    asyncio.run(main())


def test_native_cancel_before_a_call_leaves_no_effect(disk: Path) -> None:
    path, data = make_file(disk)

    async def write(file: AsyncFile) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await file.pwrite(b"never", 0)

    async def main() -> None:
        async with open_aio(path, "r+b") as file:
            before = file.context.statistics()
            for _ in range(100):
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.ensure_future(write(file))
            assert file.context.statistics() == before

    asyncio.run(main())
    assert path.read_bytes() == data


def test_native_cancel_stops_a_poll_in_the_kernel() -> None:
    async def main() -> None:
        context = current_context()
        with empty_pipe() as (reader, _):
            task = asyncio.ensure_future(context.poll(reader, select.POLLIN))
            await until_blocked()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        statistics = context.statistics()
        assert (statistics.in_flight, statistics.cancelled) == (0, 1)

    asyncio.run(main())


@pytest.mark.parametrize("order", ["scope, task", "task, scope", "scope, turn, task", "task, turn, scope"])
def test_native_and_scope_cancellation_together_are_told_apart(order: str) -> None:
    """The request is waited for, the scope does not swallow the native one, and both are told apart again afterwards."""

    async def main() -> None:
        async with AIOContext(max_workers=1) as context:
            with full_pipe() as pipe:
                scope = anyio.CancelScope()
                log: list[str] = []

                async def perform() -> None:
                    try:
                        with scope:
                            with pytest.raises(OSError, match="Illegal seek"):  # only without the native one
                                await hang(context, pipe)
                            log.append("not reached")
                    except asyncio.CancelledError:
                        log.append("native")
                        task = asyncio.current_task()
                        assert task is not None
                        if sys.version_info >= (3, 11):
                            assert task.cancelling() == 1
                        raise

                task = asyncio.ensure_future(perform())
                await until_begun(pipe)
                for what in order.split(", "):
                    if what == "scope":
                        scope.cancel()
                    elif what == "task":
                        task.cancel()
                    else:
                        await until_blocked()
                await until_blocked()
                assert not task.done()
                pipe.release()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert log == ["native"]

    asyncio.run(main())


def test_refused_scope_cancellation_leaves_no_native_cancel_request(disk: Path) -> None:
    path, data = make_file(disk)

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        async with AIOContext(max_workers=1) as context, open_aio(path, context=context) as file:
            with full_pipe() as pipe, anyio.CancelScope() as scope:

                async def cancel_and_release() -> None:
                    await until_begun(pipe)
                    scope.cancel()
                    await until_blocked()
                    pipe.release()

                helper = asyncio.ensure_future(cancel_and_release())
                with pytest.raises(OSError, match="Illegal seek"):
                    await hang(context, pipe)
                assert scope.cancel_called
                await helper
                await asyncio.sleep(0)
                pytest.fail("not reached")
            assert scope.cancelled_caught
            if sys.version_info >= (3, 11):
                assert task.cancelling() == 0
            assert await file.pread(10, 0) == data[:10]
            await asyncio.sleep(0)

    asyncio.run(main())


@pytest.mark.anyio
@pytest.mark.backends("asyncio", "asyncio+uvloop")
async def test_loop_sleeps_while_a_cancelled_call_is_waited_for() -> None:
    """anyio repeats a cancellation in every tick to a task that is not shielded."""
    async with AIOContext(max_workers=1) as context:
        with full_pipe() as pipe, anyio.CancelScope() as scope:
            repeated = 0
            async with anyio.create_task_group() as group:

                async def cancel_and_count() -> None:
                    nonlocal repeated
                    with anyio.CancelScope(shield=True):
                        await until_begun(pipe)
                        scope.cancel()
                        for _ in range(10):
                            await asyncio.sleep(0)
                        repeated = len(waits)
                        for _ in range(50):
                            await asyncio.sleep(0)
                        repeated = len(waits) - repeated
                        pipe.release()

                waits: list[object] = []
                request = pipe.request()
                cancel = context._core.engine.cancel  # type: ignore[union-attr]
                context._core.engine.cancel = lambda r: (waits.append(r), cancel(r))[1]  # type: ignore[union-attr, method-assign]
                group.start_soon(cancel_and_count)
                with pytest.raises(OSError, match="Illegal seek"):
                    await context._core.submit_and_wait(request)
            assert (len(waits), repeated) == (1, 0)


if sys.version_info >= (3, 11):
    from builtins import BaseExceptionGroup

    def test_asyncio_timeout_of_a_call(disk: Path) -> None:
        path, data = make_file(disk)

        async def main() -> None:
            async with AIOContext(max_workers=1) as context, open_aio(path, "r+b", context=context) as file:
                with full_pipe() as pipe:
                    hanging = asyncio.ensure_future(hang(context, pipe))
                    await until_begun(pipe)
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.01):
                            await file.pwrite(b"never", 0)
                    pipe.release()
                    with pytest.raises(OSError, match="Illegal seek"):
                        await hanging
                with full_pipe() as pipe:

                    async def begin_and_run_out_of_time() -> None:
                        async with asyncio.timeout(None) as timeout:

                            async def run_out() -> None:
                                await until_begun(pipe)
                                timeout.reschedule(0)
                                await until_blocked()
                                pipe.release()

                            asyncio.ensure_future(run_out()).add_done_callback(done.append)
                            await hang(context, pipe)

                    done: list[object] = []
                    with pytest.raises(TimeoutError):
                        await begin_and_run_out_of_time()
                    assert done
                assert await file.pread(10, 0) == data[:10]

        asyncio.run(main())

    def test_a_task_group_that_fails_stops_its_other_calls() -> None:
        async def main() -> None:
            context = current_context()
            with empty_pipe() as (reader, _):

                async def fail() -> None:
                    await until_blocked()
                    raise KeyError("x")

                async def group_of_calls() -> None:
                    async with asyncio.TaskGroup() as group:
                        for _ in range(10):
                            group.create_task(context.poll(reader, select.POLLIN))
                        group.create_task(fail())

                with pytest.raises(BaseExceptionGroup) as caught:
                    await group_of_calls()
                assert [type(error) for error in caught.value.exceptions] == [KeyError]
            assert context.statistics().cancelled == 10

        asyncio.run(main())


def test_wait_for_cancels_a_call_not_started() -> None:
    async def main() -> None:
        with empty_pipe() as (reader, _), pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(current_context().poll(reader, select.POLLIN), 0.01)
        assert current_context().statistics().in_flight == 0

    asyncio.run(main())


def test_native_cancel_while_closing_closes(disk: Path) -> None:
    path, _ = make_file(disk)

    async def main() -> None:
        async with AIOContext(max_workers=1) as context:
            file = await open_aio(path, context=context)
            fd = file.fileno()
            with full_pipe() as pipe:
                hanging = asyncio.ensure_future(hang(context, pipe))
                await until_begun(pipe)
                close = asyncio.ensure_future(file.aclose())
                end = asyncio.ensure_future(context.aclose())
                await until_blocked()
                close.cancel()
                end.cancel()
                await until_blocked()
                assert is_open(fd)
                assert not close.done()
                pipe.release()
                done = await asyncio.gather(hanging, close, end, return_exceptions=True)
            assert [type(result) for result in done] == [OSError, asyncio.CancelledError, asyncio.CancelledError]
            assert not is_open(fd)

    asyncio.run(main())


def test_native_cancel_while_an_opener_runs_loses_no_descriptor(disk: Path) -> None:
    path, _ = make_file(disk)
    opened: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def opener(name: str, flags: int) -> int:
        begun.set()
        go_on.wait()
        opened.append(os.open(name, flags))
        return opened[0]

    async def main() -> None:
        async def open_it() -> AsyncFile:
            return await open_aio(path, opener=opener)

        task = asyncio.ensure_future(open_it())
        while not begun.is_set():
            await checkpoint()
        task.cancel()
        await until_blocked()
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        while is_open(opened[0]):
            await checkpoint()

    asyncio.run(main())


def test_natively_cancelled_write_of_writer_accepts_all_or_nothing(disk: Path) -> None:
    path, _ = make_file(disk, 0)

    async def main(turns: int) -> int:
        async with AIOContext(4, max_workers=1) as context, open_aio(path, "wb", context=context) as file:
            async with file.writer(size=1000, depth=1) as writer:
                task = asyncio.ensure_future(writer.write(b"B" * 3500))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                await writer.write(b"C" * 10)
            return path.read_bytes().count(b"B")

    found = {asyncio.run(main(turns)) for turns in range(1, 9)}
    assert found <= {0, 3500}


def test_natively_cancelled_writer_exits_with_nothing_in_flight(disk: Path) -> None:
    path, _ = make_file(disk, 0)

    async def main() -> None:
        async with AIOContext(4, max_workers=1) as context, open_aio(path, "wb", context=context) as file:

            async def write() -> None:
                async with file.writer(size=BLOCK, depth=4) as writer:
                    await writer.write(bytes(3 * BLOCK))

            async with busy(context) as pipe:
                task = asyncio.ensure_future(write())
                await until_blocked()
                task.cancel()
                await until_blocked()
                task.cancel()
                await until_blocked()
                assert not task.done()
                pipe.release()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert path.stat().st_size == 3 * BLOCK
                assert not file._descriptor.order.leases

    asyncio.run(main())


def cancel_and_find_it_closed(
    path: Path, use: Callable[[], Coroutine[Any, Any, Any]], reach: Callable[[int], Coroutine[Any, Any, None]]
) -> None:
    """Cancel what uses a file natively at several moments, and see that nothing of it is open, though no garbage is collected."""

    async def main() -> None:
        for moment in range(12):
            task = asyncio.ensure_future(use())
            await reach(moment)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            del task
            engine = current_context()._core.engine
            assert engine is not None
            while engine.drops:
                await checkpoint()
            await until_idle(current_context())
            assert str(path) not in [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.exists()]  # noqa: ASYNC240

    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


async def let_run(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def let_run_until_blocked(turns: int) -> None:
    await let_run(turns)
    await until_blocked()


def test_natively_cancelled_open_closes_its_descriptor(disk: Path) -> None:
    path, _ = make_file(disk)

    async def use() -> None:
        async with open_aio(path) as file:
            await file.read()

    cancel_and_find_it_closed(path, use, let_run)


def test_natively_cancelled_step_loses_no_chunk_in_copy(disk: Path) -> None:
    path, data = make_file(disk, 3 << 20)

    async def main(turns: int) -> None:
        async with open_aio(path) as file:
            chunks = file.chunks(8 << 20, depth=1)
            task = asyncio.ensure_future(chunks.__anext__())
            while not chunks._ahead or not chunks._ahead[0].request.finished:
                await checkpoint()
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            got = []
            with suppress(asyncio.CancelledError):
                got.append(await task)
            got += [chunk async for chunk in chunks]
            assert b"".join(got) == data

    for turns in range(8):
        asyncio.run(main(turns))


def test_natively_cancelled_read_of_whole_file_closes_it(disk: Path) -> None:
    path = disk / "large"
    with path.open("wb") as made:
        made.truncate(33 << 20)

    cancel_and_find_it_closed(path, lambda: read_bytes(path), let_run_until_blocked)


# ---- ticks


@pytest.mark.anyio
@pytest.mark.backends("asyncio", "asyncio+uvloop")
async def test_requests_of_tasks_woken_together_are_submitted_together(disk: Path) -> None:
    path, data = make_file(disk)
    async with open_aio(path, direct=True) as file, anyio.create_task_group() as group:
        context = file.context
        count = 7
        while not context.statistics().submitted_kernel or file._descriptor.read_device.offload:  # the first reads teach
            await file.pread(BLOCK, 0)
        lane: Any = context._core.engine.kernel  # type: ignore[union-attr]
        lane.few, lane.learn_few = count + 1, lambda: None  # so that all wait for the end of the tick
        with empty_pipe() as (reader, _):
            group.start_soon(context.poll, reader, select.POLLIN)  # where nothing is in flight a request does not wait for others
            await until_blocked()
            for _ in range(20):
                for _ in attempts("a tick whose reads all stayed with the kernel"):
                    before = context.statistics()
                    # So many wait for the end of the tick.
                    results = await asyncio.gather(*[file.pread(BLOCK, i * BLOCK) for i in range(count)])
                    assert b"".join(results) == data[: count * BLOCK]
                    after = context.statistics()
                    if after.submitted_workers == before.submitted_workers:  # a busy device may answer EAGAIN
                        break
                assert after.submitted_kernel - before.submitted_kernel == count
                assert after.submit_calls - before.submit_calls == -(-count // lib.TAIO_TOGETHER)
            group.cancel_scope.cancel()


# ---- the end of a loop


def test_loop_ends_with_files_left_open(run: Callable[[Main], Any], disk: Path) -> None:
    path, _ = make_file(disk)

    async def main() -> AsyncFile:
        async with open_aio(path, direct=True) as direct:
            await direct.pread(BLOCK, 0)
        return await open_aio(path)

    files = [run(main())]
    context, fd = files[0].context, files[0].fileno()
    assert "closed" in repr(context)
    assert is_open(fd)
    with pytest.raises(RuntimeError, match="closed"):
        run(files[0].pread(1, 0))
    with pytest.warns(ResourceWarning, match="unclosed file"):
        drop(files)
    join_drains()
    assert not is_open(fd)


def test_file_of_ended_loop_can_be_closed(run: Callable[[Main], Any], disk: Path) -> None:
    path, _ = make_file(disk)

    async def main() -> AsyncFile:
        return await open_aio(path)

    file = run(main())
    fd = file._descriptor.fd
    run(file.aclose())
    assert not is_open(fd)


def test_own_context_left_open_ends_with_the_loop(run: Callable[[Main], Any]) -> None:
    async def main() -> AIOContext:
        return await AIOContext(engine="aio").__aenter__()

    context = run(main())
    assert "closed" in repr(context)


def test_tasks_cancelled_by_asyncio_run_can_use_files_until_they_end(disk: Path) -> None:
    path, data = make_file(disk)
    log: list[object] = []

    async def tidy_up(name: str) -> None:
        async with open_aio(disk / name, "wb") as file:
            try:
                opened.append(name)
                await asyncio.sleep(3600)
            finally:
                await file.write(data)
                await file.fsync()
                async with open_aio(path) as other:
                    log.append(len(await other.read()))

    async def lines() -> AsyncGenerator[bytes]:
        async with open_aio(path) as file:
            try:
                yield await file.read(1)
            finally:
                log.append(await file.read(1))

    kept = []
    opened: list[str] = []

    with full_pipe() as pipe:

        async def write_slowly() -> None:
            try:
                await hang(current_context(), pipe)
            finally:
                log.append("written")

        async def release() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0)
                pipe.release()

        async def main() -> None:
            kept.extend([asyncio.ensure_future(tidy_up(name)) for name in ("a", "b", "c")])
            kept.extend([asyncio.ensure_future(write_slowly()), asyncio.ensure_future(release())])
            kept.append(lines())
            await kept[-1].__anext__()
            await until_begun(pipe)
            while len(opened) < 3:  # `until_blocked` also accepts tasks that wait in `open_aio`: a cancellation there opens nothing
                await checkpoint()
            await until_blocked()

        asyncio.run(main())
    assert sorted(map(str, log)) == sorted(map(str, [len(data)] * 3 + ["written", data[1:2]]))
    assert [(disk / name).read_bytes() for name in ("a", "b", "c")] == [data] * 3


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_loop_closed_over_waiting_tasks_keeps_memory_and_leaves_nothing(
    new_loop: Callable[[], asyncio.AbstractEventLoop], disk: Path
) -> None:
    """Requests in flight keep their memory in a thread; no task is woken any more, and nothing stays."""
    path, _ = make_file(disk)
    messages: list[str] = []
    with full_pipe() as pipe, empty_pipe() as (reader, writer):
        memory = bytearray(2 * BLOCK)
        watch: list[weakref.ref[Any]] = []

        async def write() -> None:
            export = export_buffer(memory, writable=False)
            request = pipe.request()
            await current_context()._core.submit_and_wait(Append(request.descriptor, export.address, export.length, export))

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, details: messages.append(details["message"]))
            file = await open_aio(path)
            watch.append(weakref.ref(file.context))
            kept = [asyncio.ensure_future(write()), asyncio.ensure_future(file.context.poll(reader, select.POLLIN))]
            await until_begun(pipe)
            await file.aclose()
            loop.kept = kept  # type: ignore[attr-defined]

        loop = new_loop()
        loop.run_until_complete(main())
        loop.close()
        assert "closed" in repr(watch[0]())
        with pytest.raises(BufferError):  # still exported
            memory.append(0)
        pipe.release()
        os.write(writer, b"x")
        join_drains()
        loop.kept.clear()  # type: ignore[attr-defined]
        del loop
        gc.collect()
        memory.append(0)
        assert messages == ["Task was destroyed but it is pending!"] * 2
        gc.collect()
        assert watch[0]() is None


def test_task_dropped_with_its_loop_closes_its_files(new_loop: Callable[[], asyncio.AbstractEventLoop], disk: Path) -> None:
    path, _ = make_file(disk)
    kept: list[object] = []

    async def use() -> None:
        async with open_aio(path) as file, AIOContext():
            kept.append(file)
            await asyncio.sleep(3600)

    async def main() -> None:
        kept.append(asyncio.ensure_future(use()))
        while len(kept) < 2:
            await checkpoint()
        await until_blocked()

    loop = new_loop()
    loop.set_exception_handler(lambda *_: None)
    loop.run_until_complete(main())
    loop.close()
    file = kept[1]
    assert isinstance(file, AsyncFile)
    assert not file.closed
    kept.clear()
    drop([loop])
    del loop
    gc.collect()
    assert file.closed
    assert not is_open(file._descriptor.fd)


def test_loop_dropped_unclosed_warns_and_leaves_nothing(disk: Path) -> None:
    path, data = make_file(disk)

    async def main() -> bytes:
        async with open_aio(path) as file, open_aio(path, direct=True) as direct:
            await direct.pread(BLOCK, 0)
            return await file.read()

    loops = [asyncio.new_event_loop()]
    assert loops[0].run_until_complete(main()) == data
    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        drop(loops)
    join_drains()


PROGRAM = """
import asyncio, sys, trio_aio
if sys.argv[2] == "uvloop":
    import uvloop
    new_loop = uvloop.new_event_loop
else:
    new_loop = asyncio.new_event_loop
async def main():
    global file
    file = await trio_aio.open_aio(sys.argv[1], direct=True)
    print(len(await file.pread(4096, 0)))
loop = new_loop()
loop.run_until_complete(main())
"""


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_process_with_unclosed_loop_exits(disk: Path, kind: str) -> None:
    path, _ = make_file(disk)
    done = subprocess.run([sys.executable, "-c", PROGRAM, path, kind], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4096\n", "")


def test_child_of_fork_leaves_the_loop_of_its_parent(disk: Path) -> None:
    path, data = make_file(disk)

    async def child(file: AsyncFile) -> None:
        with pytest.raises(RuntimeError, match="parent process"):
            await file.pread(1, 0)
        async with open_aio(path) as other:
            assert await other.read() == data

    async def main() -> None:
        async with open_aio(path) as file:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
                pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    asyncio.events._set_running_loop(None)
                    asyncio.run(child(file))
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitpid(pid, 0)[1] == 0  # noqa: ASYNC222
            assert await file.read() == data

    asyncio.run(main())


@pytest.mark.slow
def test_hundred_loops_leave_nothing(run: Callable[[Main], Any], disk: Path) -> None:
    path, data = make_file(disk)

    async def main() -> bytes:
        async with open_aio(path) as file:
            return await file.read(100)

    before = os.listdir("/proc/self/fd"), {*threading.enumerate(), *living}
    for _ in range(100):
        assert run(main()) == data[:100]
    assert len(os.listdir("/proc/self/fd")) == len(before[0])
    assert {*threading.enumerate(), *living} <= before[1]


def test_descriptor_opened_after_the_end_of_its_loop_is_closed(disk: Path) -> None:
    path, _ = make_file(disk)
    began, ended = threading.Event(), threading.Event()
    opened: list[int] = []

    def opener(_: str, flags: int) -> int:
        began.set()
        ended.wait()
        opened.append(os.open(path, flags))
        return opened[0]

    with ThreadPoolExecutor(1) as executor:
        loop = asyncio.new_event_loop()
        loop.set_default_executor(executor)

        async def main() -> None:
            await open_aio(path, opener=opener)

        task = loop.create_task(main())
        while not began.is_set():
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        ended.set()
    del task, loop
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


# ---- entering a context


def test_natively_cancelled_entry_of_a_context_leaves_nothing_open(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def enter(contexts: list[AIOContext]) -> None:
        contexts.append(AIOContext())
        async with contexts[-1]:
            await asyncio.sleep(3600)

    async def main() -> None:
        await current_context()._core.checkpoint()
        before = set(os.listdir("/proc/self/fd"))
        entered = set()
        for ticks in range(6):
            contexts: list[AIOContext] = []
            task = asyncio.ensure_future(enter(contexts))
            for _ in range(ticks):
                await asyncio.sleep(0)
            states = [context._core.state for context in contexts]
            entered.update(states)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            for context in contexts:
                assert context._core.state in ("new", "closed")
            assert set(os.listdir("/proc/self/fd")) == before
        assert entered == {"new", "open"}

    loop = new_loop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_context_that_the_loop_refuses_fails_alone(new_loop: Callable[[], asyncio.AbstractEventLoop], disk: Path) -> None:
    path, data = make_file(disk)
    loop = new_loop()

    class Refusing:
        """The loop, without room for one more descriptor."""

        def __getattr__(self, name: str) -> Any:
            return getattr(loop, name)

        def add_reader(self, *arguments: Any) -> None:
            raise OSError(28, "No space left on device")

    async def main() -> None:
        async with open_aio(path, direct=True) as file:
            backend: Any = file.context._core.backend
            for _ in range(3):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(backend, "loop", Refusing())
                    refused = AIOContext()
                    with pytest.raises(OSError, match="No space left"):
                        await refused.__aenter__()
                assert "closed" in repr(refused)
                with pytest.raises(RuntimeError, match="closed"):
                    refused._core.check()
            assert await file.pread(BLOCK, 0) == data[:BLOCK]
            async with AIOContext() as another:
                assert await read_bytes(path, context=another) == data

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
