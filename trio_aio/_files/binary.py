"""`AsyncFile`: a binary file with a cursor, made by `open_aio`.

`ReadableFile` says what the cursor is, and reads at it. Here is what writes at it, moves it, and ends it. Only a file opened for appending
lets the kernel choose the offset of a write.

A public method takes the lock; the private one of the same name does the work and expects the lock to be held. `AsyncTextFile` calls the
private ones, under the same lock.
"""

from __future__ import annotations

import errno
import operator
import os
from typing import TYPE_CHECKING

from trio_aio._arguments import checked_integer
from trio_aio._context.pace import Pace
from trio_aio._errors import os_error
from trio_aio._files.kernel_cursor import KernelCursor
from trio_aio._files.lines import Gatherer
from trio_aio._files.reading import ReadableFile
from trio_aio._memory.exports import byte_count
from trio_aio._requests.cursor import ANYWHERE
from trio_aio._requests.metadata import Truncate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed import ReadableBuffer

    from trio_aio._context.context import AIOContext
    from trio_aio._memory.exports import Export

__all__ = ("AsyncFile",)


class AsyncFile(ReadableFile):
    """A binary file with a cursor, made by `open_aio`.

    Checkpoints, cancellation and errors are those of `PositionalFile`. Tasks that use the cursor at once are served one after the other, in
    the order of their calls. A task that is cancelled while it waits for the others has had no effect.

    ``async for line in file`` yields lines as `readline` returns them. It is a checkpoint when it reads from the file, once in 8 to 64 KiB,
    and at the latest one millisecond after the last one, whatever the body of the loop does. A line that is in memory costs no system call.
    The loop may be left at any line. The next call continues after that line.
    """

    @property
    def context(self) -> AIOContext:
        """The context that serves it."""
        context: AIOContext = self._core.context
        return context

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
        if self._shared is not None:
            return await self._shared.write(data)
        # An empty write does not move the cursor, not even to the end of a file opened for appending.
        if not byte_count(data):
            await self._core.checkpoint()
            return 0
        try:
            if self._descriptor.append:
                position, n = await self._core.append(self._descriptor, data)
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

        An error: ``characters_written`` is the number of bytes of all lines that were written, and the cursor is after them. An error in
        the first MiB (a line that is not bytes-like, an exception of the iterable) comes before anything was written, and has none.

        Cancelled before the first MiB has been written: no effect. Later: all of them are written, and Cancelled is raised at the next
        checkpoint. asyncio's own `Task.cancel` stops it between two MiB instead, with the cursor after the last MiB known to be written.
        """
        self._check_writable()
        if isinstance(lines, str):
            raise TypeError("lines must be an iterable of bytes-like objects, not 'str': encode it first, or open the file in text mode")
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            parts = Gatherer(lines, Pace(self._backend))
            written = await self._write_part(await parts.next() or b"")
            try:
                with self._backend.shielded():
                    while (part := await parts.next()) is not None:
                        written += await self._write_part(part)
            except Exception as error:
                error.characters_written = written + getattr(error, "characters_written", 0)  # type: ignore[attr-defined]
                raise
        finally:
            self._lock.release()

    async def _write_part(self, part: ReadableBuffer | list[Export]) -> int:
        self._check_open()
        return await self._write(await self._core.gathered(self._descriptor, part) if isinstance(part, list) else part)

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
        if self._shared is not None:
            return await self._shared.seek(offset, whence)
        if whence in (os.SEEK_SET, os.SEEK_CUR):
            # Ends the lines of an `async for`: one that is taken during the checkpoint would be taken back.
            before = cursor.settle()
            position = checked_integer(offset if whence == os.SEEK_SET else before + offset, "position")
            if position < 0:
                raise os_error(errno.EINVAL, self.name)
            await self._core.checkpoint()
        elif whence == os.SEEK_END:
            position = await self.size() + offset
            if position < 0:
                raise os_error(errno.EINVAL, self.name)
        else:
            position = await self._lseek(offset, whence)
        cursor.move(position)
        return position

    async def tell(self) -> int:
        """Return the position of the cursor in bytes. No system call, unless others may use the descriptor too: then lseek(2)."""
        self._check_open()
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            return await self._tell()
        finally:
            self._lock.release()

    async def _tell(self) -> int:
        """Do what `tell` does. The caller holds the lock."""
        self._check_open()
        if self._shared is not None:
            return await self._shared.seek(0, os.SEEK_CUR)
        await self._core.checkpoint()
        return self._cursor.position

    async def truncate(self, size: int | None = None) -> int:
        """Set the size of the file, by default to the cursor, and return it. The cursor does not move. ftruncate(2).

        size: bytes. Cancelled before it has started: no effect. OSError: EINVAL for a negative size; UnsupportedOperation if not open for
        writing.
        """
        self._check_writable()
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            size = None if size is None else checked_integer(size, "size")
            if size is not None and size < 0:
                raise os_error(errno.EINVAL, self.name)
            self._check_open()
            if self._shared is not None:
                position = await self._shared.seek(0, os.SEEK_CUR)
            else:
                position = self._cursor.position
            size = position if size is None else size
            await self._core.submit_and_wait(Truncate(self._descriptor, size))
            return size
        finally:
            self._lock.release()

    async def flush(self) -> None:
        """Check that the file is open. Writes are complete in the kernel when they return; for the disk use `fsync`.

        Lines of an adopted descriptor that were read ahead are given back: the kernel's position is then that of the cursor.
        """
        self._check_open()
        if self._shared is None:
            await self._core.checkpoint()
            return
        if not self._lock.acquire():
            await self._lock.wait()
        try:
            self._check_open()
            if self._shared.surplus() is not None:
                await self._shared.seek(0, os.SEEK_CUR)
            else:
                await self._core.checkpoint()
        finally:
            self._lock.release()

    # ---- the kernel's position

    def fileno(self) -> int:
        """Return the descriptor. It belongs to the file: do not close it.

        Others may use it from now on: a child process, ``os.sendfile``. So the first call sets the kernel's file position to the cursor.
        From then on each call that uses the cursor starts at the kernel's position, and leaves it behind what it did. A worker makes each
        of them, and nothing is read ahead. Positional calls do not change. RuntimeError for a first call in a child of fork: the position
        is the parent's too.
        """
        self._check_open()
        if self._shared is None:
            if self._core.backend is None:
                raise self._core.refusal()
            self._share()
        return self._descriptor.fd

    def _share(self) -> None:
        """Let the cursor be the kernel's position from now on. lseek(2), which does not wait: no other process has this open file yet."""
        descriptor, position = self._descriptor, self._cursor.settle()
        left = ANYWHERE
        # An append that is in flight holds the lock of the kernel's position: the next call sets it then.
        if self._lock.free or not descriptor.append:
            left = os.lseek(descriptor.fd, position, os.SEEK_SET)
        self._cursor.forget()
        self._shared = KernelCursor(self._core, descriptor, self._cursor, left, keeps_ahead=False, abandon=self._abandon)

    def _adopt(self) -> None:
        """Let the cursor be the kernel's position from the start: the descriptor was opened by others, who may use it."""
        position = self._cursor.position
        self._shared = KernelCursor(self._core, self._descriptor, self._cursor, position, keeps_ahead=True, abandon=self._abandon)

    def _mark_closed(self) -> None:
        super()._mark_closed()
        if self._shared is not None:
            self._close_request.position = self._shared.surplus()
        self._cursor.forget()
