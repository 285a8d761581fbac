"""`KernelCursor`: the cursor of a descriptor that others may use too. It is the kernel's file position.

How the kernel works. An open file has one position, however many processes share it: a shell passes the same open file to all programs of
``(a; b) > out``, and a child gets its parent's as standard output. read(2) and write(2) start at the position and move it. lseek(2) waits
while another process reads or writes through the same open file.

What we do about it. A call at the cursor starts at the kernel's position, and leaves it behind what it did. One request of a worker does
both (`CursorRead`, `CursorWrite`, `CursorSeek`). Lines of an adopted descriptor are read ahead, as ``open()`` does. The surplus is given
back by `flush`, by `aclose`, and by the next call that is not for a line: if the position is still where the read-ahead has left it, it
returns to the cursor. Once `fileno` was called on a file that was opened by its path, nothing is read ahead any more.

`AsyncFile` makes one for a descriptor that it adopts, and in the first call of `fileno`. The caller of each method holds the file's lock.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from trio_aio._backends import Deferred
from trio_aio._context.copying import COPY_STEP, joined, shortened
from trio_aio._engine.descriptor import describe
from trio_aio._files.cursor import LARGEST
from trio_aio._lanes.inline import INLINE_LIMIT
from trio_aio._memory.exports import export_buffer, hold, new_bytes
from trio_aio._requests.cursor import CursorRead, CursorSeek, CursorWrite, Position
from trio_aio._requests.metadata import Stat

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from trio_aio._backends import Backend
    from trio_aio._context.core import Core
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._files.cursor import Cursor
    from trio_aio._memory.exports import Export

__all__ = ("EVERYTHING", "KernelCursor")

# A size that no file reaches, for `read`.
EVERYTHING = 1 << 63
# Bytes in one request of a read. The kernel moves less than 2 GiB in one call.
_LARGEST_READ = 1 << 30


class KernelCursor:
    """Reads, writes and seeks at the kernel's position.

    cursor: the file's `Cursor`, whose position follows the kernel's, and which has the lines that were read ahead. left: where the kernel's
    position is now, as far as we know, or ANYWHERE if it must be set in any case. keeps_ahead: whether lines may be read ahead. abandon:
    whether a cancelled read is abandoned, and a cancelled question for the size.
    """

    def __init__(self, core: Core, descriptor: Descriptor, cursor: Cursor, left: int, *, keeps_ahead: bool, abandon: bool) -> None:
        assert core.backend is not None
        self._core: Core = core
        self._backend: Backend = core.backend
        self._descriptor: Descriptor = descriptor
        self._cursor: Cursor = cursor
        self._left: int = left
        self._abandon: bool = abandon
        self.keeps_ahead: bool = keeps_ahead

    def surplus(self) -> Position | None:
        """Return what a request needs to give back what was read ahead; None if there is nothing to give back."""
        position = self._cursor.position
        return Position(self._left, position) if position != self._left else None

    def _place(self) -> Position:
        """Return what the next request needs, and forget what is in memory: others may change the file."""
        self._cursor.forget()
        return Position(self._left, self._cursor.position)

    async def _perform(self, request: CursorRead | CursorWrite | CursorSeek) -> int:
        """Submit a request and wait for it. The cursor is then where the kernel's position is; after a failed read it has not moved."""
        position = request.position
        reads = isinstance(request, CursorRead)
        try:
            result = await self._core.submit_and_wait(request, abandon=reads and self._abandon)
        except BaseException:
            if request.abandoned:
                raise
            if position.start >= 0:
                self._left = position.end
                self._cursor.move(position.start if reads else position.end)
            raise
        self._left = position.end
        self._cursor.move(position.end)
        return result

    async def give_back(self) -> None:
        """Give back what was read ahead, also in a cancelled scope. No checkpoint if there is nothing to give back."""
        if self.surplus() is not None and not self._descriptor.order.closing:
            with self._backend.shielded():
                await self.seek(0, os.SEEK_CUR)

    async def rewind(self, position: int, error: BaseException) -> None:
        """Return to where a call started that has failed with `error` after one of its reads."""
        self._cursor.move(position)
        with Deferred(self._backend, error):
            await self.give_back()

    async def seek(self, offset: int, whence: int) -> int:
        """Move the cursor, and return its position. ``seek(0, os.SEEK_CUR)`` returns it, and gives back what was read ahead. lseek(2)."""
        if whence == os.SEEK_END and self._abandon and stat.S_ISREG(self._descriptor.mode):
            # The device may hang, and what has moved the position cannot be abandoned. So ask for the size first.
            question = Stat(self._descriptor)
            await self._core.submit_and_wait(question, abandon=True)
            offset, whence = offset + question.status().st_size, os.SEEK_SET
        return await self._perform(CursorSeek(self._descriptor, self._place(), offset, whence))

    async def read(self, size: int) -> bytes:
        """Return `size` bytes, fewer only at the end of the file. If it fails or is cancelled, the cursor has not moved."""
        cursor = self._cursor
        if not size:
            await self.seek(0, os.SEEK_CUR)
            return b""
        if size <= COPY_STEP:
            return await self._read_once(size)
        parts: list[bytes] = []
        start = cursor.settle()
        is_small = size >= EVERYTHING and self._descriptor.size - start < INLINE_LIMIT
        want = INLINE_LIMIT if is_small else 0
        try:
            while True:
                # Do not ask for more memory than the file needs: its size may be far less than `size`.
                want = want or min(size, await self._bytes_left() or LARGEST)
                part = await self._read_once(want)
                if not parts:
                    start = cursor.position - len(part)
                if part:
                    parts.append(part)
                size -= len(part)
                if len(part) < want or not size:
                    return await joined(self._backend, parts)
                want = 0
        except BaseException as error:
            if parts:
                await self.rewind(start, error)
            raise

    async def _bytes_left(self) -> int:
        """Return how many bytes a regular file has from the cursor on, as far as the kernel knows without asking anyone; 0 for others."""
        position = await self.seek(0, os.SEEK_CUR)
        if not stat.S_ISREG(self._descriptor.mode):
            return 0
        size: int = describe(self._descriptor.fd).value.size
        return max(size - position, 0)

    def _reading(self, export: Export, *, line: bool = False) -> CursorRead:
        return CursorRead(self._descriptor, self._place(), export, line=line, at_offset=self._abandon)

    async def _read_once(self, size: int, *, line: bool = False) -> bytes:
        memory = new_bytes(size, for_worker=True)
        export = hold(memory)
        n = 0
        try:
            while True:
                count = min(size - n, _LARGEST_READ)
                read = await self._perform(self._reading(export.part(n, count), line=line))
                n += read
                if n == size or read < count:
                    break
        except BaseException as error:
            if n:
                await self.rewind(self._cursor.position - n, error)
            raise
        return memory if n == size and isinstance(memory, bytes) else await shortened(self._backend, memoryview(memory)[:n])

    async def read_into(self, buffer: WriteableBuffer) -> int:
        """Fill a buffer, and return the number of bytes."""
        export = export_buffer(buffer, writable=True)
        try:
            if not export.length:
                await self.seek(0, os.SEEK_CUR)
                return 0
            return await self._perform(self._reading(export))
        finally:
            # The frames in a traceback must not hold the caller's memory.
            del export

    async def write(self, data: ReadableBuffer) -> int:
        """Write all of `data`, and return its length. OSError: the cursor is behind what was written."""
        export = export_buffer(data, writable=False)
        try:
            if not export.length:
                await self.seek(0, os.SEEK_CUR)
                return 0
            return await self._perform(CursorWrite(self._descriptor, self._place(), export))
        finally:
            del export

    # ---- reading ahead

    async def fill(self, size: int, *, line: bool) -> bytes:
        """Read up to `size` bytes, and keep them in memory. The cursor is in front of them. line: not beyond the first newline."""
        cursor = self._cursor
        cursor.forget()
        version = cursor.file_version
        data = await self._read_once(size, line=line)
        start = self._left - len(data)
        if version == cursor.file_version:
            cursor.keep(start, data, cursor.version)
        cursor.move(start)
        return data

    async def read_available(self, size: int, *, line: bool) -> bytes:
        """Return up to `size` bytes: those in memory, if there are any. line: not beyond the first newline, unless they are kept anyway."""
        cursor = self._cursor
        data = cursor.peek(size)
        if not data and self.keeps_ahead:
            data = (await self.fill(max(size, cursor.next_size(cursor.position)), line=False))[:size]
        elif not data:
            data = await self.fill(size, line=line)
        cursor.move(cursor.position + len(data))
        return data

    async def line(self, limit: int) -> bytes:
        """Return a line, at most `limit` bytes of it; -1: no limit. If it fails or is cancelled, the cursor has not moved."""
        cursor = self._cursor
        start = cursor.settle()
        line, whole = cursor.line(limit)
        first = len(line)
        cursor.move(start + first)
        try:
            while not whole:
                size = max(cursor.next_size(cursor.position), len(line))
                if limit >= 0 and not self.keeps_ahead:
                    size = min(size, limit - len(line))
                data = await self.fill(size, line=not self.keeps_ahead)
                if len(line) == first and not first:
                    start = cursor.position
                end = data.find(b"\n") + 1 or len(data)
                if limit >= 0:
                    end = min(end, limit - len(line))
                line += data[:end]
                cursor.move(cursor.position + end)
                whole = not data or line.endswith(b"\n") or len(line) == limit
        except BaseException as error:
            if line:
                await self.rewind(start, error)
            raise
        return line
