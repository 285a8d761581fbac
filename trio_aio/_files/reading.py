"""`ReadableFile`: a file with a cursor, and the calls that read at it. `AsyncFile` adds those that write, and those that move it.

The kernel's own file position is of little use while the file is ours alone. io_submit(2) takes an offset with each request, and several
tasks may use one fd at once. So the cursor is a number of ours. Positional calls (`PositionalFile`) never move it, and calls that use it
hold a lock (`FairLock`), in order. Only a descriptor that others may use too has the kernel's position for a cursor (`KernelCursor`).

Lines come from a read-ahead buffer (`Cursor`), because a system call for each line would cost more than the line. Cursor reads of a direct
file come from it too: O_DIRECT has no page cache, and reads whole blocks only. Other reads go straight to the page cache.

A public method takes the lock; the private one of the same name does the work and expects the lock to be held. `AsyncTextFile` calls the
private ones, under the same lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_aio._arguments import LARGEST_OFFSET, checked_integer, checked_size
from trio_aio._context.copying import joined
from trio_aio._context.lock import FairLock
from trio_aio._context.pace import Pace
from trio_aio._files.cursor import LARGEST, Cursor
from trio_aio._files.kernel_cursor import EVERYTHING
from trio_aio._files.lines import split_lines
from trio_aio._files.paced import PacedLines
from trio_aio._files.positional import PositionalFile
from trio_aio._lanes.inline import INLINE_LIMIT
from trio_aio._memory.exports import export_buffer

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from typing_extensions import Self

    from trio_aio._context.core import Core
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._files.blocking import BlockingFile
    from trio_aio._files.kernel_cursor import KernelCursor
    from trio_aio._memory.exports import Export

__all__ = ("ReadableFile",)

# Lines that `readlines` takes from memory before it looks at the time.
_LINES = 256


class ReadableFile(PacedLines[bytes], PositionalFile):
    """A file with a cursor that can be read."""

    def __init__(
        self,
        core: Core,
        descriptor: Descriptor,
        mode: str,
        position: int,
        *,
        readable: bool,
        writable: bool,
        abandon_on_cancel: bool,
    ) -> None:
        PacedLines.__init__(self)
        PositionalFile.__init__(self, core, descriptor, mode, readable=readable, writable=writable, abandon_on_cancel=abandon_on_cancel)
        backend = core.backend
        assert backend is not None
        self._lock: FairLock = FairLock(backend, core.check)
        assert descriptor.shared_file is not None
        self._cursor: Cursor = Cursor(position, descriptor.shared_file)
        # The kernel's position, if others may use the descriptor too.
        self._shared: KernelCursor | None = None

    def _check_open(self) -> None:
        if self._closed:
            super()._check_open()
        if self._cursor.shared_file.changed_in_thread:
            self._cursor.refresh()

    @property
    def wrapped(self) -> BlockingFile:
        """A synchronous file for threads, `blocking`, made at the first access. Its cursor starts at this file's."""
        view = self._wrapped
        if view is None:
            view = self._wrapped = self.blocking(self._cursor.position)
        return view

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
        if self._shared is not None:
            self._check_open()
            return await self._shared.read(checked_size(size))
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
            await self._core.checkpoint()
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
            return await self._read(self._size_for_one_call(min(LARGEST, LARGEST_OFFSET - self._cursor.position) if size < 0 else size))
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
        if self._shared is not None:
            self._check_open()
            return await self._shared.read(EVERYTHING)
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
            want = min(want, LARGEST_OFFSET - position)
            part = await self.pread(want, position)
            position += len(part)
            expected -= len(part)
            if part:
                parts.append(part)
            if len(part) < want or not part:
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
        if self._shared is not None:
            self._check_open()
            return await self._shared.read_into(buffer)
        cursor = self._cursor
        position = cursor.settle()
        target = export_buffer(buffer, writable=True)
        try:
            # Memory that may belong to a mapped file is touched by a worker, so nothing comes from the read-ahead.
            if self._descriptor.direct and not target.mapped:
                size = self._size_for_one_call(target.length) if one else target.length
                available = cursor.peek(size)
                if len(available) == size or size - len(available) < LARGEST:
                    data = await self._read_direct(size, position)
                    target.fill(data)
                    cursor.move(position + len(data))
                    return len(data)
                if available:
                    missing = target.length - len(available)
                    n = len(available) + await self._read_held(target.part(len(available), missing), position + len(available))
                    target.fill(available)
                    cursor.move(position + n)
                    return n
            n = await self._read_held(target, position)
        finally:
            # The frames in a traceback must not hold the caller's memory.
            del target
        cursor.move(position + n)
        return n

    async def _read_held(self, target: Export, position: int) -> int:
        self._check_readable()
        try:
            return await self._core.read_held(self._descriptor, target, position, 0, self._abandon)
        finally:
            del target

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
                await self._core.checkpoint()
            if cursor.available:
                return cursor.peek(cursor.available)
            data = await self._fill()
            if self._shared is not None and not self._shared.keeps_ahead:
                await self._shared.give_back()
            return data
        finally:
            self._lock.release()

    async def _fill(self, *, line: bool = False) -> bytes:
        """Read at the cursor, and keep the bytes in memory. The cursor does not move. The caller holds the lock.

        line: those behind the first newline are not needed.
        """
        shared = self._shared
        if shared is not None:
            self._check_open()
            return await shared.fill(self._cursor.next_size(self._cursor.position), line=line and not shared.keeps_ahead)
        position = self._cursor.settle()
        data = await self._read_and_keep(position)
        self._cursor.move(position)
        return data

    async def _read_and_keep(self, position: int, least: int = 0) -> bytes:
        """Read `least` bytes or more at `position`, fewer only at the end of the file, and keep them in memory."""
        cursor = self._cursor
        version = cursor.version
        data = await self.pread(max(min(cursor.next_size(position), LARGEST_OFFSET - position), least), position)
        cursor.keep(position, data, version)
        return data

    async def _read_available(self, size: int, *, line: bool) -> bytes:
        """Return `size` bytes from the cursor, fewer only at the end of the file. The caller holds the lock.

        Without a checkpoint, if they are in memory.

        line: those behind the first newline are not needed.
        """
        if self._shared is not None:
            self._check_open()
            return await self._shared.read_available(size, line=line)
        cursor = self._cursor
        position = cursor.position
        data = cursor.peek(size)
        if len(data) < size:
            end, missing = position + len(data), size - len(data)
            more = (await self._read_and_keep(end, min(missing, LARGEST_OFFSET - end)))[:missing]
            data = data + more if data else more
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
                await self._core.checkpoint()
            return await self._line(limit)
        finally:
            self._lock.release()

    async def _line(self, limit: int) -> bytes:
        """Do what `readline` does, without a checkpoint if the line is in memory. The caller holds the lock."""
        if self._shared is not None:
            self._check_open()
            return await self._shared.line(limit)
        cursor = self._cursor
        position = cursor.position
        line, whole = cursor.line(limit)
        while not whole:
            searched = len(line)
            version = cursor.version
            size = min(max(cursor.next_size(position + searched), searched), LARGEST_OFFSET - position - searched)
            more = await self.pread(size, position + searched)
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
                return await split_lines(data, Pace(self._backend))
            position = self._cursor.position
            lines: list[bytes] = []
            total = 0
            pace = Pace(self._backend)
            try:
                while total <= limit and (line := await self._line(-1)):
                    lines.append(line)
                    total += len(line)
                    if len(lines) % _LINES == 0:
                        await pace.rest()
                await self._core.checkpoint()
            except BaseException:
                self._cursor.move(position)
                if self._shared is not None:
                    await self._shared.give_back()
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
        if self._is_due():
            await self._core.checkpoint()
            self._note_checkpoint()
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
            self._core.check()
            line = await self._line(-1)
            self._note_checkpoint()
            self._hand_out(self._cursor.split())
            return line
        finally:
            self._lock.release()
