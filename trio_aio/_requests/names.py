"""Calls on names: paths, links, directories, attributes. A worker makes each, in one request, whatever its number of system calls.

All of them are one operation of the workers, with one struct: names.h says what each call makes of its fields. A request owns that struct,
its paths and the memory for its result until its completion has been taken. A request that has started cannot be stopped, so one
whose task gets Cancelled has changed no name.
"""

from __future__ import annotations

import enum
import os
from typing import TYPE_CHECKING, Any

from trio_aio._engine.descriptor import DescriptionRecord
from trio_aio._errors import os_call_error, os_error
from trio_aio._native import ffi, lib
from trio_aio._requests.base import Request
from trio_aio._requests.metadata import status_of
from trio_aio._requests.opening import AT_FDCWD, Close

if TYPE_CHECKING:
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.host import Host
    from trio_aio._lanes.workers import WorkerLane
    from trio_aio._native import CData

__all__ = (
    *("EXIST_OK", "PARENTS", "UPWARDS", "AccessName", "Attribute", "Call", "ChangeName", "ListNames", "Listed", "NameRequest"),
    *("OpenFile", "OpenName", "ReadLink", "RealPath", "StatName", "StatVFS", "SyncName", "UserName", "new_listing_memory"),
)

AT_SYMLINK_NOFOLLOW, AT_REMOVEDIR, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = 0x100, 0x200, 0x400, 0x1000  # linux/fcntl.h
PATH_MAX = 4096
_new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)


class Call(enum.IntEnum):
    """The calls of `ChangeName`, `Attribute` and `UserName`: names.h says what each does."""

    UNLINK = lib.TAIO_NAME_UNLINK
    MKDIR = lib.TAIO_NAME_MKDIR
    REMOVEDIRS = lib.TAIO_NAME_REMOVEDIRS
    RENAME = lib.TAIO_NAME_RENAME
    RENAMES = lib.TAIO_NAME_RENAMES
    LINK = lib.TAIO_NAME_LINK
    SYMLINK = lib.TAIO_NAME_SYMLINK
    CHMOD = lib.TAIO_NAME_CHMOD
    CHOWN = lib.TAIO_NAME_CHOWN
    UTIME = lib.TAIO_NAME_UTIME
    TRUNCATE = lib.TAIO_NAME_TRUNCATE
    MKNOD = lib.TAIO_NAME_MKNOD
    GETXATTR = lib.TAIO_NAME_GETXATTR
    SETXATTR = lib.TAIO_NAME_SETXATTR
    LISTXATTR = lib.TAIO_NAME_LISTXATTR
    REMOVEXATTR = lib.TAIO_NAME_REMOVEXATTR
    TOUCH = lib.TAIO_NAME_TOUCH
    OWNER = lib.TAIO_NAME_OWNER
    GROUP = lib.TAIO_NAME_GROUP
    HOME = lib.TAIO_NAME_HOME


PARENTS: int = lib.TAIO_PARENTS
EXIST_OK: int = lib.TAIO_EXIST_OK
UPWARDS: int = lib.TAIO_UPWARDS


def address_of(memory: CData) -> int:
    """Return the address of memory that cffi has made."""
    return int(ffi.cast("uintptr_t", memory))


