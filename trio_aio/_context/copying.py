"""Large copies on the event loop's thread, 1 MiB in each tick.

A result may have to be copied: joined from several reads, or shortened because the file ended early. Copying 64 MiB at once would keep
other tasks waiting for 20 ms. The kernel must also clear each page of new memory when it is first touched. So other tasks run after each
MiB.

A copy is never cancelled, because the read that it belongs to has taken effect. `binary.py`, `whole.py`, `many.py`, `chunks.py` and the
context's operations call this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_aio._memory.exports import copy_to, hold, new_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_aio._backends import Backend

__all__ = ("COPY_STEP", "joined", "shortened")

# Bytes that are copied before other tasks run: 0.1 to 0.3 ms, with the page faults of new memory.
COPY_STEP = 1 << 20


async def joined(backend: Backend | None, parts: Sequence[bytes | memoryview]) -> bytes:
    """Return the parts, one after the other; a single one of type bytes is returned itself. Never raises Cancelled.

    Up to 1 MiB is copied without a checkpoint.
    """
    if len(parts) == 1 and isinstance(parts[0], bytes):
        return parts[0]
    size = sum(len(part) for part in parts)
    if size <= COPY_STEP:
        return b"".join(parts)
    assert backend is not None
    whole = new_bytes(size)
    assert isinstance(whole, bytes)
    address = hold(whole).address
    for part in parts:
        for start in range(0, len(part), COPY_STEP):
            step = part[start : start + COPY_STEP] if isinstance(part, memoryview) else memoryview(part)[start : start + COPY_STEP]
            copy_to(address, step)
            address += len(step)
            await backend.cancel_shielded_checkpoint()
    return whole


async def shortened(backend: Backend | None, part: memoryview) -> bytes:
    """Return a copy of some bytes, as `joined` does."""
    return await joined(backend, (part,))
