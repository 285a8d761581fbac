"""Reads and writes of more than 2 GiB, which is more than one system call takes."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import pytest

from trio_aio import open_aio

from ..support.files import BLOCK, make_file

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = [pytest.mark.slow, pytest.mark.trio]

MODES = pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])


@pytest.mark.parametrize(("direct", "offset"), [(False, 5), (True, 0), (True, 5)])
async def test_read_of_more_than_2_gib_is_complete(filesystem: Path, direct: bool, offset: int) -> None:
    path = filesystem / "sparse"
    size = 33 << 26
    with path.open("wb") as made:
        made.truncate(offset + size - BLOCK)
        made.seek(offset + size - BLOCK - 3)
        made.write(b"end")
    part = mmap.mmap(-1, 1 << 26)
    async with open_aio(path, direct=direct) as file:
        assert await file.preadv([part] * 33, offset) == size - BLOCK
        assert part[-BLOCK - 4 : -BLOCK] == b"\0end"


@MODES
async def test_write_of_more_than_2_gib_is_complete(tmp_path: Path, direct: bool) -> None:
    path, _ = make_file(tmp_path, 0)
    part = mmap.mmap(-1, 1 << 26)
    part[:3], part[-3:] = b"abc", b"xyz"
    async with open_aio(path, "r+b", direct=direct) as file:
        assert await file.pwritev([part] * 33, 0) == 33 << 26
        assert await file.size() == 33 << 26
        cuts = [i << 26 for i in range(1, 33)]
        assert await file.read_ranges([(cut - 3, 6) for cut in cuts]) == [b"xyzabc"] * 32
    path.unlink()  # not kept with the last runs' folders
