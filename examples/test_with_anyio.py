"""A fixture that yields an open file, under anyio's pytest plugin, on asyncio and on trio: pytest examples/test_with_anyio.py"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from trio_aio import AsyncFile, open_aio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.fixture
async def numbers(tmp_path: Path) -> AsyncIterator[AsyncFile]:
    async with open_aio(tmp_path / "numbers", "x+b") as file:
        await file.write(bytes(range(256)))
        yield file


async def read_backwards(file: AsyncFile) -> bytes:
    """The code under test."""
    parts: dict[int, bytes] = {}

    async def read(offset: int) -> None:
        parts[offset] = await file.pread(1, offset)

    async with anyio.create_task_group() as group:
        for offset in range(await file.size()):
            group.start_soon(read, offset)
    return b"".join(parts[offset] for offset in sorted(parts, reverse=True))


async def test_read_backwards_returns_reversed_bytes(numbers: AsyncFile) -> None:
    assert await read_backwards(numbers) == bytes(reversed(range(256)))
