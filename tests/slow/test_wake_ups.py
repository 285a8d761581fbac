"""Very many requests, one at a time: no wake-up is missed."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trio_aio import open_aio
from trio_aio._requests.transfer import Read

from ..support.engine_loop import loop
from ..support.files import BLOCK, make_file, opened
from ..support.page_cache import pinned
from ..support.requests import DIRECT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("direct", [False, True])
def test_single_requests_in_the_engine_miss_no_wake_up(file: tuple[Path, bytes], direct: bool) -> None:
    with loop(8, 3) as made, opened(file[0], DIRECT if direct else os.O_RDONLY) as fd:
        descriptor = made.descriptor(fd)
        slab = made.engine.buffers.take(BLOCK)
        made.settle()
        for i in range(20_000 if direct else 100_000):
            request = Read(descriptor, slab.address, BLOCK, i % 64 * BLOCK, 0, None)
            made.submit(request)
            while not request.finished:
                made.turn()
            assert request.result == BLOCK


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio")
@pytest.mark.parametrize(("lane", "count"), [("inline", 100_000), ("workers", 20_000), ("kernel", 20_000)])
async def test_single_reads_of_a_file_miss_no_wake_up(disk: Path, lane: str, count: int) -> None:
    path, data = make_file(disk)
    cached = pinned(path) if lane == "inline" else nullcontext()
    async with open_aio(path, direct=lane == "kernel") as file:
        assert file._descriptor.read_device is not None
        if lane == "workers":
            file._descriptor.read_device.nowait = file._descriptor.read_device.may_ask = False
        with cached:
            for i in range(count):
                assert await file.pread(512, i % 512 * 512) == data[i % 512 * 512 :][:512]
        statistics = file.context.statistics()
        assert {
            "inline": statistics.submitted_inline,
            "workers": statistics.submitted_workers,
            "kernel": statistics.submitted_kernel + statistics.submitted_workers,
        }[lane] >= count
