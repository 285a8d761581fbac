"""Files that the kernel makes up while they are read (/proc, /sys): their size is 0 or wrong, and they are read in order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from anyio import create_task_group

from trio_aio import FileReadStream, copy_file, open_aio, read_bytes
from trio_aio.testing import FaultyContext

from ..support.files import BLOCK, make_file
from ..support.tasks import until_blocked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]

LONG = Path("/proc/kallsyms")


async def in_flight(context: FaultyContext, path: Path, size: int) -> int:
    """Return how many reads `chunks` has in flight when it waits for the first chunk."""
    async with open_aio(path, context=context) as file, file.chunks(size, depth=4) as chunks:
        with context.hang(file=path, operation="read") as hang:
            async with create_task_group() as group:
                group.start_soon(chunks.__anext__)
                await until_blocked()
                held = hang.held
                hang.release()
        return held


async def ahead_of(context: FaultyContext, path: Path, size: int) -> int:
    """Return how many reads `chunks` has started ahead of a consumer that has taken the third chunk."""
    async with open_aio(path, context=context) as file, file.chunks(size, depth=4) as chunks:
        for _ in range(3):
            assert len(await chunks.__anext__()) == size
        return len(chunks._ahead)


def content_of(path: Path) -> bytes:
    return path.read_bytes()


@pytest.mark.parametrize("path", [LONG, Path("/sys/kernel/mm/transparent_hugepage/enabled")], ids=["proc", "sys"])
async def test_chunks_of_a_made_up_file_has_one_read_in_flight(path: Path) -> None:
    async with FaultyContext() as context:
        assert await in_flight(context, path, 7) == 1
        assert await ahead_of(context, path, 3) == 1


async def test_chunks_of_a_file_on_a_disk_has_several_reads_in_flight(disk: Path) -> None:
    path, _ = make_file(disk, 8 * BLOCK)
    async with FaultyContext() as context:
        assert await in_flight(context, path, BLOCK) == 4


async def test_chunks_of_a_file_without_blocks_goes_ahead_once_a_read_has_confirmed_its_size(disk: Path) -> None:
    path = disk / "file"
    with path.open("wb") as made:
        made.truncate(64 * BLOCK)
    async with FaultyContext() as context:
        assert await in_flight(context, path, BLOCK) == 1
        assert await ahead_of(context, path, BLOCK) == 4


async def test_chunks_goes_ahead_in_a_file_that_has_grown(disk: Path) -> None:
    path = disk / "file"
    path.write_bytes(bytes(BLOCK))
    async with FaultyContext() as context, open_aio(path, "r+b", context=context) as file, file.chunks(BLOCK, depth=4) as chunks:
        with context.hang(file=path, operation="read") as hang:
            async with create_task_group() as group:
                group.start_soon(chunks.__anext__)
                await until_blocked()
                assert hang.held == 1
                await file.pwrite(bytes(15 * BLOCK), BLOCK)
                hang.release()
        assert len(chunks._ahead) == 4


async def joined(parts: Any) -> bytes:
    return b"".join([part async for part in parts])


async def chunks_of(path: Path) -> bytes:
    async with open_aio(path) as file:
        return await joined(file.chunks(65536))


async def lines_of(path: Path) -> bytes:
    async with open_aio(path) as file:
        return await joined(file)


async def text_of(path: Path) -> bytes:
    async with open_aio(path, "r") as file:
        return "".join([line async for line in file]).encode()


async def stream_of(path: Path) -> bytes:
    async with await FileReadStream.from_path(path) as stream:
        return await joined(stream)


async def buffers_of(path: Path) -> bytes:
    memory, parts = bytearray(65536), []
    async with open_aio(path) as file:
        while n := await file.readinto(memory):
            parts.append(memory[:n])
    return b"".join(parts)


async def copy_of(path: Path, folder: Path) -> bytes:
    await copy_file(path, folder / "copy")
    return content_of(folder / "copy")


@pytest.mark.parametrize("call", [chunks_of, lines_of, text_of, stream_of, buffers_of, read_bytes])
async def test_made_up_file_is_read_whole(call: Callable[[Path], Awaitable[bytes]]) -> None:
    assert await call(LONG) == content_of(LONG)


async def test_made_up_file_is_copied_whole(tmp_path: Path) -> None:
    assert await copy_of(LONG, tmp_path) == content_of(LONG)
