"""Closing in a cancelled scope: it closes, and then raises Cancelled. The exception of a body leaves as it is."""

from __future__ import annotations

import asyncio
import errno
import os
import select
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from anyio import CancelScope, create_task_group, get_cancelled_exc_class
from anyio.lowlevel import checkpoint

from trio_aio import (
    AIOContext,
    FileReadStream,
    FileWriteStream,
    NamedTemporaryFile,
    SpooledTemporaryFile,
    TemporaryDirectory,
    TemporaryFile,
    open_aio,
    open_directory,
    open_file,
    read_bytes,
)
from trio_aio._context.leasing import Lease
from trio_aio.testing import FaultyContext

from ..support.files import is_open, make_file, opened
from ..support.tasks import until_blocked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from trio_aio._engine.engine import Engine

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def writer_of(path: Path) -> AsyncIterator[Any]:
    async with open_aio(path, "r+b") as file:
        yield file.writer()


@asynccontextmanager
async def just(thing: Any) -> AsyncIterator[Any]:
    yield thing


# What is left by `async with`, made of the path of a file.
MANAGERS: dict[str, Callable[[Path], Any]] = {
    "open_aio": lambda path: just(open_aio(path, "r+b")),
    "open_aio, text": lambda path: just(open_aio(path, "r", encoding="latin-1")),
    "open_aio, direct": lambda path: just(open_aio(path, "r+b", direct=True)),
    "open_aio, abandon": lambda path: just(open_aio(path, abandon_on_cancel=True)),
    "open_file": lambda path: just(open_file(path, "rb")),
    "AIOContext": lambda _: just(AIOContext()),
    "open_directory": lambda path: just(open_directory(path.parent)),
    "Writer": writer_of,
    "TemporaryFile": lambda path: just(TemporaryFile(dir=path.parent)),
    "NamedTemporaryFile": lambda path: just(NamedTemporaryFile(dir=path.parent)),
    "NamedTemporaryFile, kept": lambda path: just(NamedTemporaryFile(dir=path.parent, delete_on_close=False)),
    "SpooledTemporaryFile": lambda path: just(SpooledTemporaryFile(dir=path.parent)),
    "TemporaryDirectory": lambda path: just(TemporaryDirectory(dir=path.parent)),
}


def closed(thing: Any, path: Path) -> bool:
    """Return whether what a manager has given is closed, and nothing of it is left beside the file."""
    if isinstance(thing, AIOContext):
        return "closed" in repr(thing)
    if hasattr(thing, "fileno") and not isinstance(thing, SpooledTemporaryFile):
        with pytest.raises(ValueError, match="closed"):
            thing.fileno()
    return getattr(thing, "closed", True) and os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("name", MANAGERS)
async def test_end_of_async_with_in_a_cancelled_scope_closes_and_raises_cancelled(disk: Path, name: str) -> None:
    path, _ = make_file(disk)
    async with MANAGERS[name](path) as manager:
        raised = True
        with CancelScope() as scope:
            async with manager as thing:
                if name == "Writer":
                    await thing.write(b"data")
                scope.cancel()
            raised = False
        assert raised
        assert scope.cancelled_caught
    assert closed(thing, path)
    if name == "Writer":
        assert path.read_bytes()[:4] == b"data"


@pytest.mark.parametrize("name", MANAGERS)
async def test_exception_of_the_body_leaves_a_cancelled_scope_unchanged(disk: Path, name: str) -> None:
    path, _ = make_file(disk)
    async with MANAGERS[name](path) as manager:
        error = KeyError("the body's")
        with CancelScope() as scope:
            with pytest.raises(KeyError) as caught:  # noqa: PT012
                async with manager as thing:
                    scope.cancel()
                    raise error
            assert caught.value is error
            # The cancellation is delivered at the next checkpoint.
            await checkpoint()
        assert scope.cancelled_caught
    assert closed(thing, path)


@pytest.mark.parametrize("name", MANAGERS)
async def test_cancelled_of_the_body_leaves_and_all_is_closed(disk: Path, name: str) -> None:
    path, _ = make_file(disk)
    async with MANAGERS[name](path) as manager:
        with CancelScope() as scope:
            async with manager as thing:
                scope.cancel()
                await checkpoint()
        assert scope.cancelled_caught
    assert closed(thing, path)


