"""Many files, or many ranges of a file, at once: what the integrations share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

import trio_aio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ("DEPTH", "Range", "read_parts", "together")

# Files that are open at the same time, at most.
DEPTH = 64
# A longer range is compared with the size of the file first, so that no memory is made for what is not there. bytes.
LONG = 1 << 20

Range = tuple["int | None", "int | None"]


async def read_parts(path: str, ranges: Sequence[Range], max_gap: int) -> list[bytes | Exception]:
    """Return ranges of one file, each as of a slice of its bytes. An OSError takes the place of one of several ranges that it prevented."""
    if len(ranges) == 1:
        from_, to = ranges[0][0] or 0, ranges[0][1]
        if from_ >= 0 and (to is None or 0 <= to <= from_ + LONG):
            # One request opens the file and reads it.
            return [await trio_aio.read_bytes(path, offset=from_, size=-1 if to is None else max(to - from_, 0))]
    async with trio_aio.open_aio(path) as file:
        size = None
        parts = []
        for start, end in ranges:
            if size is None and (end is None or end < 0 or (start or 0) < 0 or end - (start or 0) > LONG):
                size = await file.size()
            first, last = (start or 0, end) if size is None else slice(start, end).indices(size)[:2]
            assert last is not None
            parts.append((first, max(last - first, 0)))
        if len(parts) == 1:
            return [await file.pread(parts[0][1], parts[0][0])]
        try:
            return [*await file.read_ranges(parts, max_gap=max_gap)]
        except OSError:
            return await together(file.pread, [(length, offset) for offset, length in parts])


async def together(function: Callable[..., Awaitable[Any]], calls: Sequence[tuple[Any, ...]], *, stop: bool = False) -> list[Any]:
    """Return what each call returns or raises, in order. At most `DEPTH` run at once. stop: start no more after an error."""
    results: list[Any] = [None] * len(calls)
    waiting = iter(enumerate(calls))
    failed = False

    async def take() -> None:
        nonlocal failed
        for index, arguments in waiting:
            try:
                results[index] = await function(*arguments)
            except Exception as error:
                results[index], failed = error, True
            if failed and stop:
                return

    if len(calls) < 2:
        await take()
        return results
    async with anyio.create_task_group() as tasks:
        for _ in range(min(DEPTH, len(calls))):
            tasks.start_soon(take)
    return results
