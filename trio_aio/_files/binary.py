"""`AsyncFile`: a binary file with a cursor.

The cursor is ours, not the kernel's: positional calls of other tasks never move it, and calls that use it take turns. Only a file opened
for appending lets the kernel choose the place.

Lines, and all cursor reads of a direct file, come from a read-ahead buffer (`Cursor`). Other reads go to the page cache.
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

_LARGEST_READ = 1 << 30  # bytes: a single request of readall


class AsyncFile(PositionalFile):
    """A binary file with a cursor, made by `open_aio`.

    What `PositionalFile` says of checkpoints, cancellation and errors holds here too. Cursor calls of several tasks take turns, in order.

    ``async for line in file`` yields lines as `readline` does, and is a checkpoint only where it reads on, once in 8 to 64 KiB: a line
    that is in memory costs no system call, and no other task runs. It may be left at any line; any call continues behind that line.
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
        self._lines: Iterator[bytes] = self._cursor.split()  # what `async for` gives next

    # ---- reading

    async def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes at the cursor, fewer only at the end of the file; all that is left for -1 or None."""
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
        """Do what `read` does; the lock is ours."""
        cursor = self._cursor
        position = cursor.settle()
        if self._descriptor.direct:
            data = await self._read_direct(checked_size(size), position)
        else:
            data = await self.pread(size, position)
        cursor.move(position + len(data))
        return data

    async def _read_direct(self, size: int, position: int) -> bytes:
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
        return data + (await self._piece(position, missing))[:missing]

    async def read1(self, size: int = -1) -> bytes:
        """Read up to `size` bytes at the cursor (-1: a handy number) with one system call at most; b"" only at the end of the file."""
        self._check_readable()
        size = checked_integer(size, "size")
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            return await self._read(self._size_of_one(LARGEST if size < 0 else size))
        finally:
            self._lock.release()

    def _size_of_one(self, size: int) -> int:
        """Give how much of `size` bytes one system call should read, none if there are bytes in memory."""
        held = self._cursor.held if self._descriptor.direct else 0
        return min(size, held) if held else size

    async def readall(self) -> bytes:
        """Read from the cursor to the end of the file."""
        self._check_readable()
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            return await self._read_all()
        finally:
            self._lock.release()

    async def _read_all(self) -> bytes:
        """Do what `readall` does; the lock is ours."""
        cursor = self._cursor
        position = cursor.settle()
        start = position
        parts: list[bytes] = []
        # The size is only a hint: the file may have grown meanwhile, and those of /proc say 0.
        expected = self._descriptor.size - position
        while True:
            # A byte more than there should be shows the end in the same call; of a large read that would be a copy.
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
        """Read at the cursor into a writable buffer as much as it holds, fewer bytes only at the end of the file; give their number."""
        self._check_readable()
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            return await self._read_into(buffer, one=False)
        finally:
            self._lock.release()

    async def readinto1(self, buffer: WriteableBuffer) -> int:
        """Read at the cursor into a writable buffer with one system call at most; give the number of bytes, 0 at the end."""
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
            size = self._size_of_one(target.length) if one else target.length
            held = cursor.peek(size)
            if len(held) == size or size - len(held) < LARGEST:
                data = await self._read_direct(size, position)
                target.fill(data)
                cursor.move(position + len(data))
                return len(data)
            if held:
                n = len(held) + await self.preadinto(memoryview(buffer).cast("B")[len(held) :], position + len(held))
                target.fill(held)
                cursor.move(position + n)
                return n
        n = await self.preadinto(buffer, position)
        cursor.move(position + n)
        return n

    async def peek(self, size: int = 0) -> bytes:
        """Give bytes at the cursor and leave it where it is: what is in memory, else what one system call gives; `size` is of no effect."""
        self._check_readable()
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            cursor = self._cursor
            if cursor.held:
                self._check_open()
                await self._context._checkpoint()
            if cursor.held:
                return cursor.peek(cursor.held)
            return await self._fill()
        finally:
            self._lock.release()

    async def _fill(self) -> bytes:
        """Read at the cursor, and keep it in memory; the cursor stays. The lock is ours."""
        position = self._cursor.settle()
        data = await self._piece(position)
        self._cursor.move(position)
        return data

    async def _piece(self, position: int, least: int = 0) -> bytes:
        """Read `least` bytes or more at `position`, and keep them in memory."""
        cursor = self._cursor
        version = cursor.version
        data = await self.pread(max(cursor.next_size(position), least), position)
        cursor.keep(position, data, version)
        return data

    async def _chunk(self, size: int) -> bytes:
        """Read up to `size` bytes at the cursor, in any mode from memory if there are any; no checkpoint then. The lock is ours."""
        cursor = self._cursor
        position = cursor.position
        data = cursor.peek(size) or (await self._piece(position, size))[:size]
        cursor.move(position + len(data))
        return data

    # ---- lines

    async def readline(self, size: int | None = -1) -> bytes:
        """Read a line with the b"\\n" at its end, or `size` bytes of it; b"" at the end of the file. The last line may lack the b"\\n"."""
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
        """Do what `readline` does; no checkpoint if the line is in memory. The lock is ours."""
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
        """Read the lines up to the end of the file; with a positive `hint` no more of them once they have more bytes than that."""
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
        """Give the next line, and make `_lines` those behind it that are in memory."""
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
        """Write all of `data` at the cursor, or at the end of a file opened for appending; give its length in bytes.

        OSError: ``characters_written`` says how much was written, and the cursor is behind that.
        """
        self._check_writable()
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            return await self._write(data)
        finally:
            self._lock.release()

    async def _write(self, data: ReadableBuffer) -> int:
        """Do what `write` does; the lock is ours."""
        self._check_open()
        cursor = self._cursor
        position = cursor.settle()
        if not memoryview(data).nbytes:  # nothing moves then, not even at the end of a file opened for appending
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
        """Write bytes-like objects one behind the other, as `write`; many in one request.

        Cancelled: nothing was written. Once the first MiB is written, cancellation has to wait for the end; but asyncio's native
        cancellation stops it between two MiB, with the cursor behind the last that it knows of.
        """
        self._check_writable()
        if isinstance(lines, str):
            raise TypeError("a bytes-like object is required, not 'str'")
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            pieces = gathered(lines)
            await self._write(next(pieces, b""))
            with self._backend.shielded():
                for piece in pieces:
                    await self._write(piece)
        finally:
            self._lock.release()

    # ---- the cursor

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the cursor and give where it is. `whence`: ``os.SEEK_SET``, ``SEEK_CUR``, ``SEEK_END``, ``SEEK_DATA``, ``SEEK_HOLE``."""
        self._check_open()
        offset, whence = checked_integer(offset, "offset"), operator.index(whence)
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE):
            raise ValueError(f"invalid whence: {whence}")
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            return await self._seek(offset, whence)
        finally:
            self._lock.release()

    async def _seek(self, offset: int, whence: int) -> int:
        """Do what `seek` does; the lock is ours."""
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
        """Give where the cursor is."""
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
        """Make the file `size` bytes long (default: up to the cursor, which does not move), and give that. ftruncate(2)."""
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
        """Do nothing but check: writes are with the kernel when they return. For the disk there is `fsync`."""
        self._check_open()
        await self._context._checkpoint()

    def _mark_closed(self) -> None:
        super()._mark_closed()
        self._cursor.forget()
