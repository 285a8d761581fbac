"""Reads and writes of one range, from and to memory that the caller or the package owns."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from trio_aio._native import ffi, lib
from trio_aio._requests.base import Request
from trio_aio._requests.written import note_append, note_write

if TYPE_CHECKING:
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.host import Host
    from trio_aio._lanes.devices import DeviceRecord
    from trio_aio._lanes.kernel import KernelLane
    from trio_aio._lanes.workers import WorkerLane
    from trio_aio._memory.exports import Vector
    from trio_aio._native import CData

__all__ = (
    *("DIRECT_LIMIT", "Append", "AskingRead", "Read", "ReadVector", "Transfer"),
    *("Write", "WriteVector", "needs_worker", "read_for_worker"),
)

# Bytes: io_submit pins every page on the event loop's thread, 60 us for 1 MiB and 300 us for 8 MiB. A larger request goes to a worker.
# `LARGEST_SLAB` is not larger, so a request that fits a slab is never refused for its size.
DIRECT_LIMIT = 1 << 20

_EAGAIN, _EOPNOTSUPP, _EINTR, _EINVAL, _EIO = -errno.EAGAIN, -errno.EOPNOTSUPP, -errno.EINTR, -errno.EINVAL, -errno.EIO
_IOV_MAX, _APPEND, _NOWAIT = lib.IOV_MAX, lib.RWF_APPEND, lib.RWF_NOWAIT


def needs_worker(result: int, *, reading: bool) -> bool:
    """Return whether this result is no error: a worker must redo the request.

    The kernel answers so to a request with RWF_NOWAIT. EIO of a read is such an answer too: see transfer.c, `transfer_or_retry`.
    """
    return result in (_EAGAIN, _EOPNOTSUPP) or (reading and result == _EIO)


class Transfer(Request):
    """Bytes moved between one range of a file and memory."""

    __slots__ = ("address", "flags", "nbytes", "offset", "owned", "probing", "worker_path")

    offload: Any = True  # a submitter calls io_submit, which may sleep
    kernel_opcode: int
    worker_operation: int
    reads: bool

    def __init__(
        self, descriptor: Descriptor, address: int, nbytes: int, offset: int, flags: int, owned: object, worker_path: int = 0
    ) -> None:
        Request.__init__(self, descriptor)
        self.address: int = address
        self.nbytes: int = nbytes  # left to move
        self.offset: int = offset
        self.flags: int = flags
        self.owned: Any = owned  # an Export or a Vector: kept alive until the request has ended
        self.worker_path: int = worker_path  # how a worker moves the bytes: native.h, TAIO_READ
        self.probing: bool = False  # submitted with an RWF_NOWAIT of ours

    @property
    def device(self) -> DeviceRecord:
        """What the device was found to do in this direction."""
        raise NotImplementedError

    def can_submit(self, engine: Host) -> bool | None:
        """Direct, of a size that io_submit starts quickly, on a device that was found to be asynchronous."""
        descriptor = self.descriptor
        if not descriptor.direct or not engine.may_use_kernel or self.worker_path or not 0 < self.nbytes <= DIRECT_LIMIT:
            return False
        if getattr(self.owned, "mapped", False):  # io_submit touches its pages
            return False
        device = self.device
        if device.skips_left and not device.should_try():
            return False
        self.probing = device.nowait and not self.flags & _NOWAIT
        return True

    def prepare(self, lane: KernelLane, slot: int) -> None:
        self.prepare_length(lane, slot, self.nbytes)

    def prepare_length(self, lane: KernelLane, slot: int, length: int) -> None:
        """Fill the iocb of a slot. `length`: bytes, or entries of an iovec array."""
        flags = self.flags | _NOWAIT if self.probing else self.flags
        fd = self.descriptor.fd
        if self.offload:
            lane.gather(self, slot, self.device, self.kernel_opcode, fd, self.address, length, self.offset, flags)
        else:
            lane.start(self, slot, self.kernel_opcode, fd, self.address, length, self.offset, flags)

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        descriptor = self.descriptor
        lane.prepare(
            slot,
            before,
            self.token,
            self.worker_operation,
            descriptor.fd,
            self.address,
            self.nbytes,
            self.offset,
            self.flags,
            self.worker_path,
        )

    def note_slept(self) -> None:
        self.device.note_slept()

    def note_submitted(self, engine: Host, result: int | None) -> None:
        if self.probing:
            return
        if result is None:
            self.device.note_fast()
        elif result >= 0:  # an error says nothing of the device
            self.device.note_slow()  # done when io_submit returned: it took the loop's time

    def complete_kernel(self, engine: Host, token: int, result: int) -> None:
        """Take what the kernel did. A worker continues where it would have slept, or stopped early."""
        if result < 0:
            self._take_refusal(engine, result)
            return
        if self.probing:
            self.device.slow = 0
        self.transferred = result
        if result == self.nbytes or (self.reads and self.is_end(result)):
            engine.finish(self, result)
        elif result == 0:
            engine.finish(self, _EIO)  # a write that moves nothing is an error, not a loop
        else:
            self.skip(result)
            engine.to_workers(self)

    def _take_refusal(self, engine: Host, result: int) -> None:
        # EAGAIN without RWF_NOWAIT comes from io_submit itself: the kernel has no room, and a submitter has tried for long enough.
        no_room = result == _EAGAIN and not self.flags & _NOWAIT
        if no_room or (self.probing and needs_worker(result, reading=self.reads)):
            if result == _EAGAIN:
                self.device.note_slow()
            elif result == _EOPNOTSUPP and not self.flags:  # otherwise it may be a flag of the caller's that is not supported
                self.device.note_no_nowait()
            if self.cancel_requested:  # it did nothing, and no task wants it any more
                self.cancel_accepted = True
                engine.finish(self, 0)
                return
            engine.retried += 1
            engine.to_workers(self)
        elif result == _EINTR or (result == _EINVAL and not self.reads and lib.taio_crosses_size_limit(self.offset, self.nbytes)):
            engine.to_workers(self)  # which writes what is below the limit, and finds EFBIG
        else:
            engine.finish(self, result)

    def is_end(self, result: int) -> bool:
        """Return whether a short read means the end of the file, and not that the kernel stopped between two blocks."""
        return result == 0 or result % self.descriptor.read_unit != 0

    def complete_worker(self, engine: Host, result: int, transferred: int) -> None:
        self.transferred += transferred
        engine.finish(self, self.transferred if result >= 0 else result)

    def release_memory(self, engine: Host) -> None:
        self.owned = None

    def skip(self, count: int) -> None:
        """Advance past the first `count` bytes."""
        self.offset += count
        self.nbytes -= count
        self.address += count

    def narrow(self, nbytes: int) -> Any:
        """Make it move only `nbytes`, and return what `widen` needs to undo that. For faults."""
        whole, self.nbytes = self.nbytes, nbytes
        return whole

    def widen(self, whole: Any) -> None:
        """Undo `narrow`, after the slot was filled."""
        self.nbytes = whole


class _Vectored(Transfer):
    """Several buffers instead of one: `address` is that of an iovec array with `parts` entries."""

    __slots__ = ()

    parts: int

    def can_submit(self, engine: Host) -> bool | None:
        return super().can_submit(engine) if self.parts <= _IOV_MAX else False

    def prepare(self, lane: KernelLane, slot: int) -> None:
        self.prepare_length(lane, slot, self.parts)

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        fd, operation = self.descriptor.fd, self.worker_operation
        lane.prepare(slot, before, self.token, operation, fd, self.address, self.parts, self.offset, self.flags, self.worker_path)

    def skip(self, count: int) -> None:
        self.offset += count
        self.nbytes -= count
        part = ffi.cast("struct iovec *", self.address)
        while count >= part.iov_len:
            count -= part.iov_len
            part += 1
            self.parts -= 1
        part.iov_base = ffi.cast("char *", part.iov_base) + count
        part.iov_len -= count
        self.address = int(ffi.cast("uintptr_t", part))

    def narrow(self, nbytes: int) -> Any:
        whole = self.address, self.parts
        chosen = []
        for part in ffi.cast("struct iovec *", self.address)[0 : self.parts]:
            chosen.append((part.iov_base, min(part.iov_len, nbytes)))
            nbytes -= chosen[-1][1]
            if not nbytes:
                break
        vector = ffi.new("struct iovec[]", chosen)
        self.address, self.parts = int(ffi.cast("uintptr_t", vector)), len(chosen)
        return (*whole, vector)

    def widen(self, whole: Any) -> None:
        self.address, self.parts = whole[:2]


class Read(Transfer):
    """Bytes of a file into memory."""

    __slots__ = ("may_chain", "offload", "partly_read")

    fault_name = "read"
    reads = True
    kernel_opcode = lib.IOCB_CMD_PREAD
    worker_operation = lib.TAIO_READ

    def __init__(
        self, descriptor: Descriptor, address: int, nbytes: int, offset: int, flags: int, owned: object, worker_path: int = 0
    ) -> None:
        Transfer.__init__(self, descriptor, address, nbytes, offset, flags, owned, worker_path)
        self.may_chain: bool = False  # small, buffered, and not in the page cache: such reads of one device share a worker
        self.partly_read: bool = False  # the inline lane has read a part of it into the caller's memory
        self.offload: bool = False

    def can_submit(self, engine: Host) -> bool | None:
        """As all transfers. A submitter submits it where io_submit may sleep: on such a device, or as the first reader of a region."""
        if not super().can_submit(engine):
            return False
        descriptor = self.descriptor
        self.offload = descriptor.read_device.must_offload() or not descriptor.block_map.has(self.offset, self.nbytes)
        return True

    def prepare_length(self, lane: KernelLane, slot: int, length: int) -> None:
        # io_submit may sleep for a read that sets the time of access too. Asked now: it may have been queued.
        if not self.offload:
            self.offload = bool(lib.taio_sets_access_time(self.descriptor.fd))
        super().prepare_length(lane, slot, length)

    def complete_kernel(self, engine: Host, token: int, result: int) -> None:
        if self.offload:
            if result > 0:
                self.descriptor.block_map.add(self.offset, result)
            if self.device.local is None:
                engine.kernel.learn(self.device)  # type: ignore[union-attr]
        super().complete_kernel(engine, token, result)

    @property
    def device(self) -> DeviceRecord:
        return self.descriptor.read_device

    @property
    def has_moved_bytes(self) -> bool:
        return self.partly_read or self.transferred > 0

    def complete_worker(self, engine: Host, result: int, transferred: int) -> None:
        if self.offload and transferred > 0:
            self.descriptor.block_map.add(self.offset, min(transferred, DIRECT_LIMIT))
        super().complete_worker(engine, result, transferred)

    def chain_key(self) -> object:
        return self.descriptor.read_device if self.may_chain else None  # of one device: a device that hangs must not hold reads of another

    def settle(self, engine: Host) -> None:
        engine.bytes_read += self.transferred
        if self.worker_path:
            engine.bounced_bytes += self.transferred


class AskingRead(Read):
    """A read of a buffered file by a worker, which then finds out how the next reads see that pages are cached."""

    __slots__ = ("residency",)

    def __init__(self, residency: CData, descriptor: Descriptor, address: int, nbytes: int, offset: int, owned: object) -> None:
        Read.__init__(self, descriptor, address, nbytes, offset, 0, owned)
        self.residency: CData = residency

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        operation, residency = lib.TAIO_READ_AND_ASK, int(ffi.cast("uintptr_t", self.residency))
        lane.prepare(slot, before, self.token, operation, self.descriptor.fd, self.address, self.nbytes, self.offset, 0, residency)

    def complete_worker(self, engine: Host, result: int, transferred: int) -> None:
        self.descriptor.take_residency(self.residency)
        super().complete_worker(engine, result, transferred)


def read_for_worker(descriptor: Descriptor, address: int, nbytes: int, offset: int, flags: int, owned: object, worker_path: int) -> Read:
    """Return a read that the inline lane has not served. Where RWF_NOWAIT does not work, it may be an `AskingRead`."""
    may_ask = not flags and not worker_path and not descriptor.direct and not descriptor.read_device.nowait
    residency = descriptor.new_residency() if may_ask else None
    if residency is None:
        return Read(descriptor, address, nbytes, offset, flags, owned, worker_path)
    return AskingRead(residency, descriptor, address, nbytes, offset, owned)


class ReadVector(_Vectored, Read):
    """Bytes of a file into several buffers."""

    __slots__ = ("parts",)

    kernel_opcode = lib.IOCB_CMD_PREADV
    worker_operation = lib.TAIO_READV

    def __init__(self, descriptor: Descriptor, vector: Vector, offset: int, flags: int, worker_path: int = 0) -> None:
        Read.__init__(self, descriptor, vector.address, vector.length, offset, flags, vector, worker_path)
        self.parts: int = len(vector.exports)


class Write(Transfer):
    """Bytes from memory into a file."""

    __slots__ = ("passed_gate",)

    changes = ordered = gated = True
    fault_name = "write"
    tells_written = True
    reads = False
    buffered: bool = False  # through the page cache of a direct file
    kernel_opcode = lib.IOCB_CMD_PWRITE
    worker_operation = lib.TAIO_WRITE

    def __init__(
        self, descriptor: Descriptor, address: int, nbytes: int, offset: int, flags: int, owned: object, worker_path: int = 0
    ) -> None:
        Transfer.__init__(self, descriptor, address, nbytes, offset, flags, owned, worker_path)
        self.passed_gate: bool = False  # see `shared_file.Gate`

    @property
    def device(self) -> DeviceRecord:
        return self.descriptor.write_device

    def can_submit(self, engine: Host) -> bool | None:
        """Overwrites only: a write that makes the file longer is synchronous on nearly every filesystem.

        Without RWF_NOWAIT: the submitter may sleep in io_submit. With it, ext4 answers EAGAIN whenever a timestamp is due, to one write in
        seven, and a worker had to repeat each of them.
        """
        descriptor = self.descriptor
        if descriptor.append or self.flags & _APPEND or self.offset + self.nbytes > descriptor.size:
            return False
        can = super().can_submit(engine)
        self.probing = False
        return can

    def chain_key(self) -> object:
        # Writes through the page cache wait for each other in the kernel; direct ones share the inode's lock.
        return self.descriptor.shared_file if self.buffered or not self.descriptor.direct else None

    def settle(self, engine: Host) -> None:
        engine.bytes_written += self.transferred
        if self.worker_path and not self.buffered:
            engine.bounced_bytes += self.transferred
        descriptor, end = self.descriptor, self.offset + self.nbytes
        if descriptor.append or self.flags & _APPEND:  # it goes where the kernel says
            note_append(self, -1, flags=self.flags)
        elif self.result >= 0:
            descriptor.size = max(descriptor.size, end)
            note_write(self, end - self.transferred, end, flags=self.flags)
        else:  # an earlier lane may have moved a part, and then `offset` lies behind that
            note_write(self, max(self.offset - self.transferred, 0), self.offset + self.transferred, flags=self.flags)


class WriteVector(_Vectored, Write):
    """Bytes from several buffers into a file."""

    __slots__ = ("parts",)

    kernel_opcode = lib.IOCB_CMD_PWRITEV
    worker_operation = lib.TAIO_WRITEV

    def __init__(self, descriptor: Descriptor, vector: Vector, offset: int, flags: int, worker_path: int = 0) -> None:
        Write.__init__(self, descriptor, vector.address, vector.length, offset, flags, vector, worker_path)
        self.parts: int = len(vector.exports)


class Append(Write):
    """Bytes to the end of a file that is open with O_APPEND. The result is the position after them, where the kernel put them."""

    __slots__ = ()

    worker_operation = lib.TAIO_APPEND

    def __init__(self, descriptor: Descriptor, address: int, nbytes: int, owned: object) -> None:
        Write.__init__(self, descriptor, address, nbytes, 0, 0, owned)

    def can_submit(self, engine: Host) -> bool | None:
        return False

    def complete_worker(self, engine: Host, result: int, transferred: int) -> None:
        self.transferred += transferred
        engine.finish(self, result)

    def settle(self, engine: Host) -> None:
        engine.bytes_written += self.transferred
        note_append(self, self.result)
