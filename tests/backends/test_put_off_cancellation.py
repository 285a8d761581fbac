"""asyncio's own Task.cancel, put off because a call must not stop half-way: it is raised whatever else goes wrong meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import io
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from anyio import CancelScope
from anyio._backends._asyncio import is_anyio_cancellation
from anyio.lowlevel import checkpoint

from trio_aio import FileReadStream, FileWriteStream, NamedTemporaryFile, SpooledTemporaryFile, TemporaryDirectory, TemporaryFile, open_aio
from trio_aio._backends import current_backend
from trio_aio.testing import FaultyContext

from ..support.files import BLOCK, make_file
from ..support.tasks import Noting, until_blocked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trio_aio.testing import Hang

pytestmark = [pytest.mark.anyio, pytest.mark.backends("asyncio", "asyncio+uvloop")]


class Job:
    """A task that drops errors, and would run on. It may be cancelled by a scope too."""

    def __init__(self, call: Callable[[], Awaitable[Any]]) -> None:
        self._call: Callable[[], Awaitable[Any]] = call
        self.ran_on: bool = False
        self.scope: CancelScope = CancelScope()
        self._error: asyncio.CancelledError | None = None
        self.task: asyncio.Future[None] = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        with self.scope:
            try:
                await self._call()
            except (OSError, ValueError):
                pass
            except asyncio.CancelledError as error:
                self._error = error
                raise
        self.ran_on = True

    async def cancel(self) -> None:
        """Cancel it when every task waits, and let it take note of that."""
        await until_blocked()
        self.task.cancel()
        await until_blocked()
        assert not self.task.done()

    async def cause(self) -> BaseException | None:
        """Wait for its end, which is a native cancellation, and return the cause of that."""
        with pytest.raises(asyncio.CancelledError):
            await self.task
        assert not self.ran_on
        assert self._error is not None
        assert not is_anyio_cancellation(self._error)  # where a task does not count its cancellations, anyio goes by this alone
        return self._error.__cause__


async def until_held(hang: Hang, count: int = 1) -> None:
    while hang.held < count:
        await checkpoint()


# ---- writers


async def test_write_of_a_writer_whose_file_is_closed_meanwhile(disk: Path) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context:
        file = await open_aio(path, "r+b", context=context)
        async with file.writer(size=BLOCK, depth=1) as writer:
            with context.hang(operation="write") as hang:
                job = Job(lambda: writer.write(bytes(3 * BLOCK)))
                await until_held(hang)
                await job.cancel()
                closing = asyncio.ensure_future(file.aclose())
                await until_blocked()
                hang.release()
                assert isinstance(await job.cause(), ValueError)
                await closing
            writer._filled = 0  # what could not be written is not wanted


async def test_end_of_a_writer_whose_file_is_closed_meanwhile(disk: Path) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context:
        file = await open_aio(path, "r+b", context=context)
        writer = file.writer(size=BLOCK, depth=1)
        with context.hang(operation="write") as hang:
            await writer.__aenter__()
            await writer.write(bytes(BLOCK))
            job = Job(lambda: writer.write(bytes(BLOCK + 10)))
            await until_held(hang)
            end = Job(lambda: writer.__aexit__(None, None, None))
            await end.cancel()
            closing = asyncio.ensure_future(file.aclose())
            await until_blocked()
            hang.release()
            assert isinstance(await end.cause(), ValueError)
            await closing
            await job.task


@pytest.mark.parametrize("scope_first", [False, True])
async def test_native_cancellation_comes_before_that_of_a_scope_at_the_end_of_a_writer(disk: Path, scope_first: bool) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context, open_aio(path, "r+b", context=context) as file:
        async with file.writer(size=BLOCK, depth=4) as writer:
            await writer.write(bytes(2 * BLOCK))

        async def use() -> None:
            async with file.writer(size=BLOCK, depth=4) as writer:
                await writer.write(bytes(2 * BLOCK))

        with context.hang(operation="write") as hang:
            job = Job(use)
            await until_held(hang, 2)
            await until_blocked()
            if scope_first:
                job.scope.cancel()
            await job.cancel()
            job.scope.cancel()
            await until_blocked()
            hang.release()
            await job.cause()


async def test_native_cancellation_while_a_writer_ends_because_of_a_scope(disk: Path) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context, open_aio(path, "r+b", context=context) as file:
        inside = asyncio.Event()

        async def use() -> None:
            async with file.writer(size=BLOCK, depth=4) as writer:
                await writer.write(bytes(BLOCK))
                inside.set()
                await asyncio.get_running_loop().create_future()

        with context.hang(operation="write") as hang:
            job = Job(use)
            await inside.wait()
            await until_held(hang)
            job.scope.cancel()
            await job.cancel()
            hang.release()
            await job.cause()


# ---- closes, and what is given back


async def test_native_cancellation_while_a_file_is_closed_because_of_a_scope(disk: Path) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context:
        inside = asyncio.Event()

        async def use() -> None:
            async with open_aio(path, context=context):
                inside.set()
                await asyncio.get_running_loop().create_future()

        with context.hang(operation="close") as hang:
            job = Job(use)
            await inside.wait()
            job.scope.cancel()
            await until_held(hang)
            await job.cancel()
            hang.release()
            await job.cause()


@pytest.mark.parametrize("mode", ["r+b", "r+"])
async def test_close_that_fails_after_a_native_cancellation_of_the_body(disk: Path, mode: str) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context:
        inside = asyncio.Event()

        async def use() -> None:
            async with open_aio(path, mode, context=context):
                inside.set()
                await asyncio.get_running_loop().create_future()

        with context.fail(errno.EIO, operation="close"):
            job = Job(use)
            await inside.wait()
            job.task.cancel()
            cause = await job.cause()
            assert isinstance(cause, OSError)
            assert cause.errno == errno.EIO


async def test_close_that_fails_after_the_cancellation_of_a_scope_is_raised_before_it(disk: Path) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context:

        async def use() -> None:
            async with open_aio(path, "r+b", context=context):
                scope.cancel()
                await checkpoint()

        with context.fail(errno.EIO, operation="close"), CancelScope() as scope, pytest.raises(OSError, match="Input/output error"):
            await use()


@pytest.mark.parametrize("delete_on_close", [False, True])
async def test_temporary_file_that_cannot_be_removed_after_a_native_cancellation(disk: Path, delete_on_close: bool) -> None:
    async with FaultyContext() as context:
        inside = asyncio.Event()

        async def use() -> None:
            async with NamedTemporaryFile(dir=disk, delete_on_close=delete_on_close, context=context):
                inside.set()

        with context.hang(operation="close") as hang, context.fail(errno.EPERM, operation="change"):
            job = Job(use)
            await inside.wait()
            await until_held(hang)
            await job.cancel()
            hang.release()
            assert isinstance(await job.cause(), PermissionError)


async def test_plain_file_of_a_stream_that_cannot_be_closed_after_a_native_cancellation(disk: Path) -> None:
    class Plain(io.FileIO):
        def close(self) -> None:
            if not self.closed:
                super().close()
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    path, _ = make_file(disk)
    async with FaultyContext() as context:
        stream = FileReadStream(Plain(path))
        stream._opened = await open_aio(path, context=context)
        with context.hang(operation="close") as hang:
            job = Job(stream.aclose)
            await until_held(hang)
            await job.cancel()
            hang.release()
            assert isinstance(await job.cause(), OSError)


async def test_text_that_cannot_be_given_back_after_a_native_cancellation(disk: Path) -> None:
    path = disk / "lines"
    path.write_text("line\n" * 1000)
    async with FaultyContext() as context, open_aio(os.open(path, os.O_RDONLY), "r", encoding="utf-8", context=context) as file:
        await file.read(0)
        with context.hang(operation="seek", turn=1) as hang, context.fail(errno.EIO, operation="seek", turn=2):
            job = Job(lambda: file.read(9))
            await until_held(hang)
            await job.cancel()
            hang.release()
            cause = await job.cause()
            assert isinstance(cause, OSError)
            assert cause.errno == errno.EIO


CALLS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "readline": lambda file: file.readline(),
    "read": lambda file: file.read(8 << 20),
}


@pytest.mark.parametrize("call", CALLS)
async def test_cursor_that_cannot_be_moved_back_after_a_native_cancellation(disk: Path, call: str) -> None:
    path = disk / "line"
    path.write_bytes(bytes(5 << 20))
    async with FaultyContext() as context, open_aio(os.open(path, os.O_RDONLY), "rb", context=context) as file:
        with context.hang(operation="read", turn=2) as hang:
            job = Job(lambda: CALLS[call](file))
            await until_held(hang)
            await job.cancel()
            with context.fail(errno.EIO, operation="seek"):
                hang.release()
                cause = await job.cause()
            assert isinstance(cause, OSError)
            assert cause.errno == errno.EIO


async def test_opener_that_fails_after_a_native_cancellation(disk: Path) -> None:
    path, _ = make_file(disk)
    begun, go = threading.Event(), threading.Event()

    def opener(name: str, flags: int) -> int:
        begun.set()
        go.wait(60)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def open_it() -> None:
        await open_aio(path, opener=opener)

    job = Job(open_it)
    while not begun.is_set():
        await checkpoint()
    await job.cancel()
    go.set()
    cause = await job.cause()
    assert isinstance(cause, OSError)
    assert cause.errno == errno.EIO


# ---- ends of `async with` that fail, and closes that wait


ENDS: dict[str, tuple[str, Callable[[FaultyContext, Path], Any]]] = {
    "spooled": ("close", lambda context, folder: SpooledTemporaryFile(dir=folder, context=context)),
    "directory": ("change", lambda context, folder: TemporaryDirectory(dir=folder, context=context)),
    "named": ("change", lambda context, folder: NamedTemporaryFile(dir=folder, context=context)),
    "unnamed": ("close", lambda context, folder: TemporaryFile(dir=folder, context=context)),
    "stream": ("close", lambda context, folder: _Stream(context, folder / "file")),
}


class _Stream:
    def __init__(self, context: FaultyContext, path: Path) -> None:
        self._context: FaultyContext = context
        self._path: Path = path
        self._stream: Any = None

    async def __aenter__(self) -> Any:
        self._stream = await FileWriteStream.from_path(self._path, context=self._context)
        return await self._stream.__aenter__()

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._stream.__aexit__(*exc_info)


@pytest.mark.parametrize("name", ENDS)
async def test_native_cancellation_of_a_body_is_raised_although_the_end_fails(tmp_path: Path, name: str) -> None:
    operation, make = ENDS[name]
    entered = asyncio.Event()
    async with FaultyContext() as context:

        async def call() -> None:
            async with make(context, tmp_path) as file:
                if name == "spooled":
                    await file.rollover()
                context.fail(errno.EIO, operation=operation)  # type: ignore[arg-type]
                entered.set()
                await asyncio.sleep(3600)

        job = Job(call)
        await entered.wait()
        job.task.cancel()
        cause = await job.cause()
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__
        assert cause is not None
        context._faults.rules.clear()


class _SlowFile(io.FileIO):
    """A file whose close waits for an event."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w")
        self.entered: threading.Event = threading.Event()
        self.may_go_on: threading.Event = threading.Event()

    def close(self) -> None:
        if not self.closed:
            self.entered.set()
            assert self.may_go_on.wait(60)
        super().close()


