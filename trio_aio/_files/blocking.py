"""`BlockingFile`: a synchronous file on the open file of an `AsyncFile`, for code that runs in a thread.

Libraries such as ``zipfile``, ``csv`` or PIL want a file whose calls block. They can be called in a thread, with this. It makes its own
system calls, pread(2) and pwrite(2), at a position of its own. So it moves no other cursor, and needs no event loop.

The descriptor must stay open during a call. A call holds the lock of its object, and a close of the `AsyncFile` first takes that lock: then
it marks the object as ended, and later calls raise ValueError.

What the `AsyncFile` has read ahead belongs to the event loop's thread. A write here leaves a mark at the `SharedFile`, and wakes the event
loop: the next call of any `AsyncFile` of the file, or the reaper, drops what was read ahead.

O_DIRECT takes whole blocks and aligned memory. So the bytes of a direct file pass through a buffer, and writes of parts of blocks go
through the page cache, as those of the `AsyncFile` do.
"""

from __future__ import annotations

import errno
import io
import operator
import os
import stat
import threading
from typing import TYPE_CHECKING, Any

from trio_aio._arguments import checked_integer
from trio_aio._backends import current_backend
from trio_aio._errors import os_error, shown
from trio_aio._memory.exports import bytes_of, private_memory

if TYPE_CHECKING:
    import mmap

    from _typeshed import ReadableBuffer, WriteableBuffer

    from trio_aio._engine.descriptor import Descriptor

__all__ = ("BlockingFile", "end_views")

# Bytes of a direct file that one system call moves.
_PART = 1 << 20


