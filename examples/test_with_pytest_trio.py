"""A fixture that yields an open file, under pytest-trio: pip install pytest-trio; pytest examples/test_with_pytest_trio.py"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trio_aio import AsyncFile, open_aio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[AsyncFile]:
    async with open_aio(tmp_path / "journal", "x+b") as file:
        yield file


async def append(journal: AsyncFile, entry: bytes) -> None:
    """The code under test."""
    await journal.write(len(entry).to_bytes(4, "little") + entry)
    await journal.fdatasync()


@pytest.mark.trio
async def test_append_writes_entries_in_order(journal: AsyncFile) -> None:
    await append(journal, b"first")
    await append(journal, b"second")
    assert await journal.pread(100, 0) == b"\5\0\0\0first\6\0\0\0second"


# autojump_clock jumps to the next deadline when all tasks are blocked. While a request is in flight it stands still, so the timeout below
# does not expire, however slow the disk. The sleep takes no time.


@pytest.mark.trio
async def test_autojump_clock_waits_for_the_disk(journal: AsyncFile, autojump_clock: trio.testing.MockClock) -> None:
    with trio.fail_after(10):
        await append(journal, b"entry")
    assert autojump_clock.current_time() == 0
    await trio.sleep(3600)
    assert await journal.size() == 9
