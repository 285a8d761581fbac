"""`AIOContext.poll` of what has two wait queues, which the kernel's AIO refuses (a FIFO opened O_RDWR, a pty), and of what has none."""

from __future__ import annotations

import errno
import os
import select
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from trio_aio import AIOContext

from ..conftest import need
from ..support.tasks import until_blocked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.backends("trio", "asyncio", "asyncio+uvloop"),
    pytest.mark.parametrize("engine", ["aio", "workers"]),
]


@contextmanager
def _fifo(folder: Path) -> Iterator[tuple[int, int]]:
    os.mkfifo(folder / "fifo")
    fd = os.open(folder / "fifo", os.O_RDWR | os.O_NONBLOCK)
    yield fd, fd
    os.close(fd)


@contextmanager
def _pty(folder: Path) -> Iterator[tuple[int, int]]:
    master, slave = os.openpty()
    yield slave, master
    os.close(master)
    os.close(slave)


KINDS = pytest.mark.parametrize("kind", [_fifo, _pty])
Kind = "Callable[[Path], AbstractContextManager[tuple[int, int]]]"


@KINDS
async def test_poll_reports_what_is_written_later(tmp_path: Path, engine: str, kind: Kind) -> None:
    seen = []

    async def wait() -> None:
        seen.append(await context.poll(fd, select.POLLIN))

    with kind(tmp_path) as (fd, other):
        async with AIOContext(engine=engine) as context:  # type: ignore[arg-type]
            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                group.start_soon(wait)
                await until_blocked()
                assert seen == []
                os.write(other, b"x\n")
            assert seen == [select.POLLIN] * 2
            assert await context.poll(fd, select.POLLIN | select.POLLOUT) == select.POLLIN | select.POLLOUT


@KINDS
async def test_poll_can_be_cancelled(tmp_path: Path, engine: str, kind: Kind) -> None:
    with kind(tmp_path) as (fd, other):
        async with AIOContext(engine=engine) as context:  # type: ignore[arg-type]
            async with anyio.create_task_group() as group:
                group.start_soon(context.poll, fd, select.POLLIN)
                await until_blocked()
                group.cancel_scope.cancel()
            os.write(other, b"x\n")
            assert await context.poll(fd, select.POLLIN) == select.POLLIN


@KINDS
async def test_close_of_the_context_ends_the_poll(tmp_path: Path, engine: str, kind: Kind) -> None:
    errors = []

    async def wait() -> None:
        try:
            await context.poll(fd, select.POLLIN)
        except OSError as error:
            errors.append(error.errno)

    with kind(tmp_path) as (fd, _):
        async with AIOContext(engine=engine) as context, anyio.create_task_group() as group:  # type: ignore[arg-type]
            group.start_soon(wait)
            await until_blocked()
            await context.aclose()
    assert errors == [errno.ECANCELED]


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/full"])
async def test_device_without_a_poll_is_ready(engine: str, device: str) -> None:
    fd = os.open(device, os.O_RDWR)
    try:
        async with AIOContext(engine=engine) as context:  # type: ignore[arg-type]
            for events in (select.POLLIN, select.POLLOUT, select.POLLIN | select.POLLOUT):
                assert await context.poll(fd, events) == events
    finally:
        os.close(fd)


async def test_block_device_is_ready(engine: str, disk: Path) -> None:
    need(os.geteuid() == 0, "root, for a loop device")
    path = disk / "image"
    path.write_bytes(bytes(1 << 20))
    device = subprocess.run(["losetup", "--find", "--show", str(path)], check=True, capture_output=True, text=True).stdout.strip()  # noqa: ASYNC221
    fd = os.open(device, os.O_RDONLY)
    subprocess.run(["losetup", "--detach", device], check=True)  # noqa: ASYNC221  # when the last descriptor is closed
    try:
        async with AIOContext(engine=engine) as context:  # type: ignore[arg-type]
            assert await context.poll(fd, select.POLLIN) == select.POLLIN
    finally:
        os.close(fd)


async def test_descriptor_that_only_names_a_file_is_refused(engine: str, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    try:
        async with AIOContext(engine=engine) as context:  # type: ignore[arg-type]
            with pytest.raises(OSError, match="Bad file descriptor"):
                await context.poll(fd, select.POLLIN)
    finally:
        os.close(fd)
