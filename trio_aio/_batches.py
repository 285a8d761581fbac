"""Calls of many reads, or many writes, at once: `read_blocks`, `read_ranges`, `write_ranges`.

One C call prepares a batch, and C takes it through its lane (`_run.Run`). What lies in the page cache is copied on the event loop's
thread, some hundred KiB at a time; cold pages are asked for with RWF_NOWAIT in one ``io_submit``, which starts the read-ahead of all
with one doorbell, and a worker collects them.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from trio_aio._arguments import checked_offset, checked_size
from trio_aio._batch import Batch
from trio_aio._buffers import Export, export_buffer, new_bytearray, new_bytes
from trio_aio._copying import shortened
from trio_aio._direct import is_block_write
from trio_aio._errors import os_error
from trio_aio._native import ffi, lib
from trio_aio._request import Operation, Request
from trio_aio._run import Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from _typeshed import ReadableBuffer

    from trio_aio._backends import Backend
    from trio_aio._context import AIOContext
    from trio_aio._descriptor import Descriptor
    from trio_aio._engine import Engine
    from trio_aio._native._ext import CData

__all__ = ("read_blocks", "read_ranges", "run_request", "write_ranges")

_INLINE = 512 << 10  # bytes moved on the loop's thread before other tasks have their turn
_COLD_PIECES = 128  # whose read-ahead is begun at once: more would wait for the device's queue (nr_requests), in io_submit
_PIECES = 512  # of a direct file in one request; the next is out meanwhile
_MERGED = 1 << 20  # bytes: ranges are not merged into larger requests
_RANGES = 256  # that are worked on before other tasks have their turn


def _offsets(offsets: Sequence[int] | ReadableBuffer) -> CData:
    """Give int64_t[]."""
    try:
        view = memoryview(offsets)  # type: ignore[arg-type]
    except TypeError:
        numbers: Any = array("q", offsets)  # type: ignore[arg-type]
    else:
        if view.ndim != 1 or view.format not in tuple("bBhHiIlLqQ"):
            raise TypeError(f"offsets must be integers in one dimension, not of format {view.format!r} in {view.ndim}")
        numbers = offsets if view.format in ("q", "l") and view.itemsize == 8 and view.contiguous else array("q", view.tolist())
    return ffi.from_buffer("int64_t[]", numbers)


async def read_blocks(
    context: AIOContext,
    descriptor: Descriptor,
    offsets: Sequence[int] | ReadableBuffer,
    size: int,
    into: Any,
    abandon: bool,
) -> Any:
    """Read blocks; see `PositionalFile.read_blocks`."""
    size = checked_size(size)
    numbers = _offsets(offsets)
    total = len(numbers) * size
    if into is None:
        into = new_bytearray(total)
    export = export_buffer(into, writable=True)
    if export.length != total:
        raise ValueError(f"into has {export.length} bytes, and {len(numbers)} blocks of {size} bytes are {total}")
    run = Run.blocks(descriptor, numbers, size, export)
    await _read(context, descriptor, run, abandon)
    if (first := run.first_open) < run.count:
        piece = run.pieces[first]
        raise EOFError(f"{descriptor.name!r} ends before the end of the block at offset {piece.offset}: {piece.result} of {size} bytes")
    return into


async def read_ranges(
    context: AIOContext, descriptor: Descriptor, ranges: Iterable[tuple[int, int]], max_gap: int, abandon: bool
) -> list[bytes]:
    """Read ranges; see `PositionalFile.read_ranges`."""
    max_gap = checked_size(max_gap, "max_gap")
    wanted = [(checked_offset(offset), checked_size(size)) for offset, size in ranges]
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    merged: list[tuple[int, int, list[int]]] = []  # start, end, the ranges in it
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
        parts.append((start, export_buffer(part, writable=False)))
        if number % _RANGES == 0:
            await context._checkpoint()
    run = Run.ranges(descriptor, parts, writing=False)
    await _read(context, descriptor, run, abandon)
    backend = context._backend
    assert backend is not None
    found = [b""] * len(wanted)
    for number, ((start, end, inside), part) in enumerate(zip(merged, memory, strict=True), 1):
        have = run.pieces[number - 1].result
        if len(inside) == 1 and have == end - start and isinstance(part, bytes):
            found[inside[0]] = part
        else:
            view = memoryview(part)[:have]
            for i in inside:
                offset, size = wanted[i]
                found[i] = await shortened(backend, view[offset - start : offset - start + size])
        if number % _RANGES == 0:
            await backend.cancel_shielded_checkpoint()
    return found


async def _read(context: AIOContext, descriptor: Descriptor, run: Run, abandon: bool) -> None:
    """Read a run as far as the file goes; OSError that names the offset."""
    engine = context._check()
    backend = context._backend
    assert backend is not None
    await backend.checkpoint_if_cancelled()
    with _Lease(engine, descriptor):  # for all of the call: between its requests, too, nobody may close the file
        await _read_leased(context, engine, backend, descriptor, run, abandon)


async def _read_leased(context: AIOContext, engine: Engine, backend: Backend, descriptor: Descriptor, run: Run, abandon: bool) -> None:
    if not descriptor.direct and (descriptor.read_route is None or descriptor.read_route.nowait):
        while (answer := lib.taio_run_inline(run.native, _INLINE)) == 1:
            await backend.cancel_shielded_checkpoint()
            await backend.checkpoint_if_cancelled()
            context._check()
        engine.inline.count_run(run, answer, descriptor)
    else:
        answer = -1
    if answer == 0 or not run.count:
        await backend.cancel_shielded_checkpoint()
        return
    await _perform(context, descriptor, _reading(descriptor, run), 2, abandon=abandon)


class _Lease:
    def __init__(self, engine: Engine, descriptor: Descriptor) -> None:
        self._engine: Engine = engine
        self._descriptor: Descriptor = descriptor

    def __enter__(self) -> None:
        self._descriptor.order.lease()

    def __exit__(self, *_: object) -> None:
        self._engine.end_lease(self._descriptor)


def _reading(descriptor: Descriptor, run: Run) -> Iterator[Request]:
    first: int = run.native.next
    most = _PIECES if descriptor.direct else max(1, min(_COLD_PIECES, _INLINE // max(run.largest, 1)))
    for start in range(first, run.count, most):
        part = run.part(descriptor, start, min(most, run.count - start))
        yield run_request(Operation.READ_RUN, descriptor, part)


def run_request(operation: Operation, descriptor: Descriptor, run: Run, extra: int = 0) -> Request:
    """Make the request of a run. What the engine asks of a request, the largest piece answers."""
    request = Request(operation, descriptor, run.address, 0, run.end - run.largest, 0, run, extra, run.largest)
    request.run, request.pieces = run, run.count
    return request


async def write_ranges(context: AIOContext, descriptor: Descriptor, ranges: Iterable[tuple[int, ReadableBuffer]]) -> int:
    """Write ranges; see `PositionalFile.write_ranges`."""
    parts = [(checked_offset(offset), export_buffer(data, writable=False)) for offset, data in ranges]
    parts = [part for part in parts if part[1].length]
    overwriting: list[tuple[int, Export]] = []  # what the kernel lane may do
    others: list[tuple[int, Export]] = []
    buffered: list[tuple[int, Export]] = []
    for offset, export in parts:
        if not is_block_write(descriptor, offset, export.length, 0):
            buffered.append((offset, export))
        elif descriptor.direct and offset + export.length <= descriptor.size:
            overwriting.append((offset, export))
        else:
            others.append((offset, export))
    requests = []
    for group, extra in ((overwriting, 0), (others, 0), (buffered, descriptor.through_cache)):
        if group:
            run = Run.ranges(descriptor, group, writing=True, through_cache=bool(extra))
            request = run_request(Operation.WRITE_RUN, descriptor, run, extra)
            request.buffered = bool(extra)
            requests.append(request)
    if not requests:
        await context._checkpoint()
        return 0
    with _Lease(context._check(), descriptor):
        await _perform(context, descriptor, requests, len(requests), writing=True)
    return sum(export.length for _, export in parts)


async def _perform(
    context: AIOContext,
    descriptor: Descriptor,
    requests: Iterable[Request],
    depth: int,
    *,
    writing: bool = False,
    abandon: bool = False,
) -> None:
    """Perform requests that are runs, `depth` at once; OSError that names the offset of a piece that failed."""
    batch = Batch(context._check(), requests, depth, writing=writing)
    assert context._backend is not None

    def cancel(batch: Batch) -> bool:
        if batch.cancel():
            return True
        if abandon:
            batch.abandon()
        return abandon

    await context._backend.perform(Batch.start, batch, cancel)
    for request in batch.failed:
        assert request.run is not None
        offset, code = request.run.failure() or (None, request.result)
        detail = "" if offset is None else f"{'writing' if writing else 'reading'} at offset {offset}"
        error = os_error(code, descriptor.name, detail)
        if writing:
            error.characters_written = batch.transferred  # type: ignore[attr-defined]
        raise error
