"""An open descriptor as the engine sees it: what it can do, and which requests use it.

After close(2) an fd number may name another file, and the kernel resolves it only at submission. So every request leases its descriptor,
and the close waits for the last lease.
"""

from __future__ import annotations

import os
import stat
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trio_aio._engine.block_map import BlockMap
from trio_aio._engine.order import Order
from trio_aio._errors import os_error
from trio_aio._lanes.devices import DeviceRecord
from trio_aio._native import ffi, lib

if TYPE_CHECKING:
    from trio_aio._engine.shared_file import SharedFile
    from trio_aio._native import CData

__all__ = (
    "BY_CACHESTAT",
    "NO_RESIDENCY",
    "Alignment",
    "DescriptionRecord",
    "Descriptor",
    "cached_size",
    "describe",
    "kind_of",
    "new_residency",
)


@dataclass(frozen=True)
class Alignment:
    """What direct I/O on a file asks of its requests, in bytes.

    ``offset`` is what offsets and lengths must be multiples of, ``memory`` what addresses must. Both are 1 for a buffered file.
    Source: ``statx(2)``, STATX_DIOALIGN.
    """

    offset: int
    memory: int


def kind_of(mode: int) -> str:
    """Return the kind of file that `mode` (st_mode) stands for, in words."""
    for test, name in (
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISREG, "a regular file"),
    ):
        if test(mode):
            return name
    return "no regular file"


BUFFERED = Alignment(1, 1)

# How to see that pages of a file are in the page cache where RWF_NOWAIT does not work: a struct taio_residency (native.h). tmpfs needs no
# more than cachestat(2), the same for all of its files. overlayfs needs a mapping for each open file. A worker makes it with the first
# read, and it ends before the descriptor is closed. It is unmapped when its last reference is gone.
# False as a truth value: RWF_NOWAIT works, or a worker must read.
NO_RESIDENCY: CData = ffi.cast("struct taio_residency *", 0)
BY_CACHESTAT: CData = ffi.new("struct taio_residency *", {"way": lib.TAIO_BY_CACHESTAT, "place": lib.TAIO_LOCAL})


def new_residency(*, is_local: bool, may_map: bool) -> CData:
    """Return a record that a worker fills in. is_local: of the device, if that is known. may_map: the fd is closed by us alone."""
    place = lib.TAIO_LOCAL if is_local else lib.TAIO_UNKNOWN
    record = ffi.new("struct taio_residency *", {"place": place, "may_map": may_map})
    return ffi.gc(record, lib.taio_residency_release)


MOST_ASKS = 16  # each takes a worker some microseconds; a page may be gone again when the worker looks, but not so often


# Of `take_unclaimed`: the event loop and a finalizer in any thread may ask for one descriptor. Reentrant: the collector may run inside.
_claims = threading.RLock()


def _renew_claims() -> None:
    global _claims
    _claims = threading.RLock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_renew_claims)


