"""What the integrations share: many calls at once, many ranges of a file."""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

import trio_aio
from trio_aio.integrations.batches import DEPTH, read_parts, together
from trio_aio.testing import FaultyContext

from ..support.files import content

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def test_read_parts_has_an_error_in_the_place_of_the_range_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(content(3 << 20))
    limits = [(0, 10), (1 << 20, (1 << 20) + 10), (2 << 20, None)]
    async with FaultyContext() as context:
        monkeypatch.setattr(trio_aio, "open_aio", partial(trio_aio.open_aio, context=context))
        with context.fail(errno.EIO, file=path, operation="read", times=3):  # those of the batch, and one of the reads after it
            found = await read_parts(str(path), limits, 0)
    assert {isinstance(part, OSError) for part in found} == {True, False}
    for (start, end), part in zip(limits, found, strict=True):
        if isinstance(part, OSError):
            assert part.errno == errno.EIO
        else:
            assert part == content(3 << 20)[start:end]


async def test_read_parts_of_a_file_that_the_kernel_makes_up_are_slices() -> None:
    path = "/proc/version"  # stat(2) says that it has 0 bytes
    with open(path, "rb") as model:  # noqa: ASYNC230
        data = model.read()
    limits = [(None, None), (5, 9), (-5, None), (3, 1 << 40), (-9, -2), (1 << 40, None)]
    assert await read_parts(path, limits, 0) == [data[start:end] for start, end in limits]
    for start, end in limits:
        assert await read_parts(path, [(start, end)], 0) == [data[start:end]]


async def test_together_returns_results_and_errors_in_order() -> None:
    running, most = 0, 0

    async def call(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.lowlevel.checkpoint()
        running -= 1
        if number % 10 == 3:
            raise OSError(number, "failed")
        return number

    found = await together(call, [(number,) for number in range(300)])
    assert [part.errno if isinstance(part, OSError) else part for part in found] == list(range(300))
    assert most == DEPTH
    assert await together(call, []) == []


async def test_together_starts_nothing_more_after_an_error() -> None:
    started = []

    async def call(number: int) -> None:
        started.append(number)
        await anyio.lowlevel.checkpoint()
        raise OSError(number, "failed")

    await together(call, [(number,) for number in range(1000)], stop=True)
    assert len(started) == DEPTH


async def test_together_that_is_cancelled_raises_cancelled() -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await together(anyio.sleep, [(1000,)] * 3)
    assert scope.cancelled_caught
