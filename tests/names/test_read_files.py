"""`read_files`: many files, in order, within bounds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from anyio import CancelScope

import trio_aio
from trio_aio import current_context, read_files
from trio_aio._names import many

from ..support.files import content
from ..support.page_cache import evict
from ..support.tasks import until_idle

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]

SIZES = (0, 1, 100, 4096, 70_000, many.MEMORY - 1, many.MEMORY, many.MEMORY + 1, 3 * many.MEMORY)


def make_files(folder: pathlib.Path, count: int) -> dict[pathlib.Path, bytes]:
    files = {}
    for i in range(count):
        files[folder / f"{i}"] = content(SIZES[i % len(SIZES)] if i % 7 == 0 else i)
    for path, data in files.items():
        path.write_bytes(data)
    return files


@pytest.mark.parametrize("depth", [1, 3, 64])
@pytest.mark.parametrize("max_bytes", [1, 5000, 64 << 20])
async def test_files_come_in_the_order_of_their_paths(disk: pathlib.Path, depth: int, max_bytes: int) -> None:
    files = make_files(disk, 100)
    for path in list(files)[::3]:
        evict(path)
    assert [found async for found in read_files(files, depth=depth, max_bytes=max_bytes)] == list(files.items())
    assert await read_files(list(files), depth=depth, max_bytes=max_bytes) == list(files.values())


async def test_paths_may_come_from_an_asynchronous_iterator(disk: pathlib.Path) -> None:
    files = make_files(disk, 30)
    taken = 0

    async def paths() -> AsyncIterator[pathlib.Path]:
        nonlocal taken
        for path in files:
            taken += 1
            await trio_aio.os.stat(path)
            yield path

    listing = read_files(paths(), depth=4)
    found = [await listing.__anext__()]
    assert taken <= 4
    found += [each async for each in listing]
    assert found == list(files.items())


async def test_error_is_raised_at_its_turn_and_the_iteration_continues(disk: pathlib.Path) -> None:
    files = make_files(disk, 20)
    paths: list[Any] = list(files)
    paths.insert(5, disk / "absent")
    paths.insert(9, disk)
    listing, found, errors = read_files(paths), [], []
    while True:
        try:
            found.append(await listing.__anext__())
        except OSError as error:
            errors.append((len(found), type(error), error.filename))
        except StopAsyncIteration:
            break
    assert found == list(files.items())
    assert errors == [(5, FileNotFoundError, str(disk / "absent")), (8, IsADirectoryError, str(disk))]
    with pytest.raises(FileNotFoundError):
        await read_files(paths)


async def test_error_is_yielded_if_wanted(disk: pathlib.Path) -> None:
    files = make_files(disk, 3)
    os.mkfifo(disk / "fifo")
    found = await read_files([*files, disk / "absent", disk / "fifo"], on_error="return")
    assert found[:3] == list(files.values())
    assert isinstance(found[3], FileNotFoundError)
    assert isinstance(found[4], OSError)


async def test_several_files_share_a_request(disk: pathlib.Path) -> None:
    paths = [disk / f"{i}" for i in range(320)]
    for path in paths:
        path.write_bytes(b"x")
    context = current_context()
    before = context.statistics().submitted_workers
    assert await read_files(paths) == [b"x"] * 320
    assert context.statistics().submitted_workers - before == 320 // many.TOGETHER


async def test_wrong_arguments_are_refused() -> None:
    for options in ({"depth": 0}, {"max_bytes": 0}, {"on_error": "ignore"}):
        with pytest.raises(ValueError, match="must be"):
            read_files([], **options)  # type: ignore[arg-type]
    assert await read_files([]) == []
    for paths in (None, 5, object()):
        with pytest.raises(TypeError, match="iterable"):
            read_files(paths)  # type: ignore[arg-type]
    started = iter(["first"])
    with pytest.raises(TypeError, match="context must be an AIOContext"):
        read_files(started, context=3)  # type: ignore[arg-type]
    assert next(started) == "first"


async def test_iteration_left_early_or_cancelled_leaves_nothing_behind(disk: pathlib.Path) -> None:
    files = make_files(disk, 100)
    async for _ in read_files(files):
        break
    with CancelScope() as scope:
        async for _ in read_files(files):
            scope.cancel()
    assert scope.cancelled_caught
    await until_idle(current_context())
