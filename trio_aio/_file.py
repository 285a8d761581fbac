"""`AsyncFile`: a binary file with a cursor.

The cursor is ours, not the kernel's: positional calls of other tasks never move it, and calls that use it take turns. Only a file opened
for appending lets the kernel choose the place.

Lines, and all cursor reads of a direct file, come from a piece of the file that was read ahead (`ReadAhead`); it is what
``io.BufferedRandom`` has, with no writes in it. Other reads go to the page cache, which is the better buffer.
"""

from __future__ import annotations

import errno
import operator
import os
from typing import TYPE_CHECKING

from trio_aio._arguments import checked_integer, checked_size
from trio_aio._buffers import export_buffer
from trio_aio._copying import joined
from trio_aio._errors import os_error
from trio_aio._inline_lane import INLINE_LIMIT
from trio_aio._positional import PositionalFile
from trio_aio._readahead import LARGEST, ReadAhead, split_lines
from trio_aio._request import Operation
from trio_aio._turns import Turns

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from _typeshed import ReadableBuffer, WriteableBuffer
    from typing_extensions import Self

    from trio_aio._backends import Backend
    from trio_aio._context import AIOContext
    from trio_aio._descriptor import Descriptor

__all__ = ("AsyncFile",)

_LARGEST_READ = 1 << 30  # bytes: a single request of readall
_GATHERED = 1 << 20  # bytes: lines that writelines writes in one request


