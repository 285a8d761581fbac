"""`AsyncFile`: a binary file with a cursor, made by `open_aio`.

The kernel's own file position is of no use here. io_submit(2) takes an offset with each request, and several tasks may use one fd at once.
So the cursor is ours. Positional calls (`PositionalFile`) never move it, and calls that use it hold a lock (`FairLock`), in order. Only a
file opened for appending lets the kernel choose the offset of a write.

Lines come from a read-ahead buffer (`Cursor`), because a system call for each line would cost more than the line. Cursor reads of a direct
file come from it too: O_DIRECT has no page cache, and reads whole blocks only. Other reads go straight to the page cache.

A public method takes the lock; the private one of the same name does the work and expects the lock to be held. `AsyncTextFile` calls the
private ones, under the same lock.
"""

from __future__ import annotations

import errno
import operator
import os
from typing import TYPE_CHECKING

from trio_aio._arguments import checked_integer, checked_size
from trio_aio._context.copying import joined
from trio_aio._context.lock import FairLock
from trio_aio._errors import os_error
from trio_aio._files.cursor import LARGEST, Cursor
from trio_aio._files.lines import gathered, split_lines
from trio_aio._files.positional import PositionalFile
from trio_aio._lanes.inline import INLINE_LIMIT
from trio_aio._memory.exports import export_buffer
from trio_aio._requests.metadata import Truncate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from _typeshed import ReadableBuffer, WriteableBuffer
    from typing_extensions import Self

    from trio_aio._backends import Backend
    from trio_aio._context.context import AIOContext
    from trio_aio._engine.descriptor import Descriptor

__all__ = ("AsyncFile",)

# Bytes in one request of readall. The kernel moves less than 2 GiB in one call.
_LARGEST_READ = 1 << 30