class BlockingFile(io.RawIOBase):
    """A synchronous file with a cursor of its own, made by `AsyncFile.blocking`. For use in a thread.

    ``io.RawIOBase``: wrap it in ``io.BufferedReader`` or ``io.TextIOWrapper`` for lines. `write` writes everything. Threads that use one
    object take turns. ValueError once it or its `AsyncFile` is closed; RuntimeError on the event loop's thread, which it would block, and
    in a child of fork.
    """

    def __init__(
        self,
        owner: Any,
        mode: str,
        position: int,
        *,
        allow_loop: bool,
    ) -> None:
        # Keeps the file open: a file that is dropped is closed.
        self._owner: Any = owner
        self._core: Any = owner._core
        self._engine: Any = owner._engine
        self._descriptor: Descriptor = owner._descriptor
        self._mode: str = mode
        self._position: int = position
        self._readable: bool = owner._readable
        self._writable: bool = owner._writable
        self._allow_loop: bool = allow_loop
        # Held during each call, and by the close of the `AsyncFile`.
        self.lock: threading.Lock = threading.Lock()
        # Whether the `AsyncFile` was closed. Set under the lock.
        self.ended: bool = False
        self._buffer: mmap.mmap | None = None

    # ---- what it is

    @property
    def name(self) -> Any:
        """The name of the `AsyncFile`."""
        return self._descriptor.name

    @property
    def mode(self) -> str:
        """The mode of the `AsyncFile`."""
        return self._mode

    def fileno(self) -> int:
        """Return the descriptor. Its own position, the kernel's, is not that of this object."""
        self._check_open()
        return self._descriptor.fd

    def readable(self) -> bool:
        """Return whether the `AsyncFile` was opened for reading."""
        self._check_open()
        return self._readable

    def writable(self) -> bool:
        """Return whether the `AsyncFile` was opened for writing."""
        self._check_open()
        return self._writable

    def seekable(self) -> bool:
        """Return True."""
        self._check_open()
        return True

    def __repr__(self) -> str:
        state = " closed" if self.closed or self.ended else ""
        return f"<trio_aio.BlockingFile name={self.name!r} mode={self._mode!r}{state}>"

    def _check_open(self) -> None:
        if self.closed or self.ended:
            raise ValueError("I/O operation on closed file")
        self._check_process()

    def _check_process(self) -> None:
        if self._core.state == "forked":
            raise RuntimeError("this file belongs to the parent process: after a fork, open it again")

    def _call_lock(self) -> threading.Lock:
        """Return the lock that each call holds. RuntimeError in a child of fork: there, no thread would release it."""
        self._check_process()
        return self.lock

    def _check(self, *, writing: bool = False) -> None:
        """Check that a call that may sleep may be made here. The caller holds the lock."""
        self._check_open()
        self._check_thread()
        if not (self._writable if writing else self._readable):
            raise io.UnsupportedOperation(
                f"{shown(self.name)!r} is not open for {'writing' if writing else 'reading'}: its mode is {self._mode!r}"
            )
        if writing and self._descriptor.shared_file is not None:
            # Before the first byte: a sync of the event loop's may fail at any moment.
            self._descriptor.shared_file.durability.written_elsewhere = True

    def _check_thread(self) -> None:
        if not self._allow_loop and self._core.thread == threading.get_ident():
            raise RuntimeError(
                "this call may block, and the event loop runs in this thread: call it in another, as in "
                "`await trio.to_thread.run_sync(...)` or `await anyio.to_thread.run_sync(...)`, or use blocking(allow_loop=True)"
            )

    # ---- reading

    def read(self, size: int | None = -1, /) -> bytes | None:
        """Return `size` bytes, fewer only at the end of the file; None, or a negative number: all up to the end."""
        return super().read(-1 if size is None else size)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill a writable buffer, and return the number of bytes: fewer than it holds only at the end of the file. preadv2(2)."""
        with self._call_lock(), bytes_of(buffer, writable=True) as view:
            self._check()
            n = self._read_at(view, self._position)
            self._position += n
            return n

    def readall(self) -> bytes:
        """Return the bytes up to the end of the file."""
        with self._call_lock():
            self._check()
            parts: list[bytes] = []
            while True:
                left = self._size() - self._position
                part = bytearray(left + 1 if left > 0 else max(io.DEFAULT_BUFFER_SIZE, sum(map(len, parts))))
                with memoryview(part) as view:
                    n = self._read_at(view, self._position)
                    parts.append(bytes(view[:n]))
                self._position += n
                if n < len(part):
                    return b"".join(parts)

    def _read_at(self, view: memoryview, offset: int) -> int:
        """Fill `view` from `offset`, and return the number of bytes."""
        move = self._read_direct if self._descriptor.direct else self._read_buffered
        done = 0
        while done < len(view):
            n = move(view[done:], offset + done)
            done += n
            if not n:
                break
        return done

    def _read_buffered(self, view: memoryview, offset: int) -> int:
        return os.preadv(self._descriptor.fd, [view], offset)

    def _read_direct(self, view: memoryview, offset: int) -> int:
        """Read the blocks that some bytes lie in."""
        unit = max(self._descriptor.alignment.offset, self._descriptor.read_unit)
        start = offset // unit * unit
        size = min(-(-(offset + len(view) - start) // unit) * unit, _PART)
        with memoryview(self._aligned()) as buffer, buffer[:size] as part:
            n = min(os.preadv(self._descriptor.fd, [part], start) - (offset - start), len(view))
            if n <= 0:
                return 0
            view[:n] = part[offset - start : offset - start + n]
            return n

    def _aligned(self) -> mmap.mmap:
        if self._buffer is None:
            self._buffer = private_memory(_PART)
        return self._buffer

    # ---- writing

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of `data`, and return its length in bytes. pwrite(2); OSError: ``characters_written`` of them were written."""
        with self._call_lock(), bytes_of(data, writable=False) as view:
            self._check(writing=True)
            done = 0
            try:
                while done < len(view):
                    done += self._write_at(view[done:], self._position + done)
            except OSError as error:
                error.characters_written = done  # type: ignore[attr-defined]
                raise
            finally:
                if done and self._descriptor.append:
                    self._position = self._size()
                else:
                    self._position += done
                self._note_change()
            return done

    def _write_at(self, view: memoryview, offset: int) -> int:
        descriptor = self._descriptor
        unit = descriptor.alignment.offset
        if not descriptor.o_direct:
            return os.pwrite(descriptor.fd, view, offset)
        size = min(len(view), _PART) // unit * unit
        if offset % unit or not size or descriptor.append:
            # Up to the next block, so that what follows is in whole blocks.
            part = view if descriptor.append else view[: unit - offset % unit]
            return os.pwrite(descriptor.buffered_fd, part, offset)
        with memoryview(self._aligned()) as buffer, buffer[:size] as part:
            part[:] = view[:size]
            return os.pwrite(descriptor.fd, part, offset)

    def _note_change(self) -> None:
        shared = self._descriptor.shared_file
        assert shared is not None
        shared.changed_in_thread = True
        self._engine.drops.note_change(shared)

    def truncate(self, size: int | None = None, /) -> int:
        """Set the size of the file in bytes, by default to the cursor, and return it. ftruncate(2)."""
        with self._call_lock():
            self._check(writing=True)
            size = self._position if size is None else checked_integer(size, "size")
            os.ftruncate(self._descriptor.fd, size)
            self._descriptor.size = min(self._descriptor.size, size)
            self._note_change()
            return size

    # ---- the cursor

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the cursor, and return its position in bytes. whence: ``os.SEEK_SET``, ``SEEK_CUR`` or ``SEEK_END`` (fstat(2))."""
        offset, whence = checked_integer(offset, "offset"), operator.index(whence)
        with self._call_lock():
            self._check_open()
            if whence == os.SEEK_SET:
                position = offset
            elif whence == os.SEEK_CUR:
                position = self._position + offset
            elif whence == os.SEEK_END:
                self._check_thread()
                position = self._size() + offset
            else:
                raise ValueError(f"whence must be os.SEEK_SET, SEEK_CUR or SEEK_END, not {whence}")
            if position < 0:
                raise os_error(errno.EINVAL, self.name)
            self._position = checked_integer(position, "position")
            return position

    def _size(self) -> int:
        status = os.fstat(self._descriptor.fd)
        if not stat.S_ISBLK(status.st_mode):
            return status.st_size
        # fstat(2) does not know the capacity of a block device, and lseek(2) would move the position that others use.
        fd = os.open(f"/proc/self/fd/{self._descriptor.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.lseek(fd, 0, os.SEEK_END)
        finally:
            os.close(fd)

    def tell(self) -> int:
        """Return the position of the cursor in bytes."""
        self._check_open()
        return self._position


async def end_views(file: Any) -> None:
    """Let the later calls of a file's blocking files raise ValueError, and wait for those in progress. Never raises Cancelled.

    No task runs between the end of the last one and the return of this.
    """
    while True:
        view = next((view for known in file._views if (view := known()) is not None and not view.ended), None)
        if view is None:
            return
        if not view.lock.acquire(blocking=False):
            backend = current_backend()
            with backend.shielded():
                await backend.run_in_thread(view.lock.acquire)
        view.ended = True
        view.lock.release()
