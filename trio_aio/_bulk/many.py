"""Calls of many reads, or many writes, at once: `read_blocks`, `read_ranges`, `write_ranges`.

A request for each of a thousand small ranges would cost more than the I/O itself. So one C call prepares the ranges as *pieces*, and one
request takes hundreds of them through a lane (`_requests.pieces`).

For a buffered file, pieces that are in the page cache are copied on the event loop's thread, up to 512 KiB before other tasks run. From the
first piece that is not cached, one io_submit(2) asks for many with RWF_NOWAIT. The kernel answers EAGAIN, but it starts the read-ahead of
all of them at once. A worker then reads them. For a direct file, one io_submit(2) starts many pieces.

The requests of a call share a lease of the file, so that no close comes between them. `PositionalFile` calls these functions.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from trio_aio._arguments import checked_offset, checked_size
from trio_aio._backends import protect_from_interrupts
from trio_aio._context.copying import shortened
from trio_aio._context.group import RequestGroup
from trio_aio._context.leasing import Lease
from trio_aio._engine.callers_memory import inspect
from trio_aio._engine.mending import cause_of, torn
from trio_aio._errors import os_error
from trio_aio._memory.exports import Export, export_buffer, hold, new_bytearray, new_bytes
from trio_aio._requests.direct import is_block_write
from trio_aio._requests.pieces import Pieces, PiecesRead, PiecesWrite

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from _typeshed import ReadableBuffer

    from trio_aio._backends import Backend
    from trio_aio._context.core import Core
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.engine import Engine

__all__ = ("read_blocks", "read_ranges", "write_ranges")

# Bytes that are copied on the event loop's thread before other tasks run.
_INLINE = 512 << 10
# Pieces whose read-ahead is started at once. With more, io_submit would sleep until the device's queue (nr_requests) has room.
_COLD_PIECES = 128
# Pieces of a direct file in one request. A second request is in flight at the same time.
_DIRECT_PIECES = 512
# Bytes. Ranges that lie close together are merged up to this size.
_MERGED = 1 << 20
# Ranges that are prepared, or cut out of merged reads, before other tasks run.
_RANGES_PER_TICK = 256


async def _int64(core: Core, descriptor: Descriptor, offsets: Sequence[int] | ReadableBuffer) -> tuple[Any, int]:
    """Return offsets as a buffer of int64, and their number. One that is such a buffer already is not copied, unless it may be mapped."""
    try:
        view = memoryview(offsets)  # type: ignore[arg-type]
    except TypeError:
        numbers: Any = array("q", offsets)  # type: ignore[arg-type]
    else:
        with view:
            if view.ndim != 1 or view.format not in tuple("bBhHiIlLqQ"):
                raise TypeError(f"offsets must have integers in one dimension, not format {view.format!r} in {view.ndim} dimensions")
            exports = [export_buffer(offsets, writable=False)] if view.contiguous else []  # type: ignore[arg-type]
            if exports and exports[0].mapped:
                offsets = view = memoryview(await core.gathered(descriptor, exports)).cast(view.format)  # type: ignore[call-overload]
            exports.clear()
            numbers = offsets if view.format in ("q", "l") and view.itemsize == 8 and view.contiguous else array("q", view.tolist())
    return numbers, len(memoryview(numbers))


async def read_blocks(
    core: Core,
    descriptor: Descriptor,
    offsets: Sequence[int] | ReadableBuffer,
    size: int,
    into: Any,
    abandon: bool,
) -> Any:
    """Return blocks; see `PositionalFile.read_blocks`."""
    size = checked_size(size)
    numbers, count = await _int64(core, descriptor, offsets)
    total = count * size
    if into is None:
        into = new_bytearray(total)
    export = export_buffer(into, writable=True)
    try:
        if export.length != total:
            raise ValueError(f"into must have {total} bytes ({count} blocks of {size}), not {export.length}")
        if export.mapped:
            inspect(core.check(), (export,))
        pieces = Pieces.blocks(descriptor, numbers, size, export)
    finally:
        # The frames in a traceback must not hold the caller's memory.
        del export
    try:
        await _read(core, descriptor, pieces, abandon)
    finally:
        pieces.owned = None
    if (first := pieces.first_open) < pieces.count:
        piece = pieces.array[first]
        raise EOFError(f"{descriptor.name!r} ends before the end of the block at offset {piece.offset}: {piece.result} of {size} bytes")
    return into


async def read_ranges(core: Core, descriptor: Descriptor, ranges: Iterable[tuple[int, int]], max_gap: int, abandon: bool) -> list[bytes]:
    """Return the bytes of ranges; see `PositionalFile.read_ranges`."""
    max_gap = checked_size(max_gap, "max_gap")
    wanted = [(checked_offset(offset), checked_size(size)) for offset, size in ranges]
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    # Start and end of each read, and the indexes of the ranges in it.
    merged: list[tuple[int, int, list[int]]] = []
    for i in order:
        start, end = wanted[i][0], wanted[i][0] + wanted[i][1]
        if start == end:
            continue
        if merged and start <= merged[-1][1] + max_gap and max(end, merged[-1][1]) - merged[-1][0] <= _MERGED:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]), merged[-1][2])
            merged[-1][2].append(i)
        else:
            merged.append((start, end, [i]))
    memory: list[bytes | bytearray] = []
    parts = []
    for number, (start, end, _) in enumerate(merged, 1):
        part = new_bytes(end - start)
        memory.append(part)
        parts.append((start, hold(part)))
        if number % _RANGES_PER_TICK == 0:
            await core.checkpoint()
    pieces = Pieces.ranges(descriptor, parts, writing=False)
    await _read(core, descriptor, pieces, abandon)
    backend = core.backend
    assert backend is not None
    found = [b""] * len(wanted)
    for number, ((start, end, inside), part) in enumerate(zip(merged, memory, strict=True), 1):
        have = pieces.array[number - 1].result
        if len(inside) == 1 and have == end - start and isinstance(part, bytes):
            found[inside[0]] = part
        else:
            view = memoryview(part)[:have]
            for i in inside:
                offset, size = wanted[i]
                found[i] = await shortened(backend, view[offset - start : offset - start + size])
        if number % _RANGES_PER_TICK == 0:
            await backend.cancel_shielded_checkpoint()
    return found


@protect_from_interrupts
async def _read(core: Core, descriptor: Descriptor, pieces: Pieces, abandon: bool) -> None:
    """Read pieces as far as the file goes. OSError names the offset of a piece that failed."""
    engine = core.check()
    backend = core.backend
    assert backend is not None
    await backend.checkpoint_if_cancelled()
    # For the whole call, so that no close comes between its requests.
    lease = Lease(backend, engine, descriptor)
    try:
        try:
            lease.take()
            await _read_leased(core, engine, backend, descriptor, pieces, abandon)
        finally:
            lease.end()
    finally:
        lease.end()


async def _read_leased(core: Core, engine: Engine, backend: Backend, descriptor: Descriptor, pieces: Pieces, abandon: bool) -> None:
    """Copy the pieces that are in the page cache, then read the rest by requests."""
    # 1: call again after other tasks have run. 0: all pieces are read. Negative: the next piece is not cached.
    answer = -1
    if not descriptor.direct and descriptor.read_device.nowait and not pieces.mapped:
        while (answer := pieces.read_inline(_INLINE)) == 1:
            await backend.cancel_shielded_checkpoint()
            await backend.checkpoint_if_cancelled()
            core.check()
        engine.inline.count_pieces(descriptor, pieces.native.next, pieces.moved_inline, answer)
    if answer == 0 or not pieces.count:
        await backend.cancel_shielded_checkpoint()
        return
    await _run_group(core, descriptor, _reading(descriptor, pieces, pieces.owned), 2, abandon=abandon)


def _reading(descriptor: Descriptor, pieces: Pieces, owned: object) -> Iterator[PiecesRead]:
    """Yield the requests for the pieces that have not been read. Each of them, and this iterator, owns the memory."""
    first: int = pieces.native.next
    most = _DIRECT_PIECES if descriptor.direct else max(1, min(_COLD_PIECES, _INLINE // max(pieces.largest, 1)))
    for start in range(first, pieces.count, most):
        yield PiecesRead(descriptor, pieces.part(descriptor, owned, start, min(most, pieces.count - start)))


async def write_ranges(core: Core, descriptor: Descriptor, ranges: Iterable[tuple[int, ReadableBuffer]]) -> int:
    """Write ranges; see `PositionalFile.write_ranges`."""
    requests = _writes(core, descriptor, ranges)
    if not requests:
        await core.checkpoint()
        return 0
    try:
        await _write_leased(core, descriptor, requests)
        return sum(request.transferred for request in requests)
    finally:
        # The frames in a traceback must not hold the caller's memory. The group has a list of its own.
        requests.clear()


def _writes(core: Core, descriptor: Descriptor, ranges: Iterable[tuple[int, ReadableBuffer]]) -> list[PiecesWrite]:
    """Return requests that write ranges."""
    parts: list[tuple[int, Export]] = []
    try:
        for offset, data in ranges:
            parts.append((checked_offset(offset), export_buffer(data, writable=False)))
    except BaseException:
        parts.clear()
        raise
    parts = [part for part in parts if part[1].length]
    inspect(core.check(), (export for _, export in parts))
    # Direct writes inside the file: only these are asynchronous in the kernel.
    overwriting: list[tuple[int, Export]] = []
    others: list[tuple[int, Export]] = []
    buffered: list[tuple[int, Export]] = []
    for offset, export in parts:
        if not is_block_write(descriptor, offset, export.length, 0):
            buffered.append((offset, export))
        elif descriptor.direct and offset + export.length <= descriptor.size:
            overwriting.append((offset, export))
        else:
            others.append((offset, export))
    return [
        PiecesWrite(descriptor, Pieces.ranges(descriptor, group, writing=True, through_cache=through_cache), buffered=through_cache)
        for group, through_cache in ((overwriting, False), (others, False), (buffered, True))
        if group
    ]


@protect_from_interrupts
async def _write_leased(core: Core, descriptor: Descriptor, requests: list[PiecesWrite]) -> None:
    backend = core.backend
    assert backend is not None
    lease = Lease(backend, core.check(), descriptor)
    try:
        try:
            lease.take()
            await _run_group(core, descriptor, [*requests], len(requests), writing=True)
        finally:
            lease.end()
    finally:
        lease.end()


async def _run_group(
    core: Core,
    descriptor: Descriptor,
    requests: Iterable[PiecesRead | PiecesWrite],
    depth: int,
    *,
    writing: bool = False,
    abandon: bool = False,
) -> None:
    """Submit requests, `depth` in flight at once, and wait for all. OSError names the offset of a piece that failed."""
    group = RequestGroup(core.check(), requests, depth, writing=writing)
    del requests
    assert core.backend is not None
    try:
        await core.backend.perform(RequestGroup.start, group, _may_leave_when_cancelled if abandon else RequestGroup.cancel)
    finally:
        group.drop_unsubmitted()
    if group.error is not None:
        raise torn(group.error)
    for request in group.failed:
        raise _error_of(request, group.transferred if writing else None)


def _error_of(request: PiecesRead | PiecesWrite, written: int | None) -> BaseException:
    """Return the error of a request that failed; written: bytes, by it and the others of its group.

    A function of its own: an error that a frame raises and also has as a variable is a reference cycle, which keeps the caller's buffers.
    """
    if cause_of(request) is not None:
        return request.error()
    offset, code = request.pieces.failure() or (None, request.result)
    detail = "" if offset is None else f"{'reading' if written is None else 'writing'} at offset {offset}"
    error = os_error(code, request.descriptor.name, detail)
    if written is not None:
        error.characters_written = written  # type: ignore[attr-defined]
    return error


def _may_leave_when_cancelled(group: RequestGroup[PiecesRead | PiecesWrite]) -> bool:
    """Cancel the requests that have not started, and leave the others to the engine. Return True: the task may leave at once."""
    if not group.cancel():
        group.abandon()
    return True
