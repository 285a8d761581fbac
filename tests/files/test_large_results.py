"""Memory for large results is made once in a tick: mmap(2) waits while workers touch memory of theirs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trio_aio._context.operations
from trio_aio import open_aio, read_bytes

from ..support.files import make_file

if TYPE_CHECKING:
    from pathlib import Path


class Ticks(trio.abc.Instrument):
    """Counts ticks."""

    def __init__(self) -> None:
        self.number: int = 0

    def before_io_wait(self, timeout: float) -> None:
        self.number += 1


@pytest.mark.parametrize("call", ["read_bytes", "pread"])
def test_burst_of_large_reads_makes_memory_once_in_a_tick(disk: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path, data = make_file(disk, 3 << 20)
    ticks = Ticks()
    made_at: list[int] = []
    new_bytes = trio_aio._context.operations.new_bytes

    def counted(size: int, **how: Any) -> Any:
        if size > 1 << 20:
            made_at.append(ticks.number)
        return new_bytes(size, **how)

    monkeypatch.setattr(trio_aio._context.operations, "new_bytes", counted)

    async def main() -> None:
        async def read() -> None:
            assert await (read_bytes(path) if call == "read_bytes" else file.pread(3 << 20, 0)) == data

        async with open_aio(path) as file, trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(read)

    trio.run(main, instruments=[ticks])
    assert len(made_at) == 16
    assert len(set(made_at)) == 16


@pytest.mark.trio
@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
@pytest.mark.parametrize("length", [0, 2000])
async def test_read_of_any_size_at_the_end_of_the_file_returns_nothing(disk: Path, direct: bool, length: int) -> None:
    path, data = make_file(disk, length)
    for size in (1 << 40, sys.maxsize - 40, sys.maxsize):
        async with open_aio(path, direct=direct) as file:
            assert [await file.pread(size, at) for at in (length, length + 5000)] == [b"", b""]
            parts = []
            while part := await file.read(size):
                parts.append(part)
            assert b"".join(parts) == data
            assert await file.read1(size) == b""
            await file.seek(0)
            await file.peek(10)
            assert await file.read(size) == data
        assert await read_bytes(path, offset=length, size=size) == b""


@pytest.mark.trio
@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
async def test_file_that_grows_during_a_large_read_is_read_on(disk: Path, monkeypatch: pytest.MonkeyPatch, direct: bool) -> None:
    # What the kernel says of the size is old, as on a network filesystem.
    path, data = make_file(disk, 5 << 20)
    describe = trio_aio._context.operations.describe

    def as_before(fd: int) -> Any:
        found = describe(fd)
        found.value.size = min(found.value.size, known)
        return found

    monkeypatch.setattr(trio_aio._context.operations, "describe", as_before)
    for size in (0, 1, 4096, 3 << 20, (5 << 20) - 1, 5 << 20):
        known = size
        async with open_aio(path, direct=direct) as file:
            assert await file.pread(6 << 20, 0) == data
            assert await file.pread(6 << 20, 4096) == data[4096:]
