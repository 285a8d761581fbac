"""Direct and buffered files give the same on every filesystem, around edges and beyond what one system call takes."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trio_aio import open_aio

from ..support.files import BLOCK, content, make_file
from ..support.page_cache import evict

if TYPE_CHECKING:
    from pathlib import Path

    from trio_aio import AsyncFile


pytestmark = pytest.mark.trio

MODES = pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])

EDGES = [0, 1, 299, 300, 301, 511, 512, 513, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 300]

SIZES = [0, 1, 300, 512, BLOCK, BLOCK + 1]


async def _into(file: AsyncFile, size: int, offset: int, pad: int) -> bytes:
    memory = memoryview(mmap.mmap(-1, size + pad + 1))[pad : pad + size]
    n = await file.preadinto(memory, offset)
    assert not any(memory[n:])
    return bytes(memory[:n])


async def _vector(file: AsyncFile, size: int, offset: int) -> bytes:
    parts = [bytearray(size // 3), bytearray(), bytearray(size - size // 3)]
    n = await file.preadv(parts, offset)
    return b"".join(parts)[:n]


async def _at_cursor(file: AsyncFile, size: int, offset: int) -> bytes:
    await file.seek(offset)
    data = await file.read(size)
    assert await file.tell() == offset + len(data)
    return data


@MODES
@pytest.mark.parametrize("length", [0, 300, 2 * BLOCK, 2 * BLOCK + 300])
async def test_every_read_call_returns_the_same_bytes(filesystem: Path, direct: bool, length: int) -> None:
    path, data = make_file(filesystem, length)
    evict(path)
    async with open_aio(path, direct=direct) as file:
        for offset in EDGES:
            for size in SIZES:
                expected = data[offset : offset + size]
                assert await file.pread(size, offset) == expected
                assert await _into(file, size, offset, 0) == expected
                assert await _into(file, size, offset, 1) == expected
                assert await _vector(file, size, offset) == expected
                assert await _at_cursor(file, size, offset) == expected
                assert b"".join([chunk async for chunk in file.chunks(1000, start=offset, stop=offset + size)]) == expected
        ranges = [(offset, size) for offset in EDGES for size in SIZES]
        for max_gap in (0, 600):
            assert await file.read_ranges(ranges, max_gap=max_gap) == [data[offset : offset + size] for offset, size in ranges]
        inside = [offset for offset in EDGES if offset + 300 <= length]
        assert await file.read_blocks(inside, 300) == b"".join(data[offset : offset + 300] for offset in inside)
        with pytest.raises(EOFError, match=f"offset {length}:"):
            await file.read_blocks([*inside, length], 300)


async def _pwrite(file: AsyncFile, data: bytes, offset: int) -> None:
    assert await file.pwrite(data, offset) == len(data)


async def _pwritev(file: AsyncFile, data: bytes, offset: int) -> None:
    assert await file.pwritev([data[:5], b"", data[5:]], offset) == len(data)


async def _write_ranges(file: AsyncFile, data: bytes, offset: int) -> None:
    assert await file.write_ranges([(offset + 5, data[5:]), (offset, data[:5])]) == len(data)


async def _writer(file: AsyncFile, data: bytes, offset: int) -> None:
    async with file.writer(offset, size=1000) as writer:
        assert await writer.write(data) == len(data)


async def _write(file: AsyncFile, data: bytes, offset: int) -> None:
    await file.seek(offset)
    assert await file.write(data) == len(data)
    assert await file.tell() == offset + len(data)


@MODES
@pytest.mark.parametrize("write", [_pwrite, _pwritev, _write_ranges, _writer, _write])
async def test_every_write_call_leaves_the_same_bytes(filesystem: Path, direct: bool, write: Any) -> None:
    path, _ = make_file(filesystem, 300)
    model = bytearray(path.read_bytes())
    async with open_aio(path, "r+b", direct=direct) as file:
        for offset in EDGES:
            for size in SIZES:
                data = content(size, seed=offset + size)
                await write(file, data, offset)
                if data:
                    model.extend(bytes(max(0, offset - len(model))))
                    model[offset : offset + size] = data
                assert await file.size() == len(model)
        assert await file.pread(1 << 20, 0) == model
    assert path.read_bytes() == model


@MODES
async def test_concurrent_writes_of_neighbouring_ranges_are_all_complete(filesystem: Path, direct: bool) -> None:
    path, _ = make_file(filesystem, 0)
    pieces = [content(1 + 97 * i % 700, seed=i) for i in range(100)]
    async with open_aio(path, "r+b", direct=direct) as file:
        async with trio.open_nursery() as nursery:
            offset = 0
            for piece in pieces:
                nursery.start_soon(file.pwrite, piece, offset)
                offset += len(piece)
        assert await file.pread(offset + 1, 0) == b"".join(pieces)


@MODES
async def test_vectors_of_0_and_of_more_than_iov_max_parts_are_complete(filesystem: Path, direct: bool) -> None:
    path, data = make_file(filesystem, 2 * BLOCK + 300)
    async with open_aio(path, "r+b", direct=direct) as file:
        assert await file.preadv([], 0) == await file.pwritev([], 5) == await file.write_ranges([]) == 0
        assert await file.read_ranges([]) == []
        assert await file.read_blocks([], BLOCK) == b""
        parts = [bytearray(3) for _ in range(3000)]
        assert await file.preadv(parts, 7) == len(data) - 7
        assert b"".join(parts)[: len(data) - 7] == data[7:]
        assert await file.pwritev([b"abc"] * 2000, len(data)) == 6000
    assert path.read_bytes() == data + b"abc" * 2000
