"""Large copies, a piece in each turn of the event loop: 64 MiB at once would keep its other tasks waiting for 20 ms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_aio._memory.exports import copy_to, export_buffer, new_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_aio._backends import Backend

__all__ = ("PIECE", "joined", "shortened")

PIECE = 1 << 20  # bytes: 0.1 to 0.3 ms, with the page faults of new memory


async def joined(backend: Backend | None, parts: Sequence[bytes | memoryview]) -> bytes:
    """Give the parts, one behind the other; the very object if there is but one. No checkpoint where little is copied; never Cancelled."""
    if len(parts) == 1 and isinstance(parts[0], bytes):
        return parts[0]
    size = sum(len(part) for part in parts)
    if size <= PIECE:
        return b"".join(parts)
    assert backend is not None
    whole = new_bytes(size)
    assert isinstance(whole, bytes)
    address = export_buffer(whole, writable=False).address
    for part in parts:
        for start in range(0, len(part), PIECE):
            piece = part[start : start + PIECE] if isinstance(part, memoryview) else memoryview(part)[start : start + PIECE]
            copy_to(address, piece)
            address += len(piece)
            await backend.cancel_shielded_checkpoint()
    return whole


async def shortened(backend: Backend | None, part: memoryview) -> bytes:
    """Give a copy of some bytes, as `joined` does."""
    return await joined(backend, (part,))
