"""Requests to submit to an engine by hand."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

from trio_aio._engine.descriptor import Descriptor
from trio_aio._memory.exports import export_buffer
from trio_aio._memory.slabs import LARGEST_SLAB, Slab
from trio_aio._requests.poll import Poll
from trio_aio._requests.transfer import Read, Write

if TYPE_CHECKING:
    from .engine_loop import Loop


DIRECT = os.O_RDWR | os.O_DIRECT


def read(descriptor: Descriptor, size: int, offset: int, flags: int = 0) -> Read:
    memory = bytearray(size)
    export = export_buffer(memory, writable=True)
    request = Read(descriptor, export.address, size, offset, flags, export)
    request.waiter = memory
    return request


def write(descriptor: Descriptor, data: bytes, offset: int) -> Write:
    export = export_buffer(data, writable=False)
    return Write(descriptor, export.address, len(data), offset, 0, export)


def warm_slab(loop: Loop, size: int) -> Slab:
    slab = loop.engine.buffers.take(size)
    while not slab.page.warm and slab.capacity <= LARGEST_SLAB:
        loop.turn()
    return slab


class SlabRead(Read):
    """A read into a slab, which is there for the test when the request has ended."""

    __slots__ = ("slab",)

    def __init__(self, descriptor: Descriptor, slab: Slab, size: int, offset: int) -> None:
        Read.__init__(self, descriptor, slab.address, size, offset, 0, slab)
        self.slab: Slab = slab


def direct_read(loop: Loop, descriptor: Descriptor, size: int, offset: int) -> SlabRead:
    """Return a read into memory that is aligned and there."""
    return SlabRead(descriptor, warm_slab(loop, size), size, offset)


def direct_write(loop: Loop, descriptor: Descriptor, data: bytes, offset: int) -> Write:
    slab = warm_slab(loop, len(data))
    slab.gather([export_buffer(data, writable=False)])
    return Write(descriptor, slab.address, len(data), offset, 0, slab)


def poll(fd: int) -> Poll:
    return Poll(Descriptor(fd, fd), select.POLLIN)


def closed_like(descriptor: Descriptor) -> Descriptor:
    """Return a descriptor that io_submit refuses (EBADF), on the same device."""
    gone = Descriptor(os.dup(descriptor.fd), "gone")
    gone.direct, gone.size, gone.block_map = True, descriptor.size, descriptor.block_map
    gone.read_device, gone.write_device = descriptor.read_device, descriptor.write_device
    os.close(gone.fd)
    return gone
