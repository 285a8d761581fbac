"""Loads through other libraries: `trio_aio.integrations` beside what fsspec, zarr and Starlette have themselves.

The functions are the same for both; they differ in the class. The calls of fsspec and zarr are synchronous, and go to an event loop in a
thread if they need one. Starlette's responses are called without a server. `bench --beside` runs them with builds that have no
integrations: those are left out.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import anyio

from trio_aio._tools.bench.contenders.contender import Contender, imported, scratch_folder, small_file
from trio_aio._tools.bench.measure import Unavailable, drive

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from trio_aio._tools.bench.measure import Phase, Work

__all__ = (
    *("cat", "cat_file", "cat_ranges", "filesystems", "read_array", "read_points", "responses", "serve", "serve_large", "serve_ranges"),
    "stores",
)

# Ranges of one `cat_ranges`; files of one `cat`; chunks of an array along each side, and their elements; ranges of one request.
RANGES, FILES, SIDE, EDGE, PARTS = 256, 1000, 16, 32, 10
SCOPE = {"type": "http", "method": "GET", "asgi": {"spec_version": "2.4"}}


def _integration(module: str, name: str) -> Any:
    try:
        return getattr(import_module(f"trio_aio.integrations.{module}"), name)
    except ImportError as error:
        raise Unavailable(f"this build has no integrations, or a package is not installed: {error}") from None


# ---- fsspec


def filesystems(load: Callable[..., None]) -> tuple[Contender, ...]:
    """Return the contenders of a load: `AioFileSystem`, and fsspec's own."""
    return (
        Contender("trio_aio", partial(load, make=lambda: _integration("fsspec", "AioFileSystem")()), ours=True),
        Contender("LocalFileSystem", partial(load, make=lambda: imported("fsspec.implementations.local").LocalFileSystem())),
    )


def cat_file(work: Work, make: Callable[[], Any]) -> None:
    """`cat_file` of a small file."""
    system = make()
    with small_file(work) as path:

        def read() -> int:
            system.cat_file(path)
            return 1

        _repeat(work, read)


def cat_ranges(work: Work, make: Callable[[], Any]) -> None:
    """`cat_ranges` of many ranges of one file. An operation is a range."""
    system, path, size = make(), work.load.path, work.load.piece
    for phase in work.phases():
        with phase:
            for offsets in phase.batches(RANGES):
                starts = offsets.tolist()
                phase.operations += len(system.cat_ranges([path] * len(starts), starts, [start + size for start in starts]))


def cat(work: Work, make: Callable[[], Any]) -> None:
    """`cat` of many small files. An operation is a file."""
    system = make()
    with _small_files(work) as paths:
        _repeat(work, lambda: len(system.cat(paths)), paths)


def _repeat(work: Work, call: Callable[[], int], files: Sequence[str] = ()) -> None:
    """Make a call again and again. A cold load makes it once in each phase, with the files evicted. `call` returns its operations."""
    for phase in work.phases():
        if work.load.cold:
            for path in files:
                _evict_clean(path)
        with phase:
            while not (phase.over and phase.operations):
                phase.operations += call()
                if work.load.cold:
                    break


def _evict_clean(path: str) -> None:
    """Remove a file that is on the disk from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


@contextmanager
def _small_files(work: Work) -> Iterator[list[str]]:
    """Provide the paths of many small files, which are on the disk."""
    with scratch_folder(work) as folder:
        data = os.urandom(work.load.piece)
        paths = [str(folder / f"{number}") for number in range(FILES)]
        for path in paths:
            with open(path, "wb") as file:
                file.write(data)
        os.sync()
        yield paths


# ---- zarr


def stores(load: Callable[..., None]) -> tuple[Contender, ...]:
    """Return the contenders of a load: `AioStore`, and zarr's own."""
    return (
        Contender("trio_aio", partial(load, make=lambda: _integration("zarr", "AioStore")), ours=True),
        Contender("LocalStore", partial(load, make=lambda: imported("zarr.storage").LocalStore)),
    )


def read_array(work: Work, make: Callable[[], Any]) -> None:
    """Read a whole array of small chunks. An operation is a chunk."""
    with _array(work, make()) as (array, files):

        def read() -> int:
            array[:]
            return SIDE * SIDE

        _repeat(work, read, files)


def read_points(work: Work, make: Callable[[], Any]) -> None:
    """Read one element of an array after the other, each of another chunk."""
    with _array(work, make()) as (array, files):
        number = 0

        def read() -> int:
            nonlocal number
            number = (number + 37) % (SIDE * SIDE)
            row, column = divmod(number, SIDE)
            array[row * EDGE, column * EDGE]
            return 1

        _repeat(work, read, files)


@contextmanager
def _array(work: Work, store: Callable[[Any], Any]) -> Iterator[tuple[Any, list[str]]]:
    """Provide an array whose chunks are files of 4 KiB on the disk, not compressed, and their paths."""
    zarr, numpy = imported("zarr"), imported("numpy")
    with scratch_folder(work) as folder:
        side = SIDE * EDGE
        made = zarr.create_array(zarr.storage.LocalStore(folder), shape=(side, side), chunks=(EDGE, EDGE), dtype="f4", compressors=None)
        made[:] = numpy.random.default_rng(0).random((side, side), dtype="f4")
        os.sync()
        files = [str(path) for path in folder.rglob("*") if path.is_file()]
        yield zarr.open_array(store(folder), mode="r"), files


# ---- Starlette


def responses(load: Callable[..., Awaitable[None]]) -> tuple[Contender, ...]:
    """Return the contenders of a load: our `FileResponse` and Starlette's, on both event loops."""

    def ours() -> Any:
        return _integration("starlette", "FileResponse")

    def theirs() -> Any:
        return imported("starlette.responses").FileResponse

    return (
        Contender("trio_aio", partial(load, make=ours), "trio", ours=True),
        Contender("trio_aio (asyncio)", partial(load, make=ours), "asyncio", ours=True),
        Contender("Starlette", partial(load, make=theirs), "trio"),
        Contender("Starlette (asyncio)", partial(load, make=theirs), "asyncio"),
    )


async def serve(work: Work, make: Callable[[], Any]) -> None:
    """A small file, whole. An operation is a response."""
    with small_file(work) as path:
        await _serve(work, make(), path, [], 1)


async def serve_large(work: Work, make: Callable[[], Any]) -> None:
    """A large file, whole. An operation is a piece of it."""
    await _serve(work, make(), work.load.path, [], work.load.size // work.load.piece)


async def serve_ranges(work: Work, make: Callable[[], Any]) -> None:
    """Some ranges of a large file in each request. An operation is a range."""
    step, size = work.load.size // PARTS, work.load.piece
    wanted = ",".join(f"{number * step}-{number * step + size - 1}" for number in range(PARTS))
    await _serve(work, make(), work.load.path, [(b"range", f"bytes={wanted}".encode())], PARTS)


async def _serve(work: Work, response: Any, path: str, headers: list[tuple[bytes, bytes]], operations: int) -> None:
    """Send responses. operations: of each."""
    scope = SCOPE | {"headers": headers}

    async def send(message: Any) -> None:
        return

    async def task(phase: Phase) -> None:
        while not (phase.over and phase.operations):
            await response(path)(scope, anyio.sleep_forever, send)
            phase.operations += operations

    await drive(work, task)
