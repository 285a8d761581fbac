"""Which event loop a call belongs to, and what every backend promises."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import anyio.lowlevel
import pytest
import trio

from trio_aio import current_context, open_aio
from trio_aio._backends import current_backend
from trio_aio._backends._asyncio import AsyncioBackend
from trio_aio._backends._trio import TrioBackend

from ..support.files import make_file
from ..support.tasks import run_with_guest

if TYPE_CHECKING:
    from pathlib import Path

    from trio_aio._backends import Backend


def test_current_backend_outside_of_a_run_raises() -> None:
    with pytest.raises(RuntimeError, match=r"trio\.run, asyncio\.run or anyio\.run"):
        current_backend()


@pytest.mark.anyio
async def test_current_backend_matches_the_event_loop(anyio_backend_name: str) -> None:
    backend: Backend = current_backend()
    assert type(backend) is {"trio": TrioBackend, "asyncio": AsyncioBackend}[anyio_backend_name]
    assert backend is current_backend()
    assert backend.current() is backend.identity
    assert backend.run_local(lambda made_for: [made_for]) is backend.run_local(lambda _: None)


def test_backends_have_the_same_calls() -> None:
    calls = {name for name in dir(TrioBackend) if not name.startswith("_")}
    assert calls == {name for name in dir(AsyncioBackend) if not name.startswith("_")}


@pytest.mark.anyio
async def test_flush_that_asks_for_a_flush_of_another_engine_gets_it() -> None:
    backend, flushed = current_backend(), []

    def flush() -> None:
        if not flushed:
            backend.at_end_of_tick(lambda: flushed.append(2))
        flushed.append(1)

    backend.at_end_of_tick(flush)
    while 2 not in flushed:
        assert flushed in ([], [1])
        await anyio.lowlevel.checkpoint()
    assert flushed == [1, 2]


def test_guest_run_and_its_host_each_use_their_files(disk: Path) -> None:
    path, data = make_file(disk)
    kinds = []

    async def use() -> None:
        for _ in range(20):
            async with open_aio(path, "r+b") as file, open_aio(path, direct=True) as direct:
                kinds.append(type(file.context._core.backend))
                assert await file.pread(100, 50) == await direct.pread(100, 50) == data[50:150]
                await file.pwrite(data[:10], 0)

    run_with_guest(use, use)
    assert (kinds.count(TrioBackend), kinds.count(AsyncioBackend)) == (20, 20)


def test_file_of_guest_run_is_refused_in_its_host(disk: Path) -> None:
    path, _ = make_file(disk)
    files = []
    opened = asyncio.Event()
    refused = trio.Event()

    async def guest() -> None:
        async with open_aio(path) as file:
            files.append(file)
            opened.set()
            await refused.wait()

    async def host() -> None:
        await opened.wait()
        assert current_context() is not files[0].context
        refused.set()

    run_with_guest(host, guest)


if sys.version_info >= (3, 12):

    def test_a_call_within_a_task_that_has_just_been_made(disk: Path) -> None:
        """An eager task runs in the middle of another's step, and begins to wait there."""
        path, data = make_file(disk)

        async def main() -> None:
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
            async with open_aio(path) as file, open_aio(path, direct=True) as direct:
                for _ in range(10):
                    reads = [(f.pread(100, at), at) for at in range(50) for f in (file, direct)]
                    tasks = [(asyncio.create_task(read), at) for read, at in reads]
                    for task, at in tasks:
                        assert await task == data[at : at + 100]

        asyncio.run(main())
