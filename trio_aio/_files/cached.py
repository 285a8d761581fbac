"""Files that the kernel has in memory: opened, and small ones read, on the event loop's thread.

The lane for names (`_lanes.names`) opens a file only if its path is in the kernel's caches, and it lies on a mount that was found to be
local. The first file of a mount is not opened so: a worker looks at it first, and so finds out what the mount is. `open.py` and `whole.py`
call this.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trio_aio._backends import protect_from_interrupts
from trio_aio._engine.descriptor import Descriptor
from trio_aio._lanes.inline import INLINE_LIMIT
from trio_aio._lanes.names import UNKNOWN
from trio_aio._requests.names import StatName

if TYPE_CHECKING:
    from trio_aio._context.core import Core

__all__ = ("may_open_cached", "open_cached", "probe_mount", "read_cached")

_WORKERS_ONLY = os.O_CREAT | os.O_TRUNC | os.O_EXCL | os.O_APPEND | os.O_DIRECT


def may_open_cached(core: Core, flags: int) -> bool:
    """Return whether it is worth a try to open a file with these flags on the event loop's thread."""
    return core.names.on and not flags & _WORKERS_ONLY


@protect_from_interrupts
def open_cached(core: Core, descriptor: Descriptor, path: bytes, flags: int, resolve: int = 0) -> bool:
    """Open a file from memory, and let `descriptor` own it. False: a worker must do it."""
    lane = core.names
    answer = lane.open(descriptor.fd, path, flags, resolve)
    if answer < 0:
        return False
    descriptor.own(answer)
    descriptor.load(lane.description)
    # A file that was not written has nothing to flush.
    descriptor.closes_inline = flags & os.O_ACCMODE == os.O_RDONLY
    return True


def read_cached(core: Core, dir: int, path: bytes, resolve: int = 0, offset: int = 0, size: int = -1) -> bytes | None:
    """Return `size` bytes of a file from memory; -1: to its end. At most 128 KiB. None: a worker must read them."""
    lane = core.names
    return lane.read_file(dir, path, resolve, offset, size) if lane.on and size <= INLINE_LIMIT else None


async def probe_mount(core: Core, dir: int, path: bytes, shown: object, *, abandon: bool = False) -> None:
    """Let a worker find out whether a file's mount is local, if the last inline call did not know. abandon: do not wait when cancelled."""
    lane = core.names
    if lane.last != UNKNOWN or not lane.should_probe():
        return
    request = StatName(Descriptor(dir, shown), path, probe=1)
    try:
        await core.submit_and_wait(request, abandon=abandon)
    except OSError:
        return  # the call that follows meets the error too, and reports it
    lane.note_probe(request.record.key, bool(request.record.slept))
