"""Names on a filesystem with a server: the event loop's thread never waits for an answer of it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trio_aio
from trio_aio import AIOContext, Path, open_aio, open_directory, read_bytes, read_files

from ..conftest import need
from ..support.fuse import Misbehaving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


async def _all_of(listing: Any) -> Any:
    return await listing


CALLS: dict[str, tuple[str, Callable[[Any, AIOContext], Any]]] = {
    "stat": ("attributes", lambda path, context: trio_aio.os.stat(path, context=context)),
    "lstat": ("attributes", lambda path, context: trio_aio.os.lstat(path, context=context)),
    "read_bytes": ("open", lambda path, context: read_bytes(path, context=context)),
    "part": ("read", lambda path, context: read_bytes(path, offset=1, size=2, context=context)),
    "open": ("open", lambda path, context: open_aio(path, context=context)),
    "read_files": ("open", lambda path, context: _all_of(read_files([path], context=context))),
    "copy_file": ("read", lambda path, context: trio_aio.copy_file(path, path.parents[1] / "copy", context=context)),
}


@pytest.fixture(scope="module")
def _fuse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Misbehaving]:
    need(os.geteuid() == 0 and os.path.exists("/dev/fuse"), "root and /dev/fuse, to mount a filesystem of its own")
    need(shutil.which("fusermount3") is not None and importlib.util.find_spec("pyfuse3") is not None, "fuse3 and pyfuse3")
    filesystem = Misbehaving(tmp_path_factory.mktemp("misbehaving"))
    yield filesystem
    filesystem.end()


@pytest.fixture
def device(_fuse: Misbehaving) -> Iterator[Misbehaving]:
    """Yield a filesystem with a server. There is one file in it, "file"."""
    _fuse.reset()
    (_fuse.source / "file").write_bytes(b"contents")
    yield _fuse
    _fuse.reset()


@pytest.mark.parametrize("name", CALLS)
def test_loop_runs_while_the_server_does_not_answer(device: Misbehaving, name: str) -> None:
    operation, call = CALLS[name]
    path = device.folder / "file"
    done = []

    async def run(context: AIOContext) -> None:
        result = await call(path, context)
        if name == "open":
            await result.aclose()
        done.append(result)

    async def main() -> None:
        async with AIOContext() as context:
            for _ in range(2):
                await trio_aio.os.stat(path, context=context)
            async with trio.open_nursery() as nursery:
                with device.hanging(operation):
                    nursery.start_soon(run, context)
                    # This runs on the same loop: it would never end if the loop waited for the server.
                    await device.until_held(1)
                    assert not done
            assert context.statistics().names_slept == 0

    trio.run(main)
    assert len(done) == 1


def test_loop_runs_while_the_server_does_not_describe_an_open_file(device: Misbehaving) -> None:
    sizes = []

    async def main() -> None:
        async with AIOContext() as context, open_aio(device.folder / "file", "r+b", context=context) as file:

            async def ask() -> None:
                sizes.append(await file.size())

            async with trio.open_nursery() as nursery:
                with device.hanging("attributes"):
                    nursery.start_soon(ask)
                    await device.until_held(1)
                    assert not sizes
            assert (context.statistics().names_inline, context.statistics().names_slept) == (0, 0)

    trio.run(main)
    assert sizes == [8]


def test_mount_with_a_server_is_left_to_the_workers(device: Misbehaving) -> None:
    async def main() -> None:
        async with AIOContext() as context:
            for _ in range(20):
                await trio_aio.os.stat(device.folder, context=context)
                await trio_aio.os.path.exists(device.folder / "file", context=context)
            assert context._core.names.local_mounts == 0
            assert context.statistics().names_inline == 0

    trio.run(main)


def test_answers_are_the_servers_and_never_old(device: Misbehaving) -> None:
    async def main() -> None:
        path = Path(device.folder / "file")
        for size in range(20):
            (device.source / "file").write_bytes(bytes(size))
            assert (await path.stat()).st_size == size
            assert await path.read_bytes() == bytes(size)
        async with open_directory(device.folder) as directory:
            assert (await directory.stat("file")).st_size == 19

    trio.run(main)