def _address_of_bytes(data: bytes) -> int:
    """Return the address of bytes, which CPython ends with a null byte. They must outlive its use."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer("char[]", data)))


class NameRequest(Request):
    """One call on one or two names. `filename`, `filename2`: what its OSError shows.

    path, path2: as the kernel takes them; None: the call is for the descriptor itself. fields: those of struct taio_name.
    """

    __slots__ = ("filename2", "memory", "path", "path2", "record")

    fault_name: str | None = "change"
    call: int

    def __init__(
        self,
        descriptor: Descriptor,
        path: bytes | None,
        path2: bytes | None = None,
        *,
        memory: CData | None = None,
        capacity: int = 0,
        filename2: object = None,
        **fields: Any,
    ) -> None:
        Request.__init__(self, descriptor)
        self.filename2: object = filename2
        self.memory: CData | None = memory
        self.path: bytes | None = path
        self.path2: bytes | None = path2
        self.record: CData = ffi.new("struct taio_name *")
        record = self.record
        record.call, record.dir, record.dir2, record.fd = self.call, descriptor.fd, AT_FDCWD, -1
        if path is not None:
            record.path = _address_of_bytes(path)
        if path2 is not None:
            record.path2 = _address_of_bytes(path2)
        if memory is not None:
            record.memory, record.capacity = address_of(memory), capacity
        for name, value in fields.items():
            setattr(record, name, value)

    def fill_slot(self, lane: WorkerLane, slot: int, before: int) -> None:
        lane.prepare(slot, before, self.token, lib.TAIO_NAME, -1, extra=address_of(self.record))

    def kernel_error(self) -> OSError:
        name, failed = self.descriptor.name, self.record.failed
        if failed and self.filename2 is None:
            name = _start_of(name, failed)
        elif failed:
            return os_error(self.result, _start_of(self.filename2, failed))
        return os_call_error(self.result, name, self.filename2)

    def answer(self) -> bytes:
        """Return the bytes that the call has written to its memory."""
        assert self.memory is not None
        return ffi.unpack(self.memory, self.result) if self.result > 0 else b""

    def _own_fd(self, engine: Host) -> None:
        """Let the descriptor own the fd that the call has left open, if any, until a task takes it over."""
        if self.record.fd >= 0:
            self.descriptor.own(self.record.fd)
            if engine.orphaned:
                self.descriptor.close_unclaimed()
        else:
            self.descriptor.unclaimed = False


def _start_of(name: Any, length: int) -> object:
    """Return the first bytes of a path, as the type that the caller passed."""
    plain = os.fspath(name)
    start = os.fsencode(plain)[:length]
    return start if isinstance(plain, bytes) else os.fsdecode(start)


class ChangeName(NameRequest):
    """A call that changes names or their attributes: `call` says which."""

    __slots__ = ("call",)

    def __init__(self, call: int, descriptor: Descriptor, path: bytes | None, path2: bytes | None = None, **fields: Any) -> None:
        self.call: int = call
        NameRequest.__init__(self, descriptor, path, path2, **fields)

    def release_memory(self, engine: Host) -> None:
        self.memory = None


class StatName(NameRequest):
    """statx(2) of a path; of a descriptor with an empty path."""

    __slots__ = ()

    fault_name = "stat"
    call = lib.TAIO_NAME_STAT

    def status(self) -> os.stat_result:
        """Return what ``os.stat`` would return."""
        return status_of(ffi.addressof(self.record, "stat"))


class AccessName(NameRequest):
    """faccessat2(2)."""

    __slots__ = ()

    fault_name = "stat"
    call = lib.TAIO_NAME_ACCESS


class ReadLink(NameRequest):
    """readlinkat(2)."""

    __slots__ = ()

    fault_name = "stat"
    call = lib.TAIO_NAME_READLINK

    def __init__(self, descriptor: Descriptor, path: bytes | None, **fields: Any) -> None:
        NameRequest.__init__(self, descriptor, path, memory=_new_uncleared("char[]", PATH_MAX), capacity=PATH_MAX, **fields)


class RealPath(NameRequest):
    """The path without links, as ``os.path.realpath`` finds it. An error names the path that failed."""

    __slots__ = ()

    fault_name: str | None = "stat"
    call: int = lib.TAIO_NAME_REALPATH
    _room = 1 << 16

    def __init__(self, descriptor: Descriptor, path: bytes, *, strict: bool) -> None:
        flags = lib.TAIO_STRICT if strict else 0
        NameRequest.__init__(self, descriptor, path, memory=_new_uncleared("char[]", self._room), capacity=self._room, flags=flags)

    def kernel_error(self) -> OSError:
        assert self.memory is not None
        path = ffi.string(self.memory)
        as_bytes = isinstance(os.fspath(self.descriptor.name), bytes)  # type: ignore[call-overload]
        return os_error(self.result, path if as_bytes else os.fsdecode(path))


class UserName(NameRequest):
    """The user database: the owner or the group of a file, or the home of a user."""

    __slots__ = ("call",)

    fault_name = "stat"

    def __init__(self, call: int, descriptor: Descriptor, path: bytes | None, *, flags: int = 0) -> None:
        self.call: int = call
        NameRequest.__init__(self, descriptor, path, memory=_new_uncleared("char[]", PATH_MAX), capacity=PATH_MAX, flags=flags)


class StatVFS(NameRequest):
    """fstatvfs(3)."""

    __slots__ = ()

    fault_name = "stat"
    call = lib.TAIO_NAME_STATVFS

    def __init__(self, descriptor: Descriptor, path: bytes | None) -> None:
        NameRequest.__init__(self, descriptor, path, memory=ffi.new("uint64_t[11]"), capacity=88)

    def status(self) -> os.statvfs_result:
        """Return what ``os.statvfs`` would return."""
        assert self.memory is not None
        return os.statvfs_result(ffi.unpack(self.memory, 11))


class Attribute(NameRequest):
    """Read extended attributes: the value of one, or the names of all."""

    __slots__ = ("call",)

    fault_name = "stat"

    def __init__(
        self, call: int, descriptor: Descriptor, path: bytes | None, attribute: bytes | None, *, capacity: int, flags: int
    ) -> None:
        self.call: int = call
        NameRequest.__init__(self, descriptor, path, attribute, memory=_new_uncleared("char[]", capacity), capacity=capacity, flags=flags)


class OpenName(NameRequest):
    """openat(2). The descriptor belongs to its `Descriptor` before any task can know of it."""

    __slots__ = ()

    fault_name = "open"
    call = lib.TAIO_NAME_OPEN

    def settle(self, engine: Host) -> None:
        self._own_fd(engine)


class OpenFile(OpenName):
    """Open a regular file or a block device, and describe it. EOPNOTSUPP for all others: then `kind` is their st_mode."""

    __slots__ = ("description",)

    def __init__(self, descriptor: Descriptor, path: bytes, **fields: Any) -> None:
        self.description: DescriptionRecord = DescriptionRecord()
        NameRequest.__init__(self, descriptor, path, memory=self.description.value, **fields)

    @property
    def kind(self) -> int:
        """st_mode of what was found; 0: not known."""
        return self.record.stat.mode  # type: ignore[no-any-return]

    def settle(self, engine: Host) -> None:
        if self.result >= 0:
            self.descriptor.load(self.description.value)
        OpenName.settle(self, engine)


class SyncName(NameRequest):
    """fsync(2) of a directory."""

    __slots__ = ()

    fault_name = "sync"
    call = lib.TAIO_NAME_SYNC


class Listed:
    """What one request has read of a directory. All sequences have the same length."""

    __slots__ = ("_block", "inodes", "names", "stats", "targets", "types")

    def __init__(self, memory: CData, stats: CData | None, count: int) -> None:
        self._block: bytes = bytes(ffi.buffer(memory.names, memory.used))
        self.names: list[bytes] = self._block.split(b"\0")[:count]
        self.types: bytes = bytes(ffi.buffer(memory.types, count))
        self.targets: bytes = bytes(ffi.buffer(memory.target, count))
        self.inodes: list[int] = ffi.unpack(memory.inodes, count)
        self.stats: list[os.stat_result | None] | None = None
        if stats is not None:
            found = (ffi.addressof(stats, i) for i in range(count))
            self.stats = [status_of(each) if each.mode else None for each in found]

    def texts(self) -> list[str]:
        """Return the names as str."""
        return os.fsdecode(self._block).split("\0")[: len(self.names)]


def new_listing_memory() -> CData:
    """Return memory for `ListNames`. Another request may use it when the last one has ended."""
    memory = _new_uncleared("struct taio_list *")
    memory.used = 0
    return memory


class ListNames(NameRequest):
    """A part of a directory: getdents64(2). The first request opens it; the last one closes it.

    descriptor: what a relative path starts from. opened: owns the open directory between two requests. targets: also look up what links
    point to. stats: also describe each entry.
    """

    __slots__ = ("kept", "left", "opened", "stats")

    fault_name = "list"
    call = lib.TAIO_NAME_LIST

    def __init__(
        self,
        descriptor: Descriptor,
        path: bytes | None,
        opened: Descriptor,
        memory: CData,
        *,
        targets: bool = False,
        stats: bool = False,
        no_links: bool = False,
        **fields: Any,
    ) -> None:
        NameRequest.__init__(
            self, descriptor, path, memory=memory, no_links=int(no_links), flags=os.O_NOFOLLOW if no_links else 0, **fields
        )
        self.opened: Descriptor = opened
        self.kept: object = None  # what must stay open until it has ended
        self.left: bool = False  # its listing has ended: what is open is closed as soon as the request has ended
        self.record.fd = opened.fd if opened.unclaimed else -1
        memory.targets = int(targets)
        self.stats: CData | None = _new_uncleared("struct taio_stat[]", lib.TAIO_LIST_ENTRIES) if stats else None
        memory.stats = 0 if self.stats is None else address_of(self.stats)

    def settle(self, engine: Host) -> None:
        if self.record.fd < 0:
            self.opened.unclaimed = False
            return
        self.opened.own(self.record.fd)
        if engine.orphaned:
            self.opened.close_unclaimed()

    def release_memory(self, engine: Host) -> None:
        self.kept = None
        if self.left and self.opened.take_unclaimed():
            engine.drops.add(self.opened, Close(self.opened))

    def listed(self) -> Listed:
        """Return what it has read. Its memory may be used again then."""
        assert self.memory is not None
        return Listed(self.memory, self.stats, self.result)