class AsyncFile(PositionalFile):
    """A binary file with a cursor, made by `open_aio`.

    Checkpoints, cancellation and errors are those of `PositionalFile`. Tasks that use the cursor at once are served one after the other, in
    the order of their calls. A task that is cancelled while it waits for the others has had no effect.

    ``async for line in file`` yields lines as `readline` returns them. It is a checkpoint only when it reads from the file, once in 8 to
    64 KiB: a line that is in memory costs no system call, and no other task runs. The loop may be left at any line. The next call continues
    after that line.
    """

    def __init__(
        self,
        context: AIOContext,
        descriptor: Descriptor,
        mode: str,
        position: int,
        *,
        readable: bool,
        writable: bool,
        abandon_on_cancel: bool,
    ) -> None:
        super().__init__(context, descriptor, mode, readable=readable, writable=writable, abandon_on_cancel=abandon_on_cancel)
        backend = context._backend
        assert backend is not None
        self._backend: Backend = backend
        self._lock: FairLock = FairLock(backend, context._check)
        assert descriptor.shared_file is not None
        self._cursor: Cursor = Cursor(position, descriptor.shared_file)
        # The lines that `async for` yields next, without a system call.
        self._lines: Iterator[bytes] = self._cursor.split()

    # ---- reading

    async def read(self, size: int | None = -1) -> bytes:
        """Return `size` bytes from the cursor, fewer only at the end of the file. preadv2(2).

        size: bytes, 0 to 2**63 - 1; -1 or None: everything up to the end of the file. The cursor moves by the number of bytes returned.
        Cancelled before the read has started: no effect. Later: the result is returned, and Cancelled is raised at the next checkpoint.
        OSError: the cursor has not moved. UnsupportedOperation if not open for reading.
        """
        if size is None or size == -1:
            return await self.readall()
        self._check_readable()
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            return await self._read(size)
        finally:
            self._lock.release()

    async def _read(self, size: int) -> bytes:
        """Do what `read` does. The caller holds the lock."""
        cursor = self._cursor
        position = cursor.settle()
        if self._descriptor.direct:
            data = await self._read_direct(checked_size(size), position)
        else:
            data = await self.pread(size, position)
        cursor.move(position + len(data))
        return data

    async def _read_direct(self, size: int, position: int) -> bytes:
        """Return `size` bytes from `position`, the cursor: from memory first, then from the file. The cursor does not move."""
        cursor = self._cursor
        data = cursor.peek(size)
        missing = size - len(data)
        if not missing:
            self._check_open()
            await self._context._checkpoint()
            return data
        position += len(data)
        if missing >= LARGEST:
            more = await self.pread(missing, position)
            return await joined(self._backend, (data, more)) if data else more
        return data + (await self._read_and_keep(position, missing))[:missing]

    async def read1(self, size: int = -1) -> bytes:
        """Return up to `size` bytes from the cursor, with at most one system call; b"" only at the end of the file. preadv2(2).

        size: bytes; negative: 64 KiB at most. Otherwise as `read`.
        """
        self._check_readable()
        size = checked_integer(size, "size")
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            return await self._read(self._size_for_one_call(LARGEST if size < 0 else size))
        finally:
            self._lock.release()

    def _size_for_one_call(self, size: int) -> int:
        """Return how many of `size` bytes to read with at most one system call: those in memory, or all if there are none."""
        available = self._cursor.available if self._descriptor.direct else 0
        return min(size, available) if available else size

    async def readall(self) -> bytes:
        """Return the bytes from the cursor to the end of the file. preadv2(2).

        Reads of up to 1 GiB each, until one is short. Cancelled: the cursor has not moved. Otherwise as `read`.
        """
        self._check_readable()
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            return await self._read_all()
        finally:
            self._lock.release()

    async def _read_all(self) -> bytes:
        """Do what `readall` does. The caller holds the lock."""
        cursor = self._cursor
        position = cursor.settle()
        start = position
        parts: list[bytes] = []
        # The size is only a hint: the file may have grown since it was opened, and files in /proc report 0.
        expected = self._descriptor.size - position
        while True:
            # One byte more than expected lets a small read find the end of the file in the same call. For a large read the surplus byte
            # would cost a copy of everything, so it makes a second call instead.
            want = expected + 1 if 0 <= expected < INLINE_LIMIT else expected if expected > 0 else max(4096, position - start)
            want = min(want, _LARGEST_READ)
            part = await self.pread(want, position)
            position += len(part)
            expected -= len(part)
            if part:
                parts.append(part)
            if len(part) < want:
                break
        cursor.move(position)
        return await joined(self._backend, parts)

    async def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill a writable buffer from the cursor, and return the number of bytes: fewer than it holds only at the end of the file.

        buffer: bytes-like, contiguous, writable. Do not use it until the call has ended. Otherwise as `read`.
        """
        self._check_readable()
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            return await self._read_into(buffer, one=False)
        finally:
            self._lock.release()

    async def readinto1(self, buffer: WriteableBuffer) -> int:
        """Fill a writable buffer from the cursor with at most one system call. Return the number of bytes, 0 at the end of the file.

        Otherwise as `readinto`.
        """
        self._check_readable()
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            return await self._read_into(buffer, one=True)
        finally:
            self._lock.release()

    async def _read_into(self, buffer: WriteableBuffer, *, one: bool) -> int:
        cursor = self._cursor
        position = cursor.settle()
        if self._descriptor.direct:
            target = export_buffer(buffer, writable=True)
            size = self._size_for_one_call(target.length) if one else target.length
            available = cursor.peek(size)
            if len(available) == size or size - len(available) < LARGEST:
                data = await self._read_direct(size, position)
                target.fill(data)
                cursor.move(position + len(data))
                return len(data)
            if available:
                n = len(available) + await self.preadinto(memoryview(buffer).cast("B")[len(available) :], position + len(available))
                target.fill(available)
                cursor.move(position + n)
                return n
        n = await self.preadinto(buffer, position)
        cursor.move(position + n)
        return n

    async def peek(self, size: int = 0) -> bytes:
        """Return bytes from the cursor without moving it: those in memory, otherwise those of one system call. b"" at the end of the file.

        size: has no effect, as in `io.BufferedReader`. Otherwise as `read`.
        """
        self._check_readable()
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            cursor = self._cursor
            if cursor.available:
                self._check_open()
                await self._context._checkpoint()
            if cursor.available:
                return cursor.peek(cursor.available)
            return await self._fill()
        finally:
            self._lock.release()

    async def _fill(self) -> bytes:
        """Read at the cursor, and keep the bytes in memory. The cursor does not move. The caller holds the lock."""
        position = self._cursor.settle()
        data = await self._read_and_keep(position)
        self._cursor.move(position)
        return data

    async def _read_and_keep(self, position: int, least: int = 0) -> bytes:
        """Read `least` bytes or more at `position`, fewer only at the end of the file, and keep them in memory."""
        cursor = self._cursor
        version = cursor.version
        data = await self.pread(max(cursor.next_size(position), least), position)
        cursor.keep(position, data, version)
        return data

    async def _read_available(self, size: int) -> bytes:
        """Return up to `size` bytes from the cursor: those in memory, without a checkpoint, if there are any. The caller holds the lock."""
        cursor = self._cursor
        position = cursor.position
        data = cursor.peek(size) or (await self._read_and_keep(position, size))[:size]
        cursor.move(position + len(data))
        return data

    # ---- lines

    async def readline(self, size: int | None = -1) -> bytes:
        """Return a line with its b"\\n", at most `size` bytes of it; b"" at the end of the file. Only the last line may lack the b"\\n".

        size: bytes; negative or None: the whole line. Otherwise as `read`.
        """
        self._check_readable()
        limit = -1 if size is None else checked_integer(size, "size")
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            if self._cursor.line(limit)[1]:
                self._check_open()
                await self._context._checkpoint()
            return await self._line(limit)
        finally:
            self._lock.release()

    async def _line(self, limit: int) -> bytes:
        """Do what `readline` does, without a checkpoint if the line is in memory. The caller holds the lock."""
        cursor = self._cursor
        position = cursor.position
        line, whole = cursor.line(limit)
        while not whole:
            searched = len(line)
            version = cursor.version
            more = await self.pread(max(cursor.next_size(position + searched), searched), position + searched)
            if not more:
                break
            data = line + more
            cursor.keep(position, data, version)
            end = data.find(b"\n", searched) + 1
            line, whole = (data[:end], True) if end else (data, False)
            if 0 <= limit <= len(line):
                line, whole = line[:limit], True
        cursor.move(position + len(line))
        return line

    async def readlines(self, hint: int | None = -1) -> list[bytes]:
        """Return the lines up to the end of the file, or until they have more than `hint` bytes.

        hint: bytes; 0, negative or None: no limit. Cancelled or OSError: the cursor has not moved. Otherwise as `read`.
        """
        self._check_readable()
        limit = 0 if hint is None else checked_integer(hint, "hint")
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            if limit <= 0:
                data = await self._read_all()
                return split_lines(data)
            position = self._cursor.position
            lines: list[bytes] = []
            total = 0
            try:
                while total <= limit and (line := await self._line(-1)):
                    lines.append(line)
                    total += len(line)
                await self._context._checkpoint()
            except BaseException:
                self._cursor.move(position)
                raise
            return lines
        finally:
            self._lock.release()

    def __aiter__(self) -> Self:
        self._check_open()
        return self

    async def __anext__(self) -> bytes:
        for line in self._lines:
            return line
        line = await self._next_lines()
        if not line:
            raise StopAsyncIteration
        return line

    async def _next_lines(self) -> bytes:
        """Return the next line, and let `_lines` be the whole lines after it that are in memory."""
        self._check_readable()
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            self._check_open()
            self._context._check()
            line = await self._line(-1)
            self._lines = self._cursor.split()
            return line
        finally:
            self._lock.release()

    # ---- writing

    async def write(self, data: ReadableBuffer) -> int:
        """Write all of `data` at the cursor, or at the end of a file opened for appending, and return its length in bytes. pwritev2(2).

        data: bytes-like, contiguous. Do not change it until the call has ended. The cursor moves to the end of what was written.
        Cancelled before the write has started: no effect. Later: the result is returned, and Cancelled is raised at the next checkpoint.
        OSError: ``characters_written`` is the number of bytes that were written, and the cursor is after them. UnsupportedOperation if not
        open for writing.
        """
        self._check_writable()
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            return await self._write(data)
        finally:
            self._lock.release()

    async def _write(self, data: ReadableBuffer) -> int:
        """Do what `write` does. The caller holds the lock."""
        self._check_open()
        cursor = self._cursor
        position = cursor.settle()
        # An empty write does not move the cursor, not even to the end of a file opened for appending.
        if not memoryview(data).nbytes:
            await self._context._checkpoint()
            return 0
        try:
            if self._descriptor.append:
                position, n = await self._context._append(self._descriptor, data)
                cursor.move(position)
            else:
                n = await self.pwrite(data, position)
                cursor.move(position + n)
        except OSError as error:
            written = getattr(error, "characters_written", 0)
            if written and self._descriptor.append:
                with self._backend.shielded():
                    cursor.move(await self.size())
            else:
                cursor.move(position + written)
            raise
        return n

    async def writelines(self, lines: Iterable[ReadableBuffer]) -> None:
        """Write bytes-like objects one after the other, many in one request. Otherwise as `write`.

        Cancelled before the first MiB has been written: no effect. Later: all of them are written, and Cancelled is raised at the next
        checkpoint. asyncio's own `Task.cancel` stops it between two MiB instead, with the cursor after the last MiB known to be written.
        """
        self._check_writable()
        if isinstance(lines, str):
            raise TypeError("lines must be an iterable of bytes-like objects, not 'str': encode it first, or open the file in text mode")
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            parts = gathered(lines)
            await self._write(next(parts, b""))
            with self._backend.shielded():
                for part in parts:
                    await self._write(part)
        finally:
            self._lock.release()

    # ---- the cursor

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the cursor, and return its position in bytes.

        offset: bytes from `whence`: ``os.SEEK_SET`` or ``SEEK_CUR`` (no system call), ``SEEK_END`` (fstat(2)), ``SEEK_DATA`` or
        ``SEEK_HOLE`` (lseek(2)). Cancelled: the cursor has not moved. OSError: EINVAL for a position before 0; ENXIO if there is no data or
        hole after `offset`. ValueError for another `whence`.
        """
        self._check_open()
        offset, whence = checked_integer(offset, "offset"), operator.index(whence)
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE):
            raise ValueError(f"whence must be os.SEEK_SET, SEEK_CUR, SEEK_END, SEEK_DATA or SEEK_HOLE, not {whence}")
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            return await self._seek(offset, whence)
        finally:
            self._lock.release()

    async def _seek(self, offset: int, whence: int) -> int:
        """Do what `seek` does. The caller holds the lock."""
        self._check_open()
        cursor = self._cursor
        if whence in (os.SEEK_SET, os.SEEK_CUR):
            position = checked_integer(offset if whence == os.SEEK_SET else cursor.position + offset, "position")
            if position < 0:
                raise os_error(errno.EINVAL, self.name)
            await self._context._checkpoint()
        elif whence == os.SEEK_END:
            position = await self.size() + offset
            if position < 0:
                raise os_error(errno.EINVAL, self.name)
        else:
            position = await self._lseek(offset, whence)
        cursor.move(position)
        return position

    async def tell(self) -> int:
        """Return the position of the cursor in bytes. No system call."""
        self._check_open()
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            self._check_open()
            await self._context._checkpoint()
            return self._cursor.position
        finally:
            self._lock.release()

    async def truncate(self, size: int | None = None) -> int:
        """Set the size of the file, by default to the cursor, and return it. The cursor does not move. ftruncate(2).

        size: bytes. Cancelled before it has started: no effect. OSError: EINVAL for a negative size; UnsupportedOperation if not open for
        writing.
        """
        self._check_writable()
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            size = self._cursor.position if size is None else checked_integer(size, "size")
            if size < 0:
                raise os_error(errno.EINVAL, self.name)
            self._check_open()
            await self._context._submit_and_wait(Truncate(self._descriptor, size))
            return size
        finally:
            self._lock.release()

    async def flush(self) -> None:
        """Check that the file is open. Writes are complete in the kernel when they return; for the disk use `fsync`."""
        self._check_open()
        await self._context._checkpoint()

    def _mark_closed(self) -> None:
        super()._mark_closed()
        self._cursor.forget()
