"""Files whose reads wait for a permission listener, as those of a virus scanner do: the event loop's thread never waits for it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from trio_aio import AIOContext, open_aio

from ..conftest import need
from ..support.fanotify import Listener, listening
from ..support.files import BLOCK, make_file
from ..support.reading import READS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]

SIZE = 16 * BLOCK


@pytest.fixture
def listener(disk: Path, tmp_path: Path) -> Iterator[Listener]:
    need(os.geteuid() == 0, "root, to listen for accesses of a filesystem")
    make_file(disk, SIZE)
    with listening(disk, tmp_path / "ticks") as made:
        yield made


@pytest.mark.parametrize("direct", [False, True])
async def test_loop_runs_while_reads_wait_for_a_listener(listener: Listener, disk: Path, direct: bool) -> None:
    async def tick() -> None:
        while True:
            listener.tick()
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group, AIOContext() as context:
        group.start_soon(tick)
        async with open_aio(disk / "file", "r+b", direct=direct, context=context) as file:
            for call in READS.values():
                for _ in range(2):
                    await call(file)
            await file.pwrite(bytes(BLOCK), 0)
            await file.pread(BLOCK, 0)
        group.cancel_scope.cancel()
    answers = listener.end()
    assert set(answers) == {"open running", "read running"}
    assert len(answers) > 2 * len(READS)


async def test_other_files_of_the_device_may_be_read_inline(disk: Path, tmp_path: Path) -> None:
    need(os.geteuid() == 0, "root, to listen for accesses of a filesystem")
    path, data = make_file(disk, SIZE)
    async with AIOContext() as context:
        with listening(disk, tmp_path / "ticks") as listener:
            async with anyio.create_task_group() as group:

                async def tick() -> None:
                    while True:
                        listener.tick()
                        await anyio.lowlevel.checkpoint()

                group.start_soon(tick)
                watched = await open_aio(path, context=context)
                group.cancel_scope.cancel()
        async with watched, open_aio(path, context=context) as other:
            assert watched._descriptor.watched
            assert not other._descriptor.watched
            assert not watched._descriptor.read_device.nowait
            assert watched._descriptor.read_device is not other._descriptor.read_device
            assert other._descriptor.read_device.nowait
            assert await watched.pread(BLOCK, 0) == await other.pread(BLOCK, 0) == data[:BLOCK]
