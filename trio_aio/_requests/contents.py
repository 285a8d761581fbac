"""Requests on the contents of files that are named by path: write, read, copy; and many names in one request.

A copy is made in several requests, with one state (`CopyState`). Between two of them no worker uses it. What was begun is either completed
by the last request, or by `DiscardCopy`, which removes what was made.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from trio_aio._errors import os_error
from trio_aio._native import ffi, lib
from trio_aio._requests.names import NameRequest, OpenFile, address_of

if TYPE_CHECKING:
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.host import Host
    from trio_aio._memory.exports import Export
    from trio_aio._native import CData

__all__ = (
    *("APPEND_TO", "AT_OFFSET", "ATOMIC", "DURABLE", "EXCLUSIVE", "FOLLOW", "PRESERVE", "DiscardCopy", "CopyMetadata", "CopyName"),
    *("CopyState", "ReadMany", "ReadName", "TemporaryName", "UnlinkMany", "WriteName"),
)

APPEND_TO: int = lib.TAIO_APPEND_TO
AT_OFFSET: int = lib.TAIO_AT_OFFSET
ATOMIC: int = lib.TAIO_ATOMIC
DURABLE: int = lib.TAIO_DURABLE
EXCLUSIVE: int = lib.TAIO_EXCLUSIVE
FOLLOW: int = lib.TAIO_FOLLOW
PRESERVE: int = lib.TAIO_PRESERVE


class WriteName(NameRequest):
    """Open a file, write it, and close it; or make it anew and put it in the place of the old one."""

    __slots__ = ("export",)

    fault_name = "write"
    tells_written = True
    call = lib.TAIO_NAME_WRITE

    def __init__(self, descriptor: Descriptor, path: bytes, export: Export, **fields: Any) -> None:
        self.export: Export | None = export
        NameRequest.__init__(self, descriptor, path, memory=export.held, capacity=export.length, **fields)

    def kernel_error(self) -> OSError:
        error = NameRequest.kernel_error(self)
        error.characters_written = self.record.moved  # type: ignore[attr-defined]
        return error

    def settle(self, engine: Host) -> None:
        engine.bytes_written += self.record.moved

    def release_memory(self, engine: Host) -> None:
        self.export = self.memory = None


class ReadName(NameRequest):
    """Open a file, read some of it, and close it."""

    __slots__ = ("export",)

    fault_name = "read"
    call = lib.TAIO_NAME_READ

    def __init__(self, descriptor: Descriptor, path: bytes, export: Export, offset: int, **fields: Any) -> None:
        self.export: Export | None = export
        NameRequest.__init__(self, descriptor, path, memory=export.held, capacity=export.length, number=offset, **fields)

    def settle(self, engine: Host) -> None:
        engine.bytes_read += max(self.result, 0)

    def release_memory(self, engine: Host) -> None:
        self.export = self.memory = None


class TemporaryName(OpenFile):
    """Make a file that has no name, open and describe it."""

    __slots__ = ()

    call = lib.TAIO_NAME_TEMPORARY


class CopyState:
    """A copy between two requests."""

    __slots__ = ("record",)

    def __init__(self) -> None:
        self.record: CData = ffi.new("struct taio_copy *")
        self.record.source = self.record.target.parent = self.record.target.fd = -1

    def discard_now(self) -> None:
        """Give it up in this thread, which may have to wait for the disk: `DiscardCopy` without an event loop."""
        lib.taio_name_run(ffi.new("struct taio_name *", {"call": lib.TAIO_NAME_DISCARD, "memory": address_of(self.record)}))

    @property
    def copied(self) -> int:
        """How many bytes were copied, holes included."""
        return self.record.offset  # type: ignore[no-any-return]

    @property
    def is_open(self) -> bool:
        """Whether the copy is neither complete nor discarded."""
        return bool(self.record.source >= 0 or self.record.target.parent >= 0)

    @property
    def mode(self) -> int:
        """st_mode of the source; 0: not known."""
        return self.record.stat.mode  # type: ignore[no-any-return]


class CopyName(NameRequest):
    """Begin or continue a copy. The result is 1 if there is more to do."""

    __slots__ = ("copy",)

    call = lib.TAIO_NAME_COPY

    def __init__(self, descriptor: Descriptor, path: bytes, path2: bytes, copy: CopyState, *, filename2: object, **fields: Any) -> None:
        self.copy: CopyState = copy
        NameRequest.__init__(self, descriptor, path, path2, memory=copy.record, filename2=filename2, **fields)

    def kernel_error(self) -> OSError:
        if self.result == -errno.EALREADY:
            return os_error(errno.EALREADY, self.descriptor.name, "they are the same file", self.filename2)
        failed = self.record.failed
        if failed == 1:
            return os_error(self.result, self.filename2)
        return os_error(self.result, self.descriptor.name, filename2=self.filename2 if failed > 1 else None)

    def settle(self, engine: Host) -> None:
        if engine.orphaned and self.copy.is_open:
            self.copy.discard_now()  # the loop has ended, and no task will do it


class DiscardCopy(NameRequest):
    """Give up a copy, and remove what was made."""

    __slots__ = ("copy",)

    call = lib.TAIO_NAME_DISCARD

    def __init__(self, descriptor: Descriptor, copy: CopyState) -> None:
        self.copy: CopyState = copy
        NameRequest.__init__(self, descriptor, None, memory=copy.record)


class CopyMetadata(NameRequest):
    """Give a directory the mode, times and attributes of another."""

    __slots__ = ()

    call = lib.TAIO_NAME_METADATA


class ManyNames(NameRequest):
    """Several names, one after the other."""

    __slots__ = ("kept", "names", "results")

    def __init__(self, descriptor: Descriptor, path: bytes | None, names: list[bytes], kept: list[CData], **fields: Any) -> None:
        self.names: list[bytes] = names
        block = ffi.from_buffer("char[]", b"\0".join(names) + b"\0")
        self.results: CData = ffi.new("int64_t[]", len(names))
        many = ffi.new(
            "struct taio_many *", {"names": address_of(block), "count": len(names), "results": address_of(self.results), **fields}
        )
        NameRequest.__init__(self, descriptor, path, memory=many)
        # What the struct points to.
        self.kept: list[CData] = [block, *kept]

    def answers(self) -> list[int]:
        """Return the result of each name that was served."""
        return ffi.unpack(self.results, self.done)  # type: ignore[no-any-return]

    @property
    def done(self) -> int:
        """How many names were served."""
        assert self.memory is not None
        return self.memory.done  # type: ignore[no-any-return]


class UnlinkMany(ManyNames):
    """Remove names in a directory that is found without following a link. directories: for each whether it is a directory."""

    __slots__ = ()

    call = lib.TAIO_NAME_UNLINK_MANY

    def __init__(self, descriptor: Descriptor, path: bytes | None, names: list[bytes], directories: bytes) -> None:
        flags = ffi.from_buffer("uint8_t[]", directories)
        ManyNames.__init__(self, descriptor, path, names, [flags], removing=address_of(flags))


class ReadMany(ManyNames):
    """Read whole files into one memory. `results`: sizes, or -errno; -EFBIG: longer than the memory."""

    __slots__ = ("data",)

    fault_name = "read"
    call = lib.TAIO_NAME_READ_MANY

    def __init__(self, descriptor: Descriptor, names: list[bytes], data: Export) -> None:
        self.data: Export = data
        ManyNames.__init__(self, descriptor, b".", names, [], data=data.address, capacity=data.length)

    def settle(self, engine: Host) -> None:
        engine.bytes_read += max(self.result, 0)

    def files(self) -> list[bytes | int]:
        """Return the contents of each file that was served, or a negative errno."""
        memory, at = ffi.buffer(self.data.held, self.data.length), 0
        return [memory[at : (at := at + size)] if size >= 0 else size for size in self.answers()]
