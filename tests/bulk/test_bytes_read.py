"""`AIOStatistics.bytes_read` counts what calls return, each byte once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from trio_aio import AIOContext, AsyncFile, open_aio

from ..support.files import make_file

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

SIZE = 10_000


async def _chunks(file: AsyncFile) -> list[bytes]:
    return [chunk async for chunk in file.chunks(4096)]


async def _preadinto(file: AsyncFile) -> bytes:
    memory = bytearray(4096)
    return bytes(memory[: await file.preadinto(memory, 8192)])


CALLS: dict[str, Callable[[AsyncFile], Awaitable[Any]]] = {
    "pread": lambda file: file.pread(4096, 0),
    "pread at the end": lambda file: file.pread(4096, 8192),
    "pread behind the end": lambda file: file.pread(4096, 2 * SIZE),
    "preadinto at the end": _preadinto,
    "read_ranges": lambda file: file.read_ranges([(0, 4096), (4096, 4096)]),
    "read_ranges with the end": lambda file: file.read_ranges([(0, 4096), (8192, 4096)]),
    "read_ranges at the end": lambda file: file.read_ranges([(8192, 4096)]),
    "two read_ranges at the end": lambda file: file.read_ranges([(8192, 800), (9500, 4096)]),
    "read_ranges behind the end": lambda file: file.read_ranges([(2 * SIZE, 10)]),
    "read_ranges of much": lambda file: file.read_ranges([(0, 1 << 20)]),
    "read_blocks": lambda file: file.read_blocks([0, 4096], 4096),
    "chunks": _chunks,
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.backends("trio")
@pytest.mark.anyio
async def test_bytes_read_counts_each_byte_once(filesystem: Path, name: str) -> None:
    path, data = make_file(filesystem, SIZE)
    async with AIOContext() as context, open_aio(path, context=context) as file:
        for evicted in (False, True):
            if evicted:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                assert path.read_bytes() == data
            before = context.statistics().bytes_read
            got = await CALLS[name](file)
            size = sum(map(len, got)) if isinstance(got, list) else len(got)
            assert context.statistics().bytes_read - before == size