async def test_native_cancellation_of_a_close_that_waits_for_another_task_closes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = current_backend()
    run_in_thread, may_go_on = backend.run_in_thread, asyncio.Event()

    async def when_it_may(function: Any, *args: Any) -> Any:
        await may_go_on.wait()
        return await run_in_thread(function, *args)

    monkeypatch.setattr(backend, "run_in_thread", when_it_may)  # the flush of a file that is taken over
    file = open(tmp_path / "file", "wb")  # noqa: ASYNC230, SIM115
    stream = FileWriteStream(file)
    opening = asyncio.ensure_future(stream.send(b"hello"))
    while stream._lock is None or stream._lock.free:
        await checkpoint()
    job = Job(stream.aclose)
    await job.cancel()
    may_go_on.set()
    assert await job.cause() is None
    assert file.closed
    await opening
    assert (tmp_path / "file").read_bytes() == b"hello"


async def test_native_cancellation_during_a_close_in_a_thread_is_raised_at_its_end(tmp_path: Path) -> None:
    file = _SlowFile(tmp_path / "file")
    stream = FileWriteStream(file)
    await stream.send(b"hello")
    job = Job(stream.aclose)
    while not file.entered.is_set():
        await checkpoint()
    job.task.cancel()
    await checkpoint()
    file.may_go_on.set()
    await job.cause()
    assert file.closed


