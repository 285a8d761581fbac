"""Steps of listings and of `read_files` that are cancelled: made again, they lose nothing."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from anyio import CancelScope, create_task_group, sleep_forever
from anyio.lowlevel import checkpoint

from trio_aio import Path, read_files, scandir, walk
from trio_aio._names import many

from ..support.files import content
from ..support.tasks import until_blocked
from ..support.trees import make_tree

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Awaitable, Callable

END, CANCELLED = object(), object()
TICKS = (0, 1, 2, 0, 3, 5, 1, 8, 30)  # checkpoints after which a step is cancelled, in turn


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


async def one_by_one(paths: list[pathlib.Path]) -> AsyncIterator[pathlib.Path]:
    for path in paths:
        yield path


KINDS: dict[str, Callable[[Any], Any]] = {
    "scandir": lambda folder: scandir(folder / "many"),
    "iterdir": lambda folder: Path(folder / "many").iterdir(),
    "walk": lambda folder: walk(folder),
    "walk bottom-up": lambda folder: walk(folder, topdown=False),
    "glob": lambda folder: Path(folder).glob("*/one.py"),
    "rglob": lambda folder: Path(folder).rglob("*/../*.py"),
    "read_files": lambda folder: read_files(files_of(folder), depth=4),
    "read_files, asynchronous": lambda folder: read_files(one_by_one(files_of(folder)), depth=4),
    "read_files, not there": lambda folder: read_files([*files_of(folder), folder / "absent", folder], on_error="return"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = make_tree(tmp_path_factory.mktemp("steps"))
    (folder / "many").mkdir()
    for i in range(1500):  # more than one request lists
        (folder / "many" / f"{i}").touch()
    (folder / "large").write_bytes(content(many.MEMORY + 1))
    return folder


def plain(entry: Any) -> Any:
    """Return what can be compared and sorted."""
    if isinstance(entry, tuple):
        return [plain(part) for part in entry]
    return str(getattr(entry, "path", entry)) if not isinstance(entry, bytes) else entry


async def steps(listing: Any, attempt: Callable[[Any, int], Awaitable[Any]]) -> tuple[list[Any], int]:
    """Return all entries of a listing, and how many steps were cancelled."""
    found, cancelled = [], 0
    for ticks in itertools.cycle(TICKS):
        got = await attempt(listing, ticks)
        if got is END:
            return found, cancelled
        if got is CANCELLED:
            cancelled += 1
        else:
            found.append(plain(got))
    raise AssertionError


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio")
@pytest.mark.parametrize("kind", KINDS)
async def test_step_that_was_cancelled_can_be_made_again(folder: pathlib.Path, kind: str) -> None:
    async def attempt(listing: Any, ticks: int) -> Any:
        got: Any = CANCELLED

        async def step() -> None:
            nonlocal got
            got = await anext(listing, END)

        async with create_task_group() as tasks:
            tasks.start_soon(step)
            for _ in range(ticks):
                await checkpoint()
            tasks.cancel_scope.cancel()
        return got

    wanted = [plain(entry) async for entry in KINDS[kind](folder)]
    found, cancelled = await steps(KINDS[kind](folder), attempt)
    assert found == wanted
    assert cancelled > 0
    listing = KINDS[kind](folder)
    with CancelScope() as scope:
        scope.cancel()
        await listing
    assert scope.cancelled_caught
    assert len(await listing) == len(wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_step_that_was_cancelled_natively_can_be_made_again(folder: pathlib.Path, kind: str) -> None:
    async def attempt(listing: Any, ticks: int) -> Any:
        async def step() -> Any:
            return await anext(listing, END)

        task = asyncio.create_task(step())
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            return CANCELLED

    async def main() -> None:
        wanted = [plain(entry) async for entry in KINDS[kind](folder)]
        found, cancelled = await steps(KINDS[kind](folder), attempt)
        assert found == wanted
        assert cancelled > 0

    asyncio.run(main())


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio")
async def test_generator_of_paths_that_was_cancelled_is_not_taken_for_one_that_has_ended(folder: pathlib.Path) -> None:
    async def slow() -> AsyncIterator[pathlib.Path]:
        yield folder / "large"
        await sleep_forever()
        yield folder / "large"

    listing = read_files(slow(), depth=1)
    await anext(listing)
    async with create_task_group() as tasks:
        tasks.start_soon(anext, listing)
        await until_blocked()
        tasks.cancel_scope.cancel()
    with pytest.raises(RuntimeError, match="cancelled"):
        await anext(listing)