# What has an `aclose`, as it is awaited.
CLOSABLE: dict[str, Callable[[Path], Any]] = {
    "open_aio": lambda path: open_aio(path, "r+b"),
    "open_aio, text": lambda path: open_aio(path, "r", encoding="latin-1"),
    "open_aio, abandon": lambda path: open_aio(path, abandon_on_cancel=True),
    "open_file": lambda path: open_file(path),
    "open_directory": lambda path: open_directory(path.parent),
    "TemporaryFile": lambda path: TemporaryFile(dir=path.parent),
    "NamedTemporaryFile": lambda path: NamedTemporaryFile(dir=path.parent),
    "SpooledTemporaryFile": lambda path: SpooledTemporaryFile(dir=path.parent),
    "FileReadStream": lambda path: FileReadStream.from_path(path),
    "FileWriteStream": lambda path: FileWriteStream.from_path(path, append=True),
}


@pytest.mark.parametrize("name", CLOSABLE)
async def test_aclose_in_a_cancelled_scope_closes_and_raises_cancelled_each_time(disk: Path, name: str) -> None:
    path, _ = make_file(disk)
    thing = await CLOSABLE[name](path)
    file = thing._file if name.endswith("Stream") else thing
    for _ in range(2):
        with CancelScope() as scope:
            scope.cancel()
            with pytest.raises(get_cancelled_exc_class()):
                await thing.aclose()
        assert closed(file, path)
    await thing.aclose()


async def test_cleanup_of_a_directory_in_a_cancelled_scope_removes_and_raises_cancelled(disk: Path) -> None:
    made = await TemporaryDirectory(dir=disk)
    for _ in range(2):
        with CancelScope() as scope:
            scope.cancel()
            with pytest.raises(get_cancelled_exc_class()):
                await made.cleanup()
        assert os.listdir(disk) == []


@pytest.mark.parametrize("kind", [FileReadStream, FileWriteStream])
async def test_stream_over_a_file_of_pythons_closes_and_raises_cancelled(disk: Path, kind: Any) -> None:
    path, _ = make_file(disk)
    plain = path.open("r+b")
    stream = kind(plain)
    with CancelScope() as scope:
        scope.cancel()
        with pytest.raises(get_cancelled_exc_class()):
            await stream.aclose()
    assert plain.closed


async def test_cancel_while_a_close_waits_closes_and_raises_cancelled(disk: Path) -> None:
    path, data = make_file(disk)
    results = []

    async def read() -> None:
        results.append(await file.pread(100, 0))

    async with FaultyContext() as context:
        file = await open_aio(path, context=context)
        fd = file.fileno()
        with context.hang(operation="read") as hang:
            async with create_task_group() as readers:
                readers.start_soon(read)
                while not hang.held:
                    await checkpoint()
                with CancelScope() as scope:
                    async with create_task_group() as group:

                        @group.start_soon
                        async def cancel() -> None:
                            await until_blocked()
                            assert is_open(fd)
                            scope.cancel()
                            hang.release()

                        with pytest.raises(get_cancelled_exc_class()):
                            await file.aclose()
                        assert not is_open(fd)
        assert results == [data[:100]]


async def test_error_of_close_is_raised_before_cancelled(disk: Path) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context:
        context.fail(errno.EIO, operation="close")
        file = await open_aio(path, "r+b", context=context)
        with CancelScope() as scope:
            scope.cancel()
            with pytest.raises(OSError, match="Input/output") as caught:
                await file.aclose()
            assert caught.value.errno == errno.EIO
            assert file.closed
            await checkpoint()
        assert scope.cancelled_caught


@pytest.mark.parametrize(("arguments", "last"), [({}, 3), ({"offset": 100}, 2), ({"size": 290 << 10}, 1)])
async def test_whole_file_that_was_read_is_returned_though_the_scope_is_cancelled(
    disk: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, int], last: int
) -> None:
    """The call closes a file of its own: that must not lose what was read. last: which of its reads is the last one."""
    path, data = make_file(disk, 300 << 10)
    monkeypatch.setattr("trio_aio._files.whole.cached_size", lambda _: -1)
    monkeypatch.setattr("trio_aio._files.parts.LARGEST_PART", 128 << 10)
    got: list[bytes] = []
    async with FaultyContext() as context:
        with context.hang(operation="read", turn=last) as hang, CancelScope() as scope:
            async with create_task_group() as group:

                @group.start_soon
                async def cancel() -> None:
                    with CancelScope(shield=True):
                        while not hang.held:
                            await checkpoint()
                        scope.cancel()
                        hang.release()

                got.append(await read_bytes(path, context=context, **arguments))
                await checkpoint()
        assert scope.cancelled_caught
    start = arguments.get("offset", 0)
    assert got == [data[start : start + arguments["size"] if "size" in arguments else None]]


