"""Loads of names: what programs ask of paths, by `trio_aio.Path` and by the paths of anyio and trio, whose calls are a thread hop each.

The functions are the same for all; they differ in the class of the path. `bench --beside` runs them with builds that have no `Path`: those
are left out.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

import trio_aio
from trio_aio._tools.bench.contenders.contender import Contender, imported, scratch_folder, scratch_path, small_file
from trio_aio._tools.bench.measure import Unavailable, drive, forget_names

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from trio_aio._tools.bench.measure import Phase, Work

__all__ = (
    *("READ_FILES", "WALKS", "exists", "iterdir", "open_read_close", "paths", "read_small", "rglob", "stat"),
    *("stat_cold", "write_small"),
)

# Entries of the directory that is listed; directories and files in each of the tree; files of `read_files`.
ENTRIES, WIDTH, MANY = 1000, 30, 500
# Files in each directory of the tree that is walked, and how many in all at most.
WALK_WIDTH, WALK_MOST = 100, 30_000


def _ours() -> Any:
    if not hasattr(trio_aio, "Path"):
        raise Unavailable("this build has no Path")
    return trio_aio.Path


def _anyio() -> Any:
    return imported("anyio").Path


def _trio() -> Any:
    return imported("trio").Path


def paths(load: Callable[..., Awaitable[None]]) -> tuple[Contender, ...]:
    """Return the contenders of a load: `trio_aio.Path`, and the paths whose calls are thread hops."""
    return (
        Contender("trio_aio", partial(load, path_class=_ours), "trio", ours=True),
        Contender("trio_aio (asyncio)", partial(load, path_class=_ours), "asyncio", ours=True),
        Contender("anyio.Path", partial(load, path_class=_anyio), "trio"),
        Contender("anyio.Path (asyncio)", partial(load, path_class=_anyio), "asyncio"),
        Contender("trio.Path", partial(load, path_class=_trio), "trio"),
    )


async def _repeat(work: Work, call: Callable[[], Awaitable[Any]]) -> None:
    async def task(phase: Phase) -> None:
        while not (phase.over and phase.operations):
            await call()
            phase.operations += 1

    await drive(work, task)


async def stat(work: Work, path_class: Callable[[], Any]) -> None:
    """`stat` of a file."""
    with small_file(work) as name:
        await _repeat(work, path_class()(name).stat)


async def stat_cold(work: Work, path_class: Callable[[], Any]) -> None:
    """`stat` of many names that are not in memory, once each."""
    with scratch_folder(work) as folder:
        names = [folder / f"entry {number}" for number in range(ENTRIES)]
        for name in names:
            name.touch()
        left = iter([path_class()(name) for name in names])

        async def task(phase: Phase) -> None:
            for path in left:
                await path.stat()
                phase.operations += 1

        await drive(work, task, prepare=forget_names)


async def exists(work: Work, path_class: Callable[[], Any]) -> None:
    """`exists` of a file."""
    with small_file(work) as name:
        await _repeat(work, path_class()(name).exists)


async def read_small(work: Work, path_class: Callable[[], Any]) -> None:
    """`read_bytes` of a small file."""
    with small_file(work) as name:
        await _repeat(work, path_class()(name).read_bytes)


async def open_read_close(work: Work, path_class: Callable[[], Any]) -> None:
    """`open`, `read` and `aclose` of a small file."""
    with small_file(work) as name:
        path = path_class()(name)

        async def once() -> None:
            async with await path.open("rb") as file:
                await file.read()

        await _repeat(work, once)


async def write_small(work: Work, path_class: Callable[[], Any]) -> None:
    """`write_bytes` of a small file."""
    data = os.urandom(work.load.piece)
    with scratch_path(work) as name:
        path = path_class()(name)
        await _repeat(work, lambda: path.write_bytes(data))


async def _listing(work: Work, call: Callable[[], Any]) -> None:
    """Iterate over a listing again and again. An operation is an entry."""

    async def task(phase: Phase) -> None:
        while not (phase.over and phase.operations):
            found = call()
            if hasattr(found, "__aiter__"):
                async for _ in found:
                    phase.operations += 1
                    if phase.over:
                        break
            else:  # trio.Path: one hop for all
                phase.operations += len(list(await found))

    await drive(work, task)


async def iterdir(work: Work, path_class: Callable[[], Any]) -> None:
    """`iterdir` of a directory."""
    with scratch_folder(work) as folder:
        for number in range(ENTRIES):
            (folder / f"entry {number}").touch()
        await _listing(work, path_class()(folder).iterdir)


async def rglob(work: Work, path_class: Callable[[], Any]) -> None:
    """`rglob` of a tree."""
    chosen = path_class()  # before the load begins: it may not be there
    with scratch_folder(work) as folder:
        for number in range(WIDTH):
            (folder / f"directory {number}").mkdir()
            for name in range(WIDTH):
                (folder / f"directory {number}" / f"{name}.py").touch()
        await _listing(work, lambda: chosen(folder).rglob("*.py"))


@contextmanager
def _files(work: Work) -> Iterator[list[str]]:
    """Provide the paths of many small files. A cold load evicts them."""
    with scratch_folder(work) as folder:
        names = [str(folder / f"{number}") for number in range(MANY)]
        data = os.urandom(work.load.piece)
        for name in names:
            Path(name).write_bytes(data)
        yield names


def _goes_on(work: Work, phase: Phase) -> bool:
    """Return whether a task goes through all names once more. Cold ones are used once."""
    return not phase.operations if work.load.whole else not (phase.over and phase.operations)


def _prepared(work: Work) -> Callable[[], None] | None:
    return forget_names if work.load.whole else None


async def _read_files(work: Work) -> None:
    """`read_files`. An operation is a file."""
    if not hasattr(trio_aio, "read_files"):
        raise Unavailable("this build has no read_files")
    with _files(work) as names:

        async def task(phase: Phase) -> None:
            while _goes_on(work, phase):
                async for _ in trio_aio.read_files(names):
                    phase.operations += 1
                    if phase.over:
                        break

        await drive(work, task, prepare=_prepared(work))


async def _read_files_by_hops(work: Work, path_class: Callable[[], Any]) -> None:
    """`read_bytes`, one file after the other. An operation is a file."""
    with _files(work) as names:
        made = [path_class()(name) for name in names]

        async def task(phase: Phase) -> None:
            while _goes_on(work, phase):
                for path in made:
                    await path.read_bytes()
                    phase.operations += 1
                    if phase.over:
                        break

        await drive(work, task, prepare=_prepared(work))


async def _read_files_blocking(work: Work) -> None:
    """A plain blocking loop over all files, on the event loop's thread: not a peer, as nothing else runs meanwhile."""
    with _files(work) as names:

        async def task(phase: Phase) -> None:
            while _goes_on(work, phase):
                for name in names:
                    with open(name, "rb") as file:  # noqa: ASYNC230
                        file.read()
                    phase.operations += 1
                    if phase.over:
                        break

        await drive(work, task, prepare=_prepared(work))


