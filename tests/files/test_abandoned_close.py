"""Leaving a file whose abandoned reads hang: no task waits for them, and the descriptor is closed when they have completed."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint

from trio_aio import open_aio
from trio_aio.testing import FaultyContext

from ..support.files import BLOCK, is_open, make_file
from ..support.programs import run
from ..support.tasks import abandon, until_blocked, until_closed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trio_aio import AsyncFile

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio", "asyncio+uvloop")]

LANES = pytest.mark.parametrize("direct", [False, True], ids=["workers", "kernel"])


async def take_chunks(file: AsyncFile) -> None:
    async for _ in file.chunks(BLOCK):
        pass


READS: dict[str, Callable[[AsyncFile], Awaitable[Any]]] = {
    "pread": lambda file: file.pread(BLOCK, 0),
    "preadinto": lambda file: file.preadinto(bytearray(100), 7),
    "read_blocks": lambda file: file.read_blocks([0, BLOCK], BLOCK),
    "read_ranges": lambda file: file.read_ranges([(0, 10), (3 * BLOCK, 10)]),
    "read": lambda file: file.read(100),
    "readline": lambda file: file.readline(),
    "chunks": take_chunks,
}


async def leave_body(file: AsyncFile) -> None:
    async with file:
        pass


LEAVINGS: dict[str, Callable[[AsyncFile], Awaitable[Any]]] = {"aclose": lambda file: file.aclose(), "async with": leave_body}


@LANES
@pytest.mark.parametrize("shared", [False, True], ids=["", "shared"])
@pytest.mark.parametrize("name", READS)
async def test_close_after_abandoned_read_returns_before_the_read_completes(disk: Path, direct: bool, shared: bool, name: str) -> None:
    path, data = make_file(disk)
    async with FaultyContext() as context:
        with context.hang(operation="read") as hang, anyio.fail_after(60):
            async with open_aio(path, direct=direct, abandon_on_cancel=True, context=context) as file:
                fd = file.fileno() if shared else file._descriptor.fd
                await abandon(partial(READS[name], file), hang, requests=4 if name == "chunks" else 1)
            assert file.closed
            assert hang.held
            assert is_open(fd)
            with pytest.raises(ValueError, match="closed file"):
                await file.pread(1, 0)
            async with open_aio(path, context=context) as other:
                assert await other.size() == len(data)
        await until_closed(fd)


@LANES
async def test_close_waits_for_a_write_and_then_not_for_the_abandoned_read(disk: Path, direct: bool) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context:
        with context.hang(operation="read") as hang, anyio.fail_after(60):
            file = await open_aio(path, "r+b", direct=direct, abandon_on_cancel=True, context=context)
            fd = file._descriptor.fd
            await abandon(partial(file.pread, BLOCK, 0), hang)
            with context.hang(operation="write") as write:
                async with create_task_group() as tasks:
                    tasks.start_soon(file.pwrite, b"x" * BLOCK, 0)
                    while not write.held:
                        await checkpoint()
                    tasks.start_soon(file.aclose)
                    await until_blocked()
                    assert file.closed
                    assert not file._close_request.finished
                    write.release()
            assert hang.held
            assert is_open(fd)
        await until_closed(fd)
    assert path.read_bytes()[:BLOCK] == b"x" * BLOCK


@LANES
async def test_close_that_waits_for_a_read_returns_when_that_is_abandoned(disk: Path, direct: bool) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context:
        with context.hang(operation="read") as hang, anyio.fail_after(60):
            file = await open_aio(path, direct=direct, abandon_on_cancel=True, context=context)
            fd = file._descriptor.fd
            async with create_task_group() as tasks:
                scope = CancelScope()

                async def read() -> None:
                    with scope:
                        await file.pread(BLOCK, 0)

                tasks.start_soon(read)
                while not hang.held:
                    await checkpoint()
                tasks.start_soon(file.aclose)
                await until_blocked()
                assert not file._close_request.finished
                scope.cancel()
            assert hang.held
            assert is_open(fd)
        await until_closed(fd)


@LANES
@pytest.mark.parametrize("mode", ["rb", "r+b"])
@pytest.mark.parametrize("leave", LEAVINGS)
async def test_close_that_hangs_is_abandoned(disk: Path, direct: bool, mode: Any, leave: str) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context:
        file = await open_aio(path, mode, direct=direct, abandon_on_cancel=True, context=context)
        fd = file._descriptor.fd
        with context.hang(operation="close") as hang, anyio.fail_after(60):
            await abandon(partial(LEAVINGS[leave], file), hang)
            assert file.closed
            assert is_open(fd)
        await until_closed(fd)


async def test_close_that_hangs_is_waited_for_if_the_descriptor_is_the_callers(disk: Path) -> None:
    path = disk / "file"
    path.write_bytes(b"line\n" * 20_000)
    fd = os.open(path, os.O_RDONLY)
    async with FaultyContext() as context:
        file = await open_aio(fd, closefd=False, abandon_on_cancel=True, context=context)
        assert await file.readline() == b"line\n"
        with context.hang(operation="close") as hang, anyio.fail_after(60):
            async with create_task_group() as tasks:
                tasks.start_soon(file.aclose)
                while not hang.held:
                    await checkpoint()
                tasks.cancel_scope.cancel()
                with CancelScope(shield=True):
                    await until_blocked()
                assert not file._close_request.finished
                hang.release()
        assert os.lseek(fd, 0, os.SEEK_CUR) == 5
    os.close(fd)


async def test_abandoned_read_of_adopted_descriptor_gives_back_lines_at_close(disk: Path) -> None:
    path = disk / "file"
    path.write_bytes(b"line\n" * 20_000)
    fd = os.open(path, os.O_RDONLY)
    async with FaultyContext() as context:
        async with open_aio(fd, closefd=False, abandon_on_cancel=True, context=context) as file:
            assert await file.readline() == b"line\n"
            with context.hang(operation="read") as hang, anyio.fail_after(60):
                await abandon(partial(file.pread, 10, 0), hang)
                await file.aclose()
                assert hang.held
        while os.lseek(fd, 0, os.SEEK_CUR) != 5:  # when the read has completed
            await checkpoint()
    os.close(fd)


@pytest.mark.parametrize("library", ["trio", "asyncio"])
@pytest.mark.parametrize("direct", [False, True])
def test_run_that_drops_a_file_with_an_abandoned_read_ends_while_the_read_hangs(disk: Path, library: str, direct: bool) -> None:
    path, _ = make_file(disk)
    said = run(
        """
        import anyio, contextlib, faulthandler, gc
        from trio_aio.testing import FaultyContext
        library, direct = sys.argv[2:]
        hangs = []
        async def main():
            context = await FaultyContext().__aenter__()
            file = await open_aio(path, direct=direct == "True", abandon_on_cancel=True, context=context)
            hang = context.hang(operation="read")
            hangs.append(hang)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(file.pread, BLOCK, 0)
                while not hang.held:
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        def opened():
            found = 0
            for fd in os.listdir("/proc/self/fd"):
                with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                    found += os.readlink(f"/proc/self/fd/{fd}") == path
            return found
        warnings.simplefilter("ignore")
        faulthandler.dump_traceback_later(60, exit=True)
        anyio.run(main, backend=library)
        gc.collect()
        print(hangs[0].held, opened())
        hangs[0].release()
        while opened():  # a thread closes it, and no other can join that one
            os.sched_yield()
        print(opened())
        faulthandler.cancel_dump_traceback_later()
        """,
        path.resolve(),
        library,
        direct,
    )
    assert said.split() == ["1", "1", "0"]


async def test_file_is_closed_while_its_chunks_are_being_closed(disk: Path) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context:
        file = await open_aio(path, context=context, abandon_on_cancel=True)
        fd = file._descriptor.fd
        chunks = file.chunks(BLOCK, depth=3)
        assert await chunks.__anext__()
        with context.hang(operation="read") as hang, anyio.fail_after(60):
            assert await chunks.__anext__()
            while not hang.held:
                await checkpoint()
            async with create_task_group() as tasks:
                for close in (chunks.aclose, file.aclose):
                    tasks.start_soon(close)
                    await until_blocked()
                hang.release()
            await until_closed(fd)
