"""`aligned_buffer`, and `statistics().bounced_bytes`: what direct I/O copies because memory or offset is not aligned."""

from __future__ import annotations

import gc
import mmap
from typing import TYPE_CHECKING, Any

import numpy
import pytest

from trio_aio import AIOContext, aligned_buffer, open_aio

from ..support.files import BLOCK, make_file

if TYPE_CHECKING:
    from pathlib import Path


def address(view: memoryview) -> int:
    return int(numpy.frombuffer(view, dtype="u1").ctypes.data)


@pytest.mark.parametrize("alignment", [None, 1, 512, 4096, 1 << 16, 1 << 21])
@pytest.mark.parametrize("size", [1, 4096, 100_000])
def test_buffer_is_aligned_zeroed_and_writable(size: int, alignment: int | None) -> None:
    view = aligned_buffer(size, alignment)
    assert (view.format, view.readonly, len(view), view.nbytes) == ("B", False, size, size)
    assert address(view) % max(alignment or 1, mmap.PAGESIZE) == 0
    assert bytes(view) == bytes(size)
    view[-1] = 7
    assert view[-1] == 7


def test_buffer_of_size_0_is_empty() -> None:
    view = aligned_buffer(0)
    assert (len(view), view.readonly, view.format) == (0, False, "B")


@pytest.mark.parametrize(("arguments", "kind"), [((-1,), ValueError), ((1, 0), ValueError), ((1, 3), ValueError), (("1",), TypeError)])
def test_invalid_argument_is_refused(arguments: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        aligned_buffer(*arguments)


def test_buffer_lives_as_long_as_a_view_of_it() -> None:
    array = numpy.frombuffer(aligned_buffer(1 << 20), dtype="f8")
    gc.collect()
    array[:] = 1
    assert array.sum() == 1 << 17


def unaligned(size: int) -> memoryview:
    return aligned_buffer(size + 1)[1:]


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio")
@pytest.mark.parametrize("engine", ["aio", "workers"])
@pytest.mark.parametrize("size", [4 * BLOCK, 2 << 20])
async def test_bounced_bytes_counts_what_is_copied(disk: Path, size: int, engine: Any) -> None:
    path, data = make_file(disk, 4 << 20)
    async with AIOContext(engine=engine) as context, open_aio(path, "r+b", direct=True, context=context) as file:

        def bounced() -> int:
            return context.statistics().bounced_bytes

        aligned, other = aligned_buffer(size), unaligned(size)
        assert await file.preadinto(aligned, 0) == size
        assert bounced() == 0
        assert await file.preadinto(other, 0) == size
        assert bounced() == size
        assert aligned == other == data[:size]
        assert await file.preadinto(aligned[: 2 * BLOCK], 100) == 2 * BLOCK
        assert bounced() == size + 2 * BLOCK
        await file.preadv([aligned], 0)
        assert bounced() == size + 2 * BLOCK
