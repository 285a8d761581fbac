"""Many files, or many ranges of a file, at once: what the integrations share."""

from __future__ import annotations

import io
import operator
from typing import TYPE_CHECKING, Any

import anyio

import trio_aio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

__all__ = ("DEPTH", "Range", "by_path", "is_special", "raise_first", "read_parts", "result_of", "together")

# Files that are open at the same time, at most.
DEPTH = 64
# Bytes. A longer range is compared with the size of the file first, so that no memory is made for what is not there.
LONG = 1 << 20
# Bytes. No file is so long, and the kernel refuses offsets that are twice as large.
FAR = 1 << 62

Range = tuple["int | None", "int | None"]


async def read_parts(path: str, ranges: Sequence[Range], max_gap: int) -> list[bytes | Exception]:
    """Return ranges of one file, each as of a slice of its bytes. An error takes the place of one of several ranges that it prevented."""
    limits = [_checked(start, end) for start, end in ranges]
    first = limits[0]
    if len(limits) == 1 and not isinstance(first, TypeError):
        start, end = first
        if not _depends_on_size(start, end) or (end is None and 0 <= start < FAR):
            # One request opens the file and reads it.
            return [await trio_aio.read_bytes(path, offset=start, size=-1 if end is None else max(end - start, 0))]
    async with trio_aio.open_aio(path) as file:
        wanted = [limit for limit in limits if not isinstance(limit, TypeError)]
        if any(_depends_on_size(start, end) for start, end in wanted):
            size = await file.size()
            if not size:
                # It is empty, or in /proc or /sys, where no file has a size before it was read.
                data = b"".join([chunk async for chunk in file.chunks()])
                return [limit if isinstance(limit, TypeError) else data[slice(*limit)] for limit in limits]
            wanted = [slice(start, end).indices(size)[:2] for start, end in wanted]
        parts = [(start, max(end - start, 0)) for start, end in wanted if end is not None]
        if len(limits) == 1 and parts:
            [(offset, length)] = parts
            return [await file.pread(length, offset)]
        try:
            found: list[bytes | Exception] = [*await file.read_ranges(parts, max_gap=max_gap)]
        except OSError:
            found = await together(file.pread, [(length, offset) for offset, length in parts])
    read = iter(found)
    return [limit if isinstance(limit, TypeError) else next(read) for limit in limits]


def _checked(start: Any, end: Any) -> tuple[int, int | None] | TypeError:
    """Return the limits of a slice as integers, or the error of one that is none."""
    try:
        return 0 if start is None else operator.index(start), None if end is None else operator.index(end)
    except TypeError as error:
        return error


def _depends_on_size(start: int, end: int | None) -> bool:
    """Return whether the size of the file is needed to read a range: it counts from the end, or may reach far beyond it."""
    return not 0 <= start < FAR or end is None or not 0 <= end <= start + LONG


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


def by_path(paths: list[str], found: list[Any], on_error: str) -> dict[str, Any]:
    """Return results by path. on_error: "raise" the first error, "return" errors too, or leave them out."""
    if on_error == "raise":
        raise_first(found)
    return {path: data for path, data in zip(paths, found, strict=True) if on_error == "return" or not isinstance(data, Exception)}


def raise_first(results: Iterable[Any]) -> None:
    """Raise the first error among results."""
    for result in results:
        if isinstance(result, Exception):
            raise result


def is_special(data: Any) -> bool:
    """Return whether a result says that the file is a device, a FIFO or another for which a thread may have to wait."""
    return isinstance(data, io.UnsupportedOperation)


def result_of(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a call returns or raises."""
    try:
        return function(*arguments)
    except Exception as error:
        return error
