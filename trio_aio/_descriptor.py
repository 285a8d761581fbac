"""An open descriptor as the engine sees it: what it can do, and who is using it.

A number in the process's table means something else after close(2), and the kernel looks it up when a request is handed over. So every
request leases its descriptor, and the close waits for the last of them.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trio_aio._errors import os_error
from trio_aio._native import ffi, lib
from trio_aio._order import Order

if TYPE_CHECKING:
    from trio_aio._buffers import Export
    from trio_aio._inode import Inode
    from trio_aio._native._ext import CData
    from trio_aio._routing import Route

__all__ = ("Alignment", "DescriptionRecord", "Descriptor", "StatRecord", "WholeRecord", "cached_size", "describe", "kind_of")


@dataclass(frozen=True)
class Alignment:
    """What direct I/O on a file asks of its requests, in bytes.

    ``offset`` is what offsets and lengths must be multiples of, ``memory`` what addresses must. Both are 1 for a buffered file.
    Source: ``statx(2)``, STATX_DIOALIGN.
    """

    offset: int
    memory: int


def kind_of(mode: int) -> str:
    """Name the kind of file that `mode` (st_mode) stands for."""
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


class Descriptor:
    """A file descriptor, its traits, and the requests that lease it."""

    unclaimed: bool = False  # a request of ours has opened it, and no file has taken it over: it is closed with this object

    def __init__(self, fd: int, name: object = None) -> None:
        self.fd: int = fd
        self.name: object = name
        self.borrowed: bool = False  # the caller closes it (closefd=False)
        self.mode: int = 0  # st_mode
        self.device: int = 0
        self.inode_number: int = 0
        self.inode: Inode | None = None  # once the engine has learned of it
        self.direct: bool = False
        self.o_direct: bool = False  # has the flag, whatever its filesystem makes of it
        self.append: bool = False
        self.size: int = 0  # no less than this when last seen: what lies below it is an overwrite
        self.alignment: Alignment = BUFFERED
        self.read_unit: int = 1  # what offsets and lengths of reads must be multiples of
        self.read_route: Route | None = None  # what its device has taught us; the engine's
        self.write_route: Route | None = None
        self.users: int = 0  # calls by descriptor that share this object
        self.second: CData = ffi.NULL  # see `keep_second`
        self.order: Order = Order()  # who leases it, and who waits for whom

    def own(self, fd: int) -> None:
        """Take over what a request has opened. An exception may come before a file does, KeyboardInterrupt at any moment."""
        self.fd, self.unclaimed = fd, True

    def take_unclaimed(self) -> bool:
        """Whether it is for the caller to close, or to use: true for one caller, in whatever thread, if nobody has taken it over."""
        return bool(self.__dict__.pop("unclaimed", False))  # in one step

    def close_unclaimed(self) -> None:
        """Close it here and now if nobody has taken it over."""
        if self.take_unclaimed():
            os.close(self.fd)

    def __del__(self) -> None:
        self.close_unclaimed()

    def keep_second(self) -> None:
        """Have writes through the page cache share a second descriptor, which is closed with the first."""
        self.second = ffi.new("struct taio_second *", [lib.TAIO_NOT_YET])

    @property
    def second_address(self) -> int:
        """Where the second descriptor is kept; 0 where there is none."""
        return int(ffi.cast("uintptr_t", self.second))

    @property
    def through_cache(self) -> int:
        """What tells a worker to write through the page cache, by a descriptor without O_DIRECT (native.h, TAIO_WRITE)."""
        return lib.TAIO_REOPEN | self.second_address

    def close_now(self) -> None:
        """Close what is ours of it, here and now. Nothing uses it any more."""
        if self.second and self.second.fd >= 0:
            os.close(self.second.fd)
        if not self.borrowed:
            os.close(self.fd)

    @property
    def read_bounce(self) -> int:
        """What tells a worker to read through its own aligned memory (native.h, TAIO_READ); 0 where nothing needs that."""
        unit = self.read_unit if self.read_unit > 1 else self.alignment.memory  # a read may be widened by more than it must
        return unit if unit > 1 else 0

    @property
    def write_bounce(self) -> int:
        """What tells a worker to write whole blocks through its own aligned memory; 0 where nothing needs that."""
        if self.alignment.offset > 1:
            return self.alignment.offset
        return self.through_cache if self.alignment.memory > 1 else 0

    def load(self, record: DescriptionRecord | WholeRecord) -> None:
        """Take over what the kernel says."""
        description = record.value if isinstance(record, DescriptionRecord) else record.value.description
        self.mode = description.mode
        self.device = description.device
        self.inode_number = description.inode
        # Alignments of 0: the file cannot do it, and the kernel goes through the page cache.
        self.o_direct = bool(description.open_flags & os.O_DIRECT)
        self.direct = self.o_direct and not (description.has_dioalign and not description.dio_offset)
        self.append = bool(description.open_flags & os.O_APPEND)
        self.size = description.size
        if self.direct and description.has_dioalign:
            self.alignment = Alignment(description.dio_offset, description.dio_memory)
            self.read_unit = description.dio_read_offset or description.dio_offset


class DescriptionRecord:
    """Where a worker, or `describe`, puts what a descriptor is."""

    def __init__(self) -> None:
        self.value: CData = ffi.new("struct taio_description *")
        self.address: int = int(ffi.cast("uintptr_t", self.value))


class WholeRecord:
    """What a worker is told of a whole file, and where it puts what it found."""

    def __init__(self, export: Export, first: int) -> None:
        self.held: Export = export
        self.value: CData = ffi.new(
            "struct taio_whole *", {"fd": -1, "memory": export.address, "capacity": export.length, "first": min(first, export.length)}
        )
        self.address: int = int(ffi.cast("uintptr_t", self.value))


def describe(fd: int) -> DescriptionRecord:
    """Ask the kernel what `fd` is, from memory alone; OSError (EBADF)."""
    record = DescriptionRecord()
    error = lib.taio_describe(fd, record.value)
    if error < 0:
        raise os_error(-error, fd)
    return record


def cached_size(path: bytes) -> int:
    """Give the size of a file if the kernel can tell it from memory; a negative number if not. It never sleeps."""
    return lib.taio_cached_size(path)


class StatRecord:
    """Where a worker puts what fstat(2) says."""

    def __init__(self) -> None:
        self._record: CData = ffi.new("struct taio_stat *")
        self.address: int = int(ffi.cast("uintptr_t", self._record))

    def result(self) -> os.stat_result:
        """Give it as ``os.fstat`` would."""
        s = self._record
        times = {"atime": s.atime_ns, "mtime": s.mtime_ns, "ctime": s.ctime_ns}
        more = {"st_blksize": s.block_size, "st_blocks": s.blocks, "st_rdev": s.rdev}
        for name, nanoseconds in times.items():
            more[f"st_{name}"] = nanoseconds * 1e-9
            more[f"st_{name}_ns"] = nanoseconds
        seconds = [nanoseconds // 10**9 for nanoseconds in times.values()]
        return os.stat_result([s.mode, s.inode, s.device, s.links, s.uid, s.gid, s.size, *seconds], more)