READ_FILES = (
    Contender("trio_aio", _read_files, "trio", ours=True),
    Contender("trio_aio (asyncio)", _read_files, "asyncio", ours=True),
    Contender("anyio.Path", partial(_read_files_by_hops, path_class=_anyio), "trio"),
    Contender("blocking loop", _read_files_blocking, "trio", same_work=False),
)


@contextmanager
def _tree(work: Work) -> Iterator[Path]:
    """Provide a tree with many files until the end of the block."""
    with scratch_folder(work) as folder:
        for number in range(min(work.load.size // 2048, WALK_MOST)):
            directory = folder / f"directory {number // WALK_WIDTH}"
            if number % WALK_WIDTH == 0:
                directory.mkdir()
            (directory / f"file {number % WALK_WIDTH}").touch()
        yield folder


async def _walk(work: Work) -> None:
    """`walk` of a tree. An operation is a file."""
    if not hasattr(trio_aio, "walk"):
        raise Unavailable("this build has no walk")
    with _tree(work) as folder:

        async def task(phase: Phase) -> None:
            async for _, _, files in trio_aio.walk(folder):
                phase.operations += len(files)

        await drive(work, task, prepare=forget_names)


async def _walk_in_thread(work: Work) -> None:
    """`os.walk` of a tree, all of it in one thread. An operation is a file."""
    with _tree(work) as folder:

        async def task(phase: Phase) -> None:
            phase.operations += await anyio.to_thread.run_sync(lambda: sum(len(files) for _, _, files in os.walk(folder)))

        await drive(work, task, prepare=forget_names)


WALKS = (
    Contender("trio_aio", _walk, "trio", ours=True),
    Contender("trio_aio (asyncio)", _walk, "asyncio", ours=True),
    Contender("os.walk in a thread", _walk_in_thread, "trio"),
    Contender("os.walk in a thread (asyncio)", _walk_in_thread, "asyncio"),
)
