"""Memory for large results is made once in a tick: mmap(2) waits while workers touch memory of theirs."""

from __future__ import annotations

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