@pytest.mark.backends("asyncio", "asyncio+uvloop")
@pytest.mark.parametrize("name", CLOSABLE)
async def test_native_cancel_closes_and_raises_cancelled(disk: Path, name: str) -> None:
    path, _ = make_file(disk)
    thing = await CLOSABLE[name](path)
    close = asyncio.ensure_future(thing.aclose())
    await asyncio.sleep(0)
    close.cancel()
    with pytest.raises(asyncio.CancelledError):
        await close
    await checkpoint()
    assert closed(thing._file if name.endswith("Stream") else thing, path)


async def until_reaped(engine: Engine) -> None:
    """Wait until every other task waits, and the reaper has seen all signals."""
    await until_blocked()
    while select.select([engine.event_fd], (), (), 0)[0]:
        await checkpoint()
    await until_blocked()


async def test_context_closes_when_the_lease_of_a_closing_file_ends_last(disk: Path) -> None:
    path, _ = make_file(disk)
    with opened(path, os.O_RDONLY) as fd:
        context = await AIOContext().__aenter__()
        file = await open_aio(fd, "rb", closefd=False, context=context)
        backend, engine = context._core.backend, context._core.engine
        assert backend is not None
        assert engine is not None
        lease = Lease(backend, engine, file._descriptor)
        lease.take()
        async with create_task_group() as group:
            group.start_soon(file.aclose)
            await until_blocked()
            group.start_soon(context.aclose)
            await until_reaped(engine)
            assert not context._core.stopping
            lease.end()  # the close needs no worker, so no completion follows it
            signalled, _, _ = select.select([engine.event_fd], (), (), 0)
            engine.wake_loop()  # a test that fails must end too
    assert signalled


async def test_file_closes_though_its_context_begins_to_close_while_a_thread_uses_it(disk: Path) -> None:
    path, _ = make_file(disk)
    context = await AIOContext().__aenter__()
    file = await open_aio(path, context=context)
    fd, blocking = file.fileno(), file.blocking()
    async with create_task_group() as group:
        blocking.lock.acquire()  # as a call in a thread does
        try:
            group.start_soon(file.aclose)
            await until_blocked()
            group.start_soon(context.aclose)
            await until_blocked()
            assert (file.closed, context._core.state == "open") == (False, False)
        finally:
            blocking.lock.release()
    assert file.closed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    blocking.close()


@pytest.mark.parametrize("context_closes", [False, True])
async def test_blocking_file_that_is_made_while_its_file_closes_ends_too(disk: Path, context_closes: bool) -> None:
    path, _ = make_file(disk)
    async with AIOContext() as context:
        file = await open_aio(path, context=context)
        first = file.blocking(allow_loop=True)
        async with create_task_group() as group:
            first.lock.acquire()  # as a call in a thread does
            try:
                group.start_soon(file.aclose)
                await until_blocked()
                if context_closes:
                    group.start_soon(context.aclose)
                    await until_blocked()
                second = file.blocking(allow_loop=True)
            finally:
                first.lock.release()
        assert file.closed
        with pytest.raises(ValueError, match="closed file"):
            second.read(1)


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("when", ["closing", "closed"])
async def test_aclose_while_or_after_the_context_closes_closes_all_the_same(disk: Path, kind: str, when: str) -> None:
    path, _ = make_file(disk)
    context = await AIOContext().__aenter__()
    thing: Any = await (open_aio(path, context=context) if kind == "file" else open_directory(disk, context=context))
    fd = thing.fileno()
    if when == "closed":
        await context.aclose()
    async with create_task_group() as group:
        group.start_soon(context.aclose)
        if when == "closing":
            while context._core.state == "open":
                await checkpoint()
        await thing.aclose()
        await thing.aclose()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