class Descriptor:
    """A file descriptor, its traits, and the requests that lease it."""

    def __init__(self, fd: int, name: object = None) -> None:
        self.fd: int = fd
        self.name: object = name
        self.unclaimed: bool = False  # a request has opened it or the second one, and no file has taken it over: see `close_now`
        self.borrowed: bool = False  # the caller closes it (closefd=False)
        self.mode: int = 0  # st_mode
        self.device: int = 0
        self.inode_number: int = 0
        self.birth: int = 0  # when the file was made, nanoseconds; 0: not known
        self.opened: bool = True  # False: the caller has passed it
        self.writable: bool = False
        self.synchronous: bool = False  # O_DSYNC, which O_SYNC contains: each write is durable when it ends
        self.watched: bool = False  # a listener is asked about each read, and the reader sleeps meanwhile
        self.known_failures: int = 0  # of syncs, before it was opened: set by `Engine.learn`
        self.shared_file: SharedFile | None = None  # set by `Engine.learn`
        # `o_direct`: the descriptor has the flag O_DIRECT, so the rules for aligned writes hold. `direct`: the filesystem honours it too,
        # so reads and writes go to the device. A filesystem may accept the flag and use the page cache all the same.
        self.direct: bool = False
        self.o_direct: bool = False
        self.append: bool = False
        self.size: int = 0  # no less than this when last seen: what lies below it is an overwrite
        self.alignment: Alignment = BUFFERED
        self.read_unit: int = 1  # what offsets and lengths of reads must be multiples of
        self.read_device: DeviceRecord = DeviceRecord()  # what its device was found to do; `Engine.learn` sets the engine's record
        self.write_device: DeviceRecord = self.read_device
        self.block_map: BlockMap = BlockMap(0)  # where the kernel has its map of blocks in memory; set by `Engine.learn`
        self.users: int = 0  # calls by fd that share this object
        self.buffered_fd: int = -1  # a second one without O_DIRECT, for writes of parts of blocks; it is closed with the first
        self.closes_inline: bool = False  # opened for reading only, on a mount that is known to be local
        self.residency: CData = NO_RESIDENCY  # how to see that pages are cached, where RWF_NOWAIT does not work
        self.asks_left: int = MOST_ASKS  # reads that may try to find that out
        self.order: Order = Order()  # what leases it, and what waits for what

    def own(self, fd: int, buffered_fd: int = -1) -> None:
        """Take over what a request has opened, until a file does. An exception may come first: KeyboardInterrupt, at any moment."""
        self.fd, self.buffered_fd, self.unclaimed = fd, buffered_fd, True

    def take_unclaimed(self) -> bool:
        """Return whether the descriptor belongs to the caller now: true for one caller, in any thread, if no file has taken it over."""
        with _claims:
            unclaimed, self.unclaimed = self.unclaimed, False
        return unclaimed

    def close_unclaimed(self) -> None:
        """Close it now if no file has taken it over."""
        if self.take_unclaimed():
            self.close_now()

    def __del__(self) -> None:
        if self.unclaimed:
            self.close_unclaimed()

    @property
    def through_cache(self) -> int:
        """The value that makes a worker write through the page cache (native.h, TAIO_KEPT_FD, or TAIO_BUFFERED_FD without a second fd)."""
        return (self.buffered_fd + 1) << 1 | lib.TAIO_BUFFERED_FD

    def new_residency(self) -> CData | None:
        """Return a record for the worker that reads next, which finds out how to see that pages are cached. None: that is not needed."""
        device = self.read_device
        if device.nowait or self.residency or not self.asks_left or not device.may_ask:
            return None
        if device.residency is not None:
            self.residency = device.residency
            return None
        self.asks_left -= 1
        return new_residency(is_local=bool(device.local), may_map=self.opened and not self.users)

    def take_residency(self, found: CData) -> None:
        """Take over what a worker has found out, for the device too."""
        device = self.read_device
        if device.local is None and found.place:
            device.note_place(local=found.place == lib.TAIO_LOCAL)
        if found.place == lib.TAIO_SERVER:
            device.may_ask = False
        elif found.way == lib.TAIO_BY_CACHESTAT:
            self.residency = device.residency = BY_CACHESTAT
        elif found.way == lib.TAIO_BY_MINCORE and not self.residency:
            self.residency = found

    def release_residency(self) -> None:
        """Unmap what is mapped, before the fd is closed: the file may have no other use, and the last one frees it."""
        residency, self.residency = self.residency, NO_RESIDENCY
        if residency and residency != BY_CACHESTAT:
            ffi.release(residency)

    def close_now(self) -> None:
        """Close now what belongs to us. No request uses it any more."""
        self.release_residency()
        if self.buffered_fd >= 0:
            os.close(self.buffered_fd)
        if not self.borrowed:
            os.close(self.fd)

    @property
    def read_worker_path(self) -> int:
        """The value that makes a worker read through its own aligned memory (native.h, TAIO_READ); 0 where that is not needed."""
        unit = self.read_unit if self.read_unit > 1 else self.alignment.memory  # a read may be widened by more than it must
        return unit if unit > 1 else 0

    @property
    def write_worker_path(self) -> int:
        """The value that makes a worker write whole blocks through its own aligned memory; 0 where that is not needed."""
        if self.alignment.offset > 1:
            return self.alignment.offset
        return self.through_cache if self.alignment.memory > 1 else 0

    def load(self, description: CData) -> None:
        """Take over what the kernel says: a struct taio_description."""
        self.mode = description.mode
        self.device = description.device
        self.inode_number = description.inode
        self.birth = description.birth
        self.writable = description.open_flags & os.O_ACCMODE != os.O_RDONLY
        self.synchronous = bool(description.open_flags & os.O_DSYNC)
        # Alignments of 0: the file cannot do it, and the kernel goes through the page cache.
        self.o_direct = bool(description.open_flags & os.O_DIRECT)
        self.direct = self.o_direct and not (description.has_dioalign and not description.dio_offset)
        self.append = bool(description.open_flags & os.O_APPEND)
        self.size = description.size
        self.watched = bool(description.watched)
        if self.direct and description.has_dioalign:
            self.alignment = Alignment(description.dio_offset, description.dio_memory)
            self.read_unit = description.dio_read_offset or description.dio_offset


class DescriptionRecord:
    """Memory where a worker, or `describe`, writes what a descriptor is: a struct taio_description."""

    def __init__(self) -> None:
        self.value: CData = ffi.new("struct taio_description *", {"buffered_fd": -1})
        self.address: int = int(ffi.cast("uintptr_t", self.value))


def describe(fd: int) -> DescriptionRecord:
    """Return what the kernel says of `fd`, from memory alone. OSError (EBADF)."""
    record = DescriptionRecord()
    error = lib.taio_describe(fd, record.value)
    if error < 0:
        raise os_error(-error, fd)
    return record


def cached_size(path: bytes) -> int:
    """Return the size of a file if the kernel has it in memory, otherwise a negative number. Never sleeps."""
    return lib.taio_cached_size(path)
