"""What users write, for the type checkers (`make lint`); it is never run."""

# ruff: noqa: TC002, TC003 - as users import
from __future__ import annotations

import array
import errno
import select
from pathlib import Path

import anyio
import trio
from anyio.abc import ByteReceiveStream, ByteSendStream
from typing_extensions import assert_type

from trio_aio import (
    RWF,
    AIOContext,
    AIOStatistics,
    Alignment,
    AsyncFile,
    AsyncTextFile,
    FileReadStream,
    FileWriteStream,
    current_context,
    open_aio,
    read_bytes,
    read_text,
    write_bytes,
    write_text,
)
from trio_aio.lowlevel import IOCB, IOEvent, io_getevents, io_setup, io_submit
from trio_aio.testing import FaultyContext


async def opening(path: Path, name: bytes, fd: int, mode: str) -> None:
    async with open_aio(path) as file:
        assert_type(file, AsyncFile)
    async with open_aio(name, "r+b", direct=True, abandon_on_cancel=True) as file:
        assert_type(file, AsyncFile)
    async with open_aio(trio.Path(path), "w", encoding="utf-8", newline="") as text:
        assert_type(text, AsyncTextFile)
    assert_type(await open_aio(anyio.Path(path), "rt"), AsyncTextFile)
    assert_type(await open_aio(fd, "ab", closefd=False), AsyncFile)
    assert_type(await open_aio(path, mode), "AsyncFile | AsyncTextFile")


async def binary(file: AsyncFile) -> None:
    memory = bytearray(4096)
    assert_type(await file.pread(4096, 0, flags=RWF.HIPRI), bytes)
    assert_type(await file.preadinto(memory, 0), int)
    assert_type(await file.preadv([memory, memoryview(memory)], 0), int)
    assert_type(await file.pwrite(memory, 0, flags=RWF.DSYNC | RWF.NOWAIT), int)
    assert_type(await file.pwritev([b"a", memory], 0), int)
    assert_type(await file.read_ranges([(0, 10), (20, 10)], max_gap=64), "list[bytes]")
    assert_type(await file.write_ranges([(0, b"a"), (5, memory)]), int)
    await file.read_blocks(array.array("q", [0, 4096]), 4096)
    await file.read_blocks(range(0, 8192, 4096), 4096, into=memory)
    async for chunk in file.chunks(1 << 20, start=0, stop=None, depth=8):
        assert_type(chunk, bytes)
    async with file.chunks() as chunks:
        assert_type(await chunks.__anext__(), bytes)
    async with file.writer(0, size=1 << 20, depth=4) as writer:
        assert_type(await writer.write(memory), int)
    await file.fsync()
    await file.fdatasync()
    await file.fallocate(0, 4096)
    assert_type(await file.size(), int)
    assert_type((await file.stat()).st_size, int)
    assert_type(await file.read(), bytes)
    assert_type(await file.readinto(memory), int)
    assert_type(await file.readline(), bytes)
    assert_type(await file.readlines(), "list[bytes]")
    async for line in file:
        assert_type(line, bytes)
    assert_type(await file.write(memory), int)
    await file.writelines([b"a", memory])
    assert_type(await file.seek(0, 2), int)
    assert_type(await file.tell(), int)
    assert_type(await file.truncate(), int)
    assert_type(file.fileno(), int)
    assert_type(file.closed, bool)
    assert_type(file.direct, bool)
    assert_type(file.alignment, Alignment)
    assert_type(file.context, AIOContext)
    await file.aclose()


async def text(file: AsyncTextFile) -> None:
    assert_type(await file.read(10), str)
    assert_type(await file.readline(), str)
    assert_type(await file.readlines(), "list[str]")
    async for line in file:
        assert_type(line, str)
    assert_type(await file.write("a"), int)
    assert_type(file.encoding, str)
    assert_type(file.buffer, AsyncFile)


async def whole(path: Path) -> None:
    assert_type(await read_bytes(path), bytes)
    assert_type(await read_text(path, "utf-8", newline=""), str)
    assert_type(await write_bytes(path, bytearray(1)), int)
    assert_type(await write_text(path, "a", errors="replace"), int)


async def streams(path: Path) -> None:
    async with await FileReadStream.from_path(path) as source, await FileWriteStream.from_path(path, append=True) as sink:
        receive: ByteReceiveStream = source
        send: ByteSendStream = sink
        async for data in receive:
            await send.send(data)
        assert_type(await source.seek(0), int)


async def contexts(fd: int) -> None:
    async with AIOContext(256, max_workers=4, engine="aio") as context:
        assert_type(await context.pread(fd, 10, 0), bytes)
        assert_type(await context.pwrite(fd, b"a", 0, flags=RWF.APPEND), int)
        await context.fsync(fd)
        assert_type(await context.poll(fd, select.POLLIN), int)
        assert_type(context.statistics(), AIOStatistics)
    assert_type(current_context().statistics().bytes_read, int)


async def faults(path: Path) -> None:
    async with FaultyContext() as context, open_aio(path, context=context):
        context.fail(errno.EIO, operation="sync", times=1)
        with context.hang(file=path, operation="read") as hang:
            assert_type(hang.held, int)
            hang.release(errno.EIO)


def system_calls(fd: int) -> list[IOEvent]:
    ring = io_setup(8)
    assert_type(io_submit(ring, [IOCB.pread(fd, bytearray(8), 0, data=1), IOCB.poll(fd, select.POLLIN)]), int)
    return io_getevents(ring, 1, 8, timeout=0.5)
