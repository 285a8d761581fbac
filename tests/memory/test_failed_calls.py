"""A call that has failed holds the caller's buffer no longer, not even by the frames in the traceback of its exception.

So the caller may resize it in the ``except`` clause. Of an abandoned read it is held: the kernel still writes to it.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import mmap
import os
import sys
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

import trio_aio.os
from trio_aio import AIOContext, FileWriteStream, current_context, open_aio, write_bytes
from trio_aio.testing import FaultyContext, Hang

from ..support.files import BLOCK, make_file, opened
from ..support.tasks import busy, cancel_when_blocked, until_blocked, until_idle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trio_aio import AsyncFile

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]


async def into_writer(file: AsyncFile, buffer: bytearray) -> None:
    async with file.writer(0, size=BLOCK, depth=1) as writer:
        for _ in range(3):  # the error of a block comes with a later one
            await writer.write(buffer)


READS: dict[str, Any] = {
    "preadinto": lambda file, buffer: file.preadinto(buffer, 0),
    "preadinto, not aligned": lambda file, buffer: file.preadinto(buffer, 7),
    "preadv": lambda file, buffer: file.preadv([buffer], 0),
    "preadv, not aligned": lambda file, buffer: file.preadv([bytearray(5), buffer], 7),
    "readinto": lambda file, buffer: file.readinto(buffer),
    "readinto1": lambda file, buffer: file.readinto1(buffer),
    "read_blocks": lambda file, buffer: file.read_blocks([BLOCK, 3 * BLOCK], len(buffer) // 2, into=buffer),
    "context.preadinto": lambda file, buffer: file.context.preadinto(file.fileno(), buffer, 0),
}
WRITES: dict[str, Any] = {
    "pwrite": lambda file, buffer: file.pwrite(buffer, 0),
    "pwrite, not aligned": lambda file, buffer: file.pwrite(buffer, 7),
    "pwritev": lambda file, buffer: file.pwritev([buffer], 0),
    "pwritev, not aligned": lambda file, buffer: file.pwritev([b"12345", buffer], 7),
    "write": lambda file, buffer: file.write(buffer),
    "writelines": lambda file, buffer: file.writelines([buffer]),
    "write_ranges": lambda file, buffer: file.write_ranges([(0, buffer), (2 * len(buffer) + 7, buffer)]),
    "context.pwrite": lambda file, buffer: file.context.pwrite(file.fileno(), buffer, 0),
    "writer": into_writer,
    "mapped lines": lambda file, buffer: file.writelines([b"1\n", *[buffer] * 300]),
    "send": lambda file, buffer: FileWriteStream(file).send(buffer),
}
CALLS = READS | WRITES
SIZES = (2 * BLOCK, 2 << 20)
KINDS = pytest.mark.parametrize("kind", ["buffered", "direct", "adopted", "appending"])


def open_as(kind: str, path: Path, context: AIOContext) -> Any:
    """Return what opens a file: by its path, with O_DIRECT, by a descriptor of others, or for appending."""
    if kind == "adopted":
        return open_aio(os.open(path, os.O_RDWR), "r+b", context=context)
    if kind == "appending":
        return open_aio(path, "a+b", context=context)
    return open_aio(path, "r+b", direct=kind == "direct", context=context)


def can_resize(buffer: Any) -> bool:
    """Resize a bytearray, or close a mapping, and return whether that was possible: it is not while its memory is held."""
    try:
        if isinstance(buffer, mmap.mmap):
            buffer.close()
        else:
            buffer.extend(b"more")
    except BufferError:
        return False
    return True


@pytest.mark.parametrize("mapped", [False, True], ids=["bytearray", "mapped"])
@KINDS
async def test_failed_call_releases_the_buffer(file: tuple[Path, bytes], disk: Path, kind: str, mapped: bool) -> None:
    holding = []
    other = (disk / "mapped").open("w+b")
    other.truncate(SIZES[-1])
    async with FaultyContext() as context:
        for (name, call), size in itertools.product(CALLS.items(), SIZES):
            async with open_as(kind, file[0], context) as opened_file:
                buffer: Any = mmap.mmap(other.fileno(), size) if mapped else bytearray(size)
                with context.fail(errno.EIO, operation="read" if name in READS else "write"):
                    try:
                        await call(opened_file, buffer)
                        pytest.fail(f"{name} did not fail")
                    except (OSError, anyio.BrokenResourceError):
                        if not can_resize(buffer):
                            holding.append((name, size))
    other.close()
    assert not holding


@KINDS
async def test_write_of_memory_that_is_gone_releases_the_mapping(file: tuple[Path, bytes], disk: Path, kind: str) -> None:
    holding = []
    for name, call in WRITES.items():
        with (disk / "mapped").open("w+b") as other:
            other.truncate(2 * BLOCK)
            mapping = mmap.mmap(other.fileno(), 2 * BLOCK)
            other.truncate(0)
        async with open_as(kind, file[0], current_context()) as opened_file:
            try:
                await call(opened_file, mapping)
                pytest.fail(f"{name} did not fail")
            except (OSError, anyio.BrokenResourceError):
                if not can_resize(mapping):
                    holding.append(name)
    assert not holding


@KINDS
async def test_call_in_a_cancelled_scope_releases_the_buffer(file: tuple[Path, bytes], kind: str) -> None:
    holding = []
    async with AIOContext() as context:
        for (name, call), size in itertools.product(CALLS.items(), SIZES):
            async with open_as(kind, file[0], context) as opened_file:
                buffer = bytearray(size)
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    try:
                        await call(opened_file, buffer)
                    except anyio.get_cancelled_exc_class():
                        if not can_resize(buffer):
                            holding.append((name, size))
                        raise
                assert scope.cancelled_caught
    assert not holding


@pytest.mark.parametrize("call", [name for name in CALLS if name != "writer"])  # leaving a writer waits for its blocks
async def test_withdrawn_call_releases_the_buffer(file: tuple[Path, bytes], call: str) -> None:
    buffer = bytearray(2 << 20)
    async with (
        AIOContext(max_workers=1, engine="workers") as context,
        open_as("buffered", file[0], context) as opened_file,
        busy(context) as pipe,
        anyio.create_task_group() as group,
    ):
        with anyio.CancelScope() as scope:
            group.start_soon(cancel_when_blocked, scope)
            try:
                await CALLS[call](opened_file, buffer)
            except anyio.get_cancelled_exc_class():
                assert can_resize(buffer)
                raise
            finally:
                pipe.release()
        assert scope.cancelled_caught


@pytest.mark.parametrize("call", ["preadinto", "pwrite"])
async def test_call_by_fd_that_the_kernel_refuses_releases_the_buffer(file: tuple[Path, bytes], call: str) -> None:
    buffer = bytearray(BLOCK)
    context = current_context()
    with opened(file[0], os.O_WRONLY if call == "preadinto" else os.O_RDONLY) as fd:
        try:
            await getattr(context, call)(fd, buffer, 0)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            assert can_resize(buffer)
    assert len(buffer) == BLOCK + 4


async def test_failed_write_bytes_releases_the_buffer(disk: Path) -> None:
    buffer = bytearray(BLOCK)
    try:
        await write_bytes(disk / "no folder" / "file", buffer)
    except FileNotFoundError:
        assert can_resize(buffer)
    assert len(buffer) == BLOCK + 4


async def test_failed_setxattr_releases_the_buffer(disk: Path) -> None:
    buffer = bytearray(16)
    try:
        await trio_aio.os.setxattr(disk / "no file", "user.name", buffer)
    except FileNotFoundError:
        assert can_resize(buffer)
    assert len(buffer) == 20


@pytest.mark.parametrize("kind", ["buffered", "direct"])
async def test_buffer_that_does_not_suit_is_not_held(file: tuple[Path, bytes], kind: str) -> None:
    buffer = bytearray(2 * BLOCK)
    calls: list[Callable[[Any], Awaitable[Any]]] = [
        lambda file: file.read_blocks([0, BLOCK, 2 * BLOCK], BLOCK, into=buffer),
        lambda file: file.read_blocks([0, -BLOCK], BLOCK, into=buffer),
        lambda file: file.read_blocks([1 << 40, 0], len(buffer) // 2, into=buffer),
        lambda file: file.write_ranges([(0, buffer), (-1, buffer)]),
        lambda file: file.writer(0).write(buffer),
    ]
    async with open_aio(file[0], "r+b", direct=kind == "direct") as opened_file:
        for call in calls:
            before = len(buffer)
            try:
                await call(opened_file)
            except (EOFError, ValueError, RuntimeError):
                assert can_resize(buffer)
            assert len(buffer) == before + 4
            del buffer[before:]


async def test_abandoned_read_holds_the_buffer_until_it_completes(file: tuple[Path, bytes]) -> None:
    buffer = bytearray(BLOCK)
    held = sys.getrefcount(buffer)
    async with FaultyContext() as context, open_aio(file[0], context=context, abandon_on_cancel=True) as opened_file:
        with context.hang(operation="read"), anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(cancel_when_blocked, scope)
                await opened_file.preadinto(buffer, 0)
        assert not can_resize(buffer)
        while sys.getrefcount(buffer) > held:
            await anyio.lowlevel.checkpoint()
    assert can_resize(buffer)


async def until_idle_but(context: AIOContext, hang: Hang) -> None:
    """Wait until only the requests that hang are in flight."""
    while context.statistics().in_flight > hang.held:
        await anyio.lowlevel.checkpoint()


@pytest.mark.backends("asyncio")
@pytest.mark.parametrize("call", ["read_blocks", "write_ranges"])
async def test_dropped_call_of_several_requests_holds_the_buffer_until_all_have_ended(disk: Path, call: str) -> None:
    path, data = make_file(disk, 1500 * 512)  # three requests of a direct file, two of them in flight at once
    buffer = bytearray(len(data))
    async with FaultyContext() as context, open_aio(path, "r+b", direct=True, context=context) as opened_file:
        if call == "read_blocks":
            coroutine = opened_file.read_blocks(range(0, len(data), 512), 512, into=buffer)
        else:
            coroutine = opened_file.write_ranges([(0, buffer), (len(data) + 7, buffer)])
        operation: Any = "read" if call == "read_blocks" else "write"
        before_last = 2 * 512 if call == "read_blocks" else 1  # pieces
        with context.hang(operation=operation, turn=before_last + 1) as last:
            with context.hang(operation=operation, turn=1, times=before_last):
                task = asyncio.ensure_future(coroutine)
                await until_blocked()
                coroutine.close()  # as when the loop ends and drops its tasks
                assert not can_resize(buffer)
            while not last.held:
                await anyio.lowlevel.checkpoint()
            await until_idle_but(context, last)
            assert not can_resize(buffer)
        with pytest.raises(RuntimeError):
            await task
        while not can_resize(buffer):
            await anyio.lowlevel.checkpoint()
        await until_idle(context)
    if call == "read_blocks":
        assert buffer[: len(data)] == data
    else:
        assert path.read_bytes() == bytes(2 * len(data) + 7)
