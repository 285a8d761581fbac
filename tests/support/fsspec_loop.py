"""An event loop in the place of fsspec's own, which never ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

import fsspec.asyn

from trio_aio.integrations.fsspec import AioFileSystem

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def running_fsspec_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Run a loop for fsspec in a thread. It ends with the ``with``, and leaves nothing behind."""
    made: list[asyncio.AbstractEventLoop] = []
    started, ended = threading.Event(), asyncio.Event()

    async def main() -> None:
        made.append(asyncio.get_running_loop())
        started.set()
        await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="fsspecIO")
    thread.start()
    started.wait()
    usual = fsspec.asyn.loop[0], fsspec.asyn.iothread[0]
    fsspec.asyn.loop[0], fsspec.asyn.iothread[0] = made[0], thread
    AioFileSystem.clear_instance_cache()
    try:
        yield made[0]
    finally:
        AioFileSystem.clear_instance_cache()
        fsspec.asyn.loop[0], fsspec.asyn.iothread[0] = usual
        made[0].call_soon_threadsafe(ended.set)
        thread.join()
