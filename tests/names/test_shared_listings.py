"""A `Listing` that two tasks use, or that ends while a worker still reads for it."""

from __future__ import annotations

import asyncio
import gc
import os
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint

import trio_aio
from trio_aio import AIOContext, Path, open_directory, read_files, scandir, walk
from trio_aio._names.listing import Directory
from trio_aio._requests.base import State
from trio_aio._requests.opening import AT_FDCWD
from trio_aio.testing import FaultyContext

from ..support.tasks import busy, until_blocked, until_closed, until_idle

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Callable, Iterator

    from trio_aio.testing import Hang

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio", "asyncio+uvloop")]

MANY = 2500  # names: three requests list them


def in_context(listing: Any, context: AIOContext) -> Any:
    """Let a listing that takes no context use one."""
    listing._given = context._core
    return listing


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.iterdir())[:20]


# Each takes the folder, a context, and an open `AsyncDirectory` of the folder.
KINDS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "scandir": lambda folder, context, _: scandir(folder, context=context),
    "iterdir": lambda folder, context, _: in_context(Path(folder).iterdir(), context),
    "walk": lambda folder, context, _: walk(folder, context=context),
    "walk bottom-up": lambda folder, context, _: walk(folder, topdown=False, context=context),
    "Path.walk": lambda folder, context, _: in_context(Path(folder).walk(), context),
    "glob": lambda folder, context, _: in_context(Path(folder).glob("*"), context),
    "rglob": lambda folder, context, _: in_context(Path(folder).rglob("*"), context),
    "read_files": lambda folder, context, _: read_files(files_of(folder), depth=4, context=context),
    "AsyncDirectory.scandir": lambda _, __, directory: directory.scandir(),
    "AsyncDirectory.walk": lambda _, __, directory: directory.walk(),
}
# A cancelled step of the others waits for its request. Of these, the request runs on.
RUN_ON = [kind for kind in KINDS if kind not in ("scandir", "iterdir", "AsyncDirectory.scandir")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("shared")
    for i in range(MANY):
        (folder / f"{i}").touch()
    return folder


@asynccontextmanager
async def hanging(folder: pathlib.Path, kind: str) -> AsyncIterator[tuple[AIOContext, Callable[[], Any], Hang]]:
    """Return a context, a function that makes a listing, and the fault by which its request hangs.

    That of a directory is the second, so that the directory is open.
    """
    async with FaultyContext() as context, open_directory(folder, context=context) as directory:
        of_files = kind == "read_files"
        with context.hang(operation="read" if of_files else "list", turn=1 if of_files else 2) as hang:
            yield context, lambda: KINDS[kind](folder, context, directory), hang
        await until_idle(context)


@contextmanager
def untouched_descriptors() -> Iterator[None]:
    """Open files, which take the numbers that are free, and check at the end that all are still open."""
    own = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
    try:
        yield
        assert [os.readlink(f"/proc/self/fd/{fd}") for fd in own] == [os.devnull] * len(own)
    finally:
        for fd in own:
            os.close(fd)


async def until_held(hang: Hang) -> None:
    while not hang.held:
        await checkpoint()
    await until_blocked()


async def serve_drops(context: AIOContext) -> None:
    """Let the engine close what it was left, as far as that does not wait for the request that hangs."""
    assert context._core.engine is not None
    while context._core.engine.drops:
        await checkpoint()
    for _ in range(3):
        await trio_aio.os.statvfs(".", context=context)


@pytest.mark.parametrize("kind", KINDS)
async def test_listing_closed_while_another_task_waits_ends_and_closes_only_its_own(folder: pathlib.Path, kind: str) -> None:
    ended = False

    async def iterate() -> None:
        nonlocal ended
        async for _ in listing:
            pass
        ended = True

    async with hanging(folder, kind) as (context, make, hang):
        listing = make()
        async with create_task_group() as tasks:
            tasks.start_soon(iterate)
            await until_held(hang)
            await listing.aclose()
            assert [entry async for entry in listing] == []
            await serve_drops(context)
            with untouched_descriptors():
                assert not ended
                hang.release()
                while not ended:
                    await checkpoint()
                await until_idle(context)
                await serve_drops(context)


@pytest.mark.parametrize("kind", KINDS)
async def test_list_that_is_awaited_while_another_task_closes_it_is_no_part_of_it(folder: pathlib.Path, kind: str) -> None:
    async def await_it() -> None:
        with pytest.raises(RuntimeError, match="closed this listing"):
            await listing

    async with hanging(folder, kind) as (_, make, hang):
        listing = make()
        async with create_task_group() as tasks:
            tasks.start_soon(await_it)
            await until_held(hang)
            async with listing:
                pass
            hang.release()
        assert await listing == []


@pytest.mark.parametrize("kind", KINDS)
async def test_second_task_that_waits_for_entries_is_refused(folder: pathlib.Path, kind: str) -> None:
    found = []

    async def iterate() -> None:
        async for entry in listing:
            found.append(str(getattr(entry, "path", entry)))

    async with hanging(folder, kind) as (_, make, hang):
        listing = make()
        async with create_task_group() as tasks:
            tasks.start_soon(iterate)
            await until_held(hang)
            with pytest.raises(RuntimeError, match="another task is waiting for the next entry"):
                await anext(listing)
            with pytest.raises(RuntimeError, match="another task is waiting for the next entry"):
                await listing
            hang.release()
        assert len(found) == len(set(found))
        assert len(found) == len(await make())


@pytest.mark.parametrize("kind", RUN_ON)
@pytest.mark.parametrize("end", ["closed", "dropped"])
async def test_listing_that_ends_after_a_cancelled_step_closes_only_its_own(folder: pathlib.Path, kind: str, end: str) -> None:
    async with hanging(folder, kind) as (context, make, hang):
        listing = make()
        with CancelScope() as scope:
            async with create_task_group() as tasks:
                tasks.start_soon(anext, listing)
                await until_held(hang)
                scope.cancel()
        assert scope.cancelled_caught
        if end == "closed":
            await listing.aclose()
        else:
            del listing
            gc.collect()
        await serve_drops(context)
        with untouched_descriptors():
            hang.release()
            await until_idle(context)
            await serve_drops(context)


@pytest.mark.backends("asyncio", "asyncio+uvloop")
@pytest.mark.parametrize("kind", KINDS)
async def test_listing_closed_while_a_natively_cancelled_step_ends_closes_only_its_own(folder: pathlib.Path, kind: str) -> None:
    async with hanging(folder, kind) as (context, make, hang):
        listing = make()
        step = asyncio.ensure_future(_iterate(listing))
        await until_held(hang)
        step.cancel()
        await checkpoint()
        await listing.aclose()
        await listing.aclose()
        await serve_drops(context)
        with untouched_descriptors():
            hang.release()
            with pytest.raises(asyncio.CancelledError):
                await step
            await until_idle(context)
            await serve_drops(context)
        assert await listing == []


async def _iterate(listing: Any) -> None:
    async for _ in listing:
        pass


async def test_directory_whose_next_request_never_starts_is_closed(folder: pathlib.Path) -> None:
    async with AIOContext(max_workers=1) as context:
        directory = Directory(AT_FDCWD, os.fsencode(folder), folder)
        await directory.read(context._core)
        fd = directory._opened.fd
        async with busy(context):
            request = directory.request()
            context._core.check().submit(request)
            directory.release(context._core)
            while not request.finished:
                await checkpoint()
            assert request.state is State.WITHDRAWN
        await until_closed(fd)


async def test_paths_are_not_asked_for_after_the_listing_was_closed(folder: pathlib.Path) -> None:
    asked = []
    wait = True

    async def paths() -> AsyncIterator[pathlib.Path]:
        for path in files_of(folder):
            asked.append(path)
            while wait:
                await checkpoint()
            yield path

    async def iterate() -> None:
        assert [each async for each in listing] == []

    async with aclosing(paths()) as given, create_task_group() as tasks:
        listing = read_files(given)
        tasks.start_soon(iterate)
        while not asked:
            await checkpoint()
        await listing.aclose()
        wait = False
    assert len(asked) == 1