# ---- what an exception holds


async def test_cancelled_request_leaves_no_reference_cycle(disk: Path) -> None:
    class Local:
        pass

    path, _ = make_file(disk)
    gc.collect()
    gc.disable()
    try:
        async with FaultyContext() as context, open_aio(path, context=context) as file:
            held = []

            async def call(read: Callable[[], Awaitable[object]]) -> None:
                local = Local()
                held.append(weakref.ref(local))
                await read()

            for read in (lambda: file.pread(10, 0), lambda: file.read(10), lambda: file.fsync()):
                with context.hang() as hang:
                    task = asyncio.ensure_future(call(read))
                    await until_held(hang)
                    task.cancel()
                    await checkpoint()
                    hang.release()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
                    del task
            await checkpoint()  # the loop forgets what it has run
            assert [each() for each in held] == [None] * 3
    finally:
        gc.enable()


async def test_second_native_cancellation_keeps_the_error_behind_the_first(disk: Path) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context, open_aio(path, context=context) as file:
        with context.hang(operation="read") as hang:

            async def call() -> None:
                try:
                    try:
                        raise ValueError("the user's error")
                    finally:
                        await asyncio.sleep(3600)
                finally:
                    await file.pread(10, 0)

            noting = Noting(call)
            await until_blocked()
            noting.task.cancel()
            await until_held(hang)
            noting.task.cancel()
            await checkpoint()
            hang.release()
            last = await noting.cancellation()
    chain, error = [], last.__context__
    while error is not None:
        chain.append(type(error))
        error = error.__context__
    assert chain == [asyncio.CancelledError, ValueError]
