"""RWF.NOAPPEND: a write at its offset, of a file that is open for appending. overlayfs forgets the flag in pwritev2(2)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from trio_aio import RWF, AIOContext, open_aio

from ..conftest import need

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio")]


def _needs_the_flag(folder: Path) -> None:
    path = folder / "trial"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.pwritev(fd, [b"x"], 0, RWF.NOAPPEND)
        known = True
    except OSError:
        known = False
    finally:
        os.close(fd)
    need(known, "Linux 6.9, for RWF_NOAPPEND")


@pytest.mark.parametrize("engine", ["aio", "workers"])
async def test_noappend_writes_at_the_offset(filesystem: Path, engine: str) -> None:
    _needs_the_flag(filesystem)
    path = filesystem / "file"
    path.write_bytes(b"0123456789")
    async with AIOContext(engine=engine) as context, open_aio(path, "a+b", context=context) as file:  # type: ignore[arg-type]
        assert await file.pwrite(b"AB", 0, flags=RWF.NOAPPEND) == 2
        assert await file.pwritev([b"C", b"DE"], 5, flags=RWF.NOAPPEND) == 3
        assert await file.pwrite(b"FG", 12, flags=RWF.NOAPPEND | RWF.DSYNC) == 2
        assert await context.pwrite(file.fileno(), b"H", 3, flags=RWF.NOAPPEND) == 1
        assert path.read_bytes() == b"AB2H4CDE89\0\0FG"
        await file.pwrite(b"end", 0)
        assert await file.pread(100, 0) == path.read_bytes() == b"AB2H4CDE89\0\0FGend"


async def test_noappend_of_a_direct_file(filesystem: Path) -> None:
    _needs_the_flag(filesystem)
    path = filesystem / "file"
    path.write_bytes(bytes(8192))
    async with open_aio(path, "a+b", direct=True) as file:
        assert await file.pwrite(b"AB", 1, flags=RWF.NOAPPEND) == 2
        assert await file.pwrite(b"C" * 4096, 4096, flags=RWF.NOAPPEND) == 4096
    assert path.read_bytes() == b"\0AB".ljust(4096, b"\0") + b"C" * 4096


async def test_noappend_of_many_buffers_writes_all(filesystem: Path) -> None:
    _needs_the_flag(filesystem)
    path = filesystem / "file"
    path.write_bytes(bytes(10_000))
    async with open_aio(path, "ab") as file:
        assert await file.pwritev([b"xy"] * 3000, 1000, flags=RWF.NOAPPEND) == 6000
    assert path.read_bytes() == bytes(1000) + b"xy" * 3000 + bytes(3000)


async def test_noappend_that_fails_says_why(filesystem: Path) -> None:
    _needs_the_flag(filesystem)
    path = filesystem / "file"
    path.write_bytes(b"0123456789")
    async with open_aio(path, "ab") as file:
        with pytest.raises(OSError, match=r"too large|Invalid argument"):
            await file.pwrite(b"x", (1 << 63) - 1, flags=RWF.NOAPPEND)
    assert path.read_bytes() == b"0123456789"


async def test_workers_leave_no_context_behind(disk: Path) -> None:
    """The fixture that each test is under counts the kernel's contexts: at most one is left, for the next run."""
    _needs_the_flag(disk)
    path = disk / "file"
    path.write_bytes(b"0123456789")
    for _ in range(3):
        async with AIOContext() as context, open_aio(path, "ab", context=context) as file:
            await file.pwrite(b"x", 0, flags=RWF.NOAPPEND)