class AsyncFile(PositionalFile):
    """A binary file, made by `open_aio`.

    Every coroutine is a checkpoint. Where nothing else is said about cancellation: a call whose request has not begun never runs and
    raises Cancelled at once; one that has begun is waited for and gives its result, and the cancellation is delivered at the next
    checkpoint. So **a call that raises Cancelled had no effect**. With ``abandon_on_cancel`` a read does not wait.

    ``async for line in file`` gives lines as `readline` does, and is a checkpoint only where it reads on, once in 8 to 64 KiB: a line
    that is in memory comes without a system call and without letting other tasks run. It may be left at any line and gone on with
    by any call: the cursor is behind the last line that was given.

    Errors: OSError with the kernel's errno and the file's name; ValueError for a closed file, a negative offset or size;
    ``io.UnsupportedOperation`` where the mode does not allow the call; TypeError; RuntimeError in another run, thread or process.
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
        self._turns: Turns = Turns(backend, context._check)
        assert descriptor.inode is not None
        self._ahead: ReadAhead = ReadAhead(position, descriptor.inode)
        self._lines: Iterator[bytes] = self._ahead.split()  # what `async for` gives next

    # ---- reading

    async def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes at the cursor, fewer only at the end of the file; all that is left for -1 or None."""
        if size is None or size == -1:
            return await self.readall()
        self._check_readable()
        if not self._turns.take():
            await self._turns.wait()
        try:
            return await self._read(size)
        finally:
            self._turns.pass_on()

    async def _read(self, size: int) -> bytes:
        """Do what `read` does; the turn is ours."""
        ahead = self._ahead
        position = ahead.settle()
        if self._descriptor.direct:
            data = await self._read_direct(checked_size(size), position)
        else:
            data = await self.pread(size, position)
        ahead.move(position + len(data))
        return data

    async def _read_direct(self, size: int, position: int) -> bytes:
        ahead = self._ahead
        data = ahead.peek(size)
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
        if not self._turns.take():
            await self._turns.wait()
        try:
            return await self._read(self._size_of_one(LARGEST if size < 0 else size))
        finally:
            self._turns.pass_on()

    def _size_of_one(self, size: int) -> int:
        """Give how much of `size` bytes one system call should read, none if there are bytes in memory."""
        held = self._ahead.held if self._descriptor.direct else 0
        return min(size, held) if held else size

    async def readall(self) -> bytes:
        """Read from the cursor to the end of the file."""
        self._check_readable()
        if not self._turns.take():
            await self._turns.wait()
        try:
            return await self._read_all()
        finally:
            self._turns.pass_on()

    async def _read_all(self) -> bytes:
        """Do what `readall` does; the turn is ours."""
        ahead = self._ahead
        position = ahead.settle()
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
        ahead.move(position)
        return await joined(self._backend, parts)

    async def readinto(self, buffer: WriteableBuffer) -> int:
        """Read at the cursor into a writable buffer as much as it holds, fewer bytes only at the end of the file; give their number."""
        self._check_readable()
        if not self._turns.take():
            await self._turns.wait()
        try:
            return await self._read_into(buffer, one=False)
        finally:
            self._turns.pass_on()

    async def readinto1(self, buffer: WriteableBuffer) -> int:
        """Read at the cursor into a writable buffer with one system call at most; give the number of bytes, 0 at the end."""
        self._check_readable()
        if not self._turns.take():
            await self._turns.wait()
        try:
            return await self._read_into(buffer, one=True)
        finally:
            self._turns.pass_on()

    async def _read_into(self, buffer: WriteableBuffer, *, one: bool) -> int:
        ahead = self._ahead
        position = ahead.settle()
        if self._descriptor.direct:
            target = export_buffer(buffer, writable=True)
            size = self._size_of_one(target.length) if one else target.length
            held = ahead.peek(size)
            if len(held) == size or size - len(held) < LARGEST:
                data = await self._read_direct(size, position)
                target.fill(data)
                ahead.move(position + len(data))
                return len(data)
            if held:
                n = len(held) + await self.preadinto(memoryview(buffer).cast("B")[len(held) :], position + len(held))
                target.fill(held)
                ahead.move(position + n)
                return n
        n = await self.preadinto(buffer, position)
        ahead.move(position + n)
        return n

    async def peek(self, size: int = 0) -> bytes:
        """Give bytes at the cursor and leave it where it is: what is in memory, else what one system call gives; `size` is of no effect."""
        self._check_readable()
        if not self._turns.take():
            await self._turns.wait()
        try:
            ahead = self._ahead
            if ahead.held:
                self._check_open()
                await self._context._checkpoint()
            if ahead.held:
                return ahead.peek(ahead.held)
            return await self._fill()
        finally:
            self._turns.pass_on()

    async def _fill(self) -> bytes:
        """Read at the cursor, and keep it in memory; the cursor stays. The turn is ours."""
        position = self._ahead.settle()
        data = await self._piece(position)
        self._ahead.move(position)
        return data

    async def _piece(self, position: int, least: int = 0) -> bytes:
        """Read `least` bytes or more at `position`, and keep them in memory."""
        ahead = self._ahead
        version = ahead.version
        data = await self.pread(max(ahead.next_size(position), least), position)
        ahead.keep(position, data, version)
        return data

    async def _chunk(self, size: int) -> bytes:
        """Read up to `size` bytes at the cursor, in any mode from memory if there are any; no checkpoint then. The turn is ours."""
        ahead = self._ahead
        position = ahead.position
        data = ahead.peek(size) or (await self._piece(position, size))[:size]
        ahead.move(position + len(data))
        return data

    # ---- lines

    async def readline(self, size: int | None = -1) -> bytes:
        """Read a line with the b"\\n" at its end, or `size` bytes of it; b"" at the end of the file. The last line may lack the b"\\n"."""
        self._check_readable()
        limit = -1 if size is None else checked_integer(size, "size")
        if not self._turns.take():
            await self._turns.wait()
        try:
            if self._ahead.line(limit)[1]:
                self._check_open()
                await self._context._checkpoint()
            return await self._line(limit)
        finally:
            self._turns.pass_on()

    async def _line(self, limit: int) -> bytes:
        """Do what `readline` does; no checkpoint if the line is in memory. The turn is ours."""
        ahead = self._ahead
        position = ahead.position
        line, whole = ahead.line(limit)
        while not whole:
            searched = len(line)
            version = ahead.version
            more = await self.pread(max(ahead.next_size(position + searched), searched), position + searched)
            if not more:
                break
            data = line + more
            ahead.keep(position, data, version)
            end = data.find(b"\n", searched) + 1
            line, whole = (data[:end], True) if end else (data, False)
            if 0 <= limit <= len(line):
                line, whole = line[:limit], True
        ahead.move(position + len(line))
        return line

    async def readlines(self, hint: int | None = -1) -> list[bytes]:
        """Read the lines up to the end of the file; with a positive `hint` no more of them once they have more bytes than that."""
        self._check_readable()
        limit = 0 if hint is None else checked_integer(hint, "hint")
        if not self._turns.take():
            await self._turns.wait()
        try:
            if limit <= 0:
                data = await self._read_all()
                return split_lines(data)
            position = self._ahead.position
            lines: list[bytes] = []
            total = 0
            try:
                while total <= limit and (line := await self._line(-1)):
                    lines.append(line)
                    total += len(line)
                await self._context._checkpoint()
            except BaseException:
                self._ahead.move(position)
                raise
            return lines
        finally:
            self._turns.pass_on()

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
        if not self._turns.take():
            await self._turns.wait()
        try:
            self._check_open()
            self._context._check()
            line = await self._line(-1)
            self._lines = self._ahead.split()
            return line
        finally:
            self._turns.pass_on()

    # ---- writing

    async def write(self, data: ReadableBuffer) -> int:
        """Write all of `data` at the cursor, or at the end of a file opened for appending; give its length in bytes.

        OSError: ``characters_written`` says how much was written, and the cursor is behind that.
        """
        self._check_writable()
        if not self._turns.take():
            await self._turns.wait()
        try:
            return await self._write(data)
        finally:
            self._turns.pass_on()

    async def _write(self, data: ReadableBuffer) -> int:
        """Do what `write` does; the turn is ours."""
        self._check_open()
        ahead = self._ahead
        position = ahead.settle()
        if not memoryview(data).nbytes:  # nothing moves then, not even at the end of a file opened for appending
            await self._context._checkpoint()
            return 0
        try:
            if self._descriptor.append:
                position, n = await self._context._append(self._descriptor, data)
                ahead.move(position)
            else:
                n = await self.pwrite(data, position)
                ahead.move(position + n)
        except OSError as error:
            written = getattr(error, "characters_written", 0)
            if written and self._descriptor.append:
                with self._backend.shielded():
                    ahead.move(await self.size())
            else:
                ahead.move(position + written)
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
        if not self._turns.take():
            await self._turns.wait()
        try:
            pieces = gathered(lines)
            await self._write(next(pieces, b""))
            with self._backend.shielded():
                for piece in pieces:
                    await self._write(piece)
        finally:
            self._turns.pass_on()

    # ---- the cursor

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the cursor and give where it is. `whence`: ``os.SEEK_SET``, ``SEEK_CUR``, ``SEEK_END``, ``SEEK_DATA``, ``SEEK_HOLE``."""
        self._check_open()
        offset, whence = checked_integer(offset, "offset"), operator.index(whence)
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE):
            raise ValueError(f"invalid whence: {whence}")
        if not self._turns.take():
            await self._turns.wait()
        try:
            return await self._seek(offset, whence)
        finally:
            self._turns.pass_on()

    async def _seek(self, offset: int, whence: int) -> int:
        """Do what `seek` does; the turn is ours."""
        self._check_open()
        ahead = self._ahead
        if whence in (os.SEEK_SET, os.SEEK_CUR):
            position = checked_integer(offset if whence == os.SEEK_SET else ahead.position + offset, "position")
            if position < 0:
                raise os_error(errno.EINVAL, self.name)
            await self._context._checkpoint()
        elif whence == os.SEEK_END:
            position = await self.size() + offset
            if position < 0:
                raise os_error(errno.EINVAL, self.name)
        else:
            position = await self._simple(Operation.SEEK, offset=offset, flags=whence)
        ahead.move(position)
        return position

    async def tell(self) -> int:
        """Give where the cursor is."""
        self._check_open()
        if not self._turns.take():
            await self._turns.wait()
        try:
            self._check_open()
            await self._context._checkpoint()
            return self._ahead.position
        finally:
            self._turns.pass_on()

    async def truncate(self, size: int | None = None) -> int:
        """Make the file `size` bytes long (default: up to the cursor, which does not move), and give that. ftruncate(2)."""
        self._check_writable()
        if not self._turns.take():
            await self._turns.wait()
        try:
            size = self._ahead.position if size is None else checked_integer(size, "size")
            if size < 0:
                raise os_error(errno.EINVAL, self.name)
            await self._simple(Operation.TRUNCATE, offset=size)
            return size
        finally:
            self._turns.pass_on()

    async def flush(self) -> None:
        """Do nothing but check: writes are with the kernel when they return. For the disk there is `fsync`."""
        self._check_open()
        await self._context._checkpoint()

    def _mark_closed(self) -> None:
        super()._mark_closed()
        self._ahead.forget()


def gathered(lines: Iterable[ReadableBuffer]) -> Iterator[bytes]:
    """Join bytes-like objects to pieces of 1 MiB or little more."""
    gathered: list[ReadableBuffer] = []
    size = 0
    for line in lines:
        gathered.append(line)
        size += memoryview(line).nbytes
        if size >= _GATHERED:
            yield b"".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield b"".join(gathered)
