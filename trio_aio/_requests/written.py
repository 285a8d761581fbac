"""What a write that has ended says of what is durable: `_engine.durability`. Each kind of write calls one of these when it is settled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_aio._engine.descriptor import DescriptionRecord
from trio_aio._engine.durability import means_lost
from trio_aio._native import lib

if TYPE_CHECKING:
    from trio_aio._engine.descriptor import Descriptor

__all__ = ("note_append", "note_pieces", "note_write", "size_of")

_SYNCHRONOUS: int = lib.RWF_DSYNC | lib.RWF_SYNC


def _size_now(descriptor: Descriptor) -> int:
    """Return the size that the kernel has in memory, bytes; 0 if it does not say."""
    record = DescriptionRecord()
    return record.value.size if lib.taio_describe(descriptor.fd, record.value) == 0 else 0


def size_of(descriptor: Descriptor) -> int:
    """Return the size of a file, bytes, also if others have made it longer."""
    return max(descriptor.size, _size_now(descriptor))


def note_write(request: Any, start: int, end: int, *, flags: int = 0, exact: bool = True) -> None:
    """Note that a write has moved the bytes from `start` to `end`. exact: just these, and not perhaps fewer."""
    descriptor = request.descriptor
    if descriptor.shared_file is None:
        return
    durability, synchronous = descriptor.shared_file.durability, descriptor.synchronous or flags & _SYNCHRONOUS
    failed = request.result < 0
    durability.note_written(start, end, request, durable=bool(synchronous) and not failed, exact=exact and not failed)
    if synchronous and failed and means_lost(request.result):
        durability.note_failed(-request.result, size_of(descriptor))


def note_append(request: Any, end: int, *, flags: int = 0) -> None:
    """Note that a write at the end of the file has moved its bytes. end: where they end; negative: not known."""
    descriptor: Descriptor = request.descriptor
    if descriptor.shared_file is None or not (request.transferred or request.result < 0):
        return
    end = max(end if end >= 0 else _size_now(descriptor), request.transferred)
    note_write(request, end - request.transferred, end, flags=flags, exact=False)


def note_pieces(request: Any) -> None:
    """Note that a write of many pieces has ended."""
    pieces, descriptor = request.pieces, request.descriptor
    if descriptor.shared_file is None:
        return
    if descriptor.append:
        note_append(request, -1)
        return
    ranges = [(piece.offset, piece.result) for piece in pieces.array[0 : pieces.count] if piece.result > 0]
    durability, durable = descriptor.shared_file.durability, descriptor.synchronous and request.result >= 0
    for offset, moved in ranges:
        durability.note_written(offset, offset + moved, request, durable=durable)
    # Of a piece that has failed, only the number of bytes is known.
    failed = pieces.native.failed
    start, end = (failed.offset, failed.offset + pieces.native.partial) if failed else (0, 0)
    note_write(request, start, end, exact=False)
    if failed and descriptor.synchronous and request.result >= 0 and means_lost(failed.result):
        durability.note_failed(-failed.result, size_of(descriptor))
