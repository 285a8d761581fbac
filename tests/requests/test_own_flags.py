"""Flags of the caller's: what they say of the device, and writes that must not be split."""

from __future__ import annotations

import errno
import mmap
from typing import TYPE_CHECKING, Any

import pytest

from trio_aio import RWF, open_aio

from ..conftest import need
from ..support.files import BLOCK, make_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trio_aio import AsyncFile

pytestmark = pytest.mark.anyio
MIB = 1 << 20


@pytest.mark.parametrize(
    "call",
    [
        lambda file: file.pread(BLOCK, 0, flags=RWF.ATOMIC),
        lambda file: file.preadinto(mmap.mmap(-1, BLOCK), 0, flags=RWF.ATOMIC),
        lambda file: file.preadv([mmap.mmap(-1, BLOCK)], 0, flags=RWF.ATOMIC),
        lambda file: file.pwrite(bytes(BLOCK), 0, flags=RWF.ATOMIC),
        lambda file: file.pwrite(mmap.mmap(-1, BLOCK), 0, flags=RWF.ATOMIC),
        lambda file: file.pwritev([mmap.mmap(-1, BLOCK)], 0, flags=RWF.ATOMIC),
        lambda file: file.context.pread(file.fileno(), BLOCK, 0, flags=RWF.ATOMIC),
    ],
    ids=["pread", "preadinto", "preadv", "pwrite", "pwrite of aligned memory", "pwritev", "context.pread"],
)
@pytest.mark.backends("trio")
async def test_unsupported_flag_says_nothing_of_the_device(disk: Path, call: Callable[[AsyncFile], Any]) -> None:
    path, data = make_file(disk)
    async with open_aio(path, "r+b", direct=True) as file:
        assert await file.pread(BLOCK, 0) == data[:BLOCK]
        await file.pwrite(data[:BLOCK], 0)
        devices = file._descriptor.read_device, file._descriptor.write_device
        assert [device.nowait for device in devices] == [True, True]
        with pytest.raises(OSError, match="not supported") as caught:
            await call(file)
        assert caught.value.errno == errno.EOPNOTSUPP
        assert [device.nowait for device in devices] == [True, True]
        assert await file.pread(BLOCK, 0) == data[:BLOCK]


async def _atomic(file: AsyncFile, offset: int, buffers: list[Any]) -> int:
    if len(buffers) == 1:
        return await file.pwrite(buffers[0], offset, flags=RWF.ATOMIC)
    return await file.pwritev(buffers, offset, flags=RWF.ATOMIC)


def _aligned(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size)
    memory.write(b"x" * size)
    return memory


@pytest.mark.parametrize(
    "make",
    [
        lambda size: [b"x" * size],
        lambda size: [_aligned(size)],
        lambda size: [b"x" * (size // 2)] * 2,
        lambda size: [_aligned(size // 2), _aligned(size // 2)],
        lambda size: [b"x" * (size // 2048)] * 2048,
    ],
    ids=["any memory", "aligned memory", "two buffers", "two aligned buffers", "many buffers"],
)
@pytest.mark.parametrize("offset", [0, 2 * MIB, 3 * MIB + BLOCK])
@pytest.mark.backends("trio")
async def test_atomic_write_is_never_split(on_filesystem: Callable[[str], Path], make: Callable[[int], list[Any]], offset: int) -> None:
    path, data = make_file(on_filesystem("xfs"), 8 * MIB)
    async with open_aio(path, "r+b", direct=True) as file:
        try:
            await file.pwrite(data[:BLOCK], 0, flags=RWF.ATOMIC)
        except OSError as error:
            need(error.errno not in (errno.EOPNOTSUPP, errno.EINVAL), "a kernel and xfs with atomic writes")
            raise
        with pytest.raises(OSError, match="Invalid argument") as caught:
            await _atomic(file, offset, make(4 * MIB))
        assert caught.value.errno == errno.EINVAL
        assert caught.value.characters_written == 0  # type: ignore[attr-defined]
        assert await file.read() == data


@pytest.mark.backends("trio")
async def test_atomic_write_that_the_filesystem_takes_is_written(on_filesystem: Callable[[str], Path]) -> None:
    path, data = make_file(on_filesystem("xfs"), 8 * MIB)
    async with open_aio(path, "r+b", direct=True) as file:
        for memory in (b"x" * BLOCK, _aligned(BLOCK)):
            try:
                assert await file.pwrite(memory, BLOCK, flags=RWF.ATOMIC) == BLOCK
            except OSError as error:
                need(error.errno not in (errno.EOPNOTSUPP, errno.EINVAL), "a kernel and xfs with atomic writes")
                raise
        assert await file.read() == data[:BLOCK] + b"x" * BLOCK + data[2 * BLOCK :]
