"""`AsyncFile`: a binary file with a cursor.

The cursor is ours, not the kernel's: positional calls of other tasks never move it, and calls that use it take turns. Only a file opened
for appending lets the kernel choose the place.
"""

from __future__ import annotations

import errno
import operator
import os
from typing import TYPE_CHECKING

from trio_aio._arguments import checked_integer
from trio_aio._errors import os_error
from trio_aio._positional import PositionalFile
from trio_aio._request import Operation

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ("AsyncFile",)

_LARGEST_READ = 1 << 30  # bytes: a single call of readall


class AsyncFile(PositionalFile):
    """A binary file, made by `open_aio`.

    Every coroutine is a checkpoint. Where nothing else is said about cancellation: a call whose request has not begun never runs and
    raises Cancelled at once; one that has begun is waited for and gives its result, and the cancellation is delivered at the next
    checkpoint. So **a call that raises Cancelled had no effect**. With ``abandon_on_cancel`` a read does not wait.

    Errors: OSError with the kernel's errno and the file's name; ValueError for a closed file, a negative offset or size;
    ``io.UnsupportedOperation`` where the mode does not allow the call; TypeError; RuntimeError in another run, thread or process.
    """

    # ---- with the cursor

    async def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes at the cursor, fewer only at the end of the file; all that is left for -1 or None."""
        if size is None or size < 0:
            return await self.readall()
        self._check_readable()
        async with self._turns:
            self._check_open()
            data = await self.pread(size, self._position)
            self._position += len(data)
            return data

    async def readall(self) -> bytes:
        """Read from the cursor to the end of the file."""
        self._check_readable()
        async with self._turns:
            self._check_open()
            position = self._position
            parts = []
            # The size is only a hint: the file may grow meanwhile, and those of /proc say 0.
            expected = max(await self.size() - position, 0)
            while True:
                want = min(max(expected, 4096), _LARGEST_READ)
                part = await self.pread(want, position)
                position += len(part)
                parts.append(part)
                if len(part) < want:
                    break
                expected = max(expected - want, 1 << 16) if expected > want else 1
            self._position = position
            return parts[0] if len(parts) == 1 else b"".join(parts)

    async def readinto(self, buffer: WriteableBuffer) -> int:
        """Read at the cursor into a writable buffer as much as it holds, fewer bytes only at the end of the file; give their number."""
        self._check_readable()
        async with self._turns:
            n = await self.preadinto(buffer, self._position)
            self._position += n
            return n

    async def write(self, data: ReadableBuffer) -> int:
        """Write all of `data` at the cursor, or at the end of a file opened for appending; give its length in bytes.

        OSError: ``characters_written`` says how much was written, and the cursor is behind that.
        """
        self._check_writable()
        async with self._turns:
            self._check_open()
            try:
                if self._descriptor.append:
                    self._position, n = await self._context._append(self._descriptor, data)
                    return n
                n = await self.pwrite(data, self._position)
            except OSError as error:
                self._position += getattr(error, "characters_written", 0)
                raise
            self._position += n
            return n

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the cursor and give where it is. `whence`: ``os.SEEK_SET``, ``SEEK_CUR``, ``SEEK_END``, ``SEEK_DATA``, ``SEEK_HOLE``."""
        self._check_open()
        offset, whence = checked_integer(offset, "offset"), operator.index(whence)
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE):
            raise ValueError(f"invalid whence: {whence}")
        async with self._turns:
            self._check_open()
            if whence in (os.SEEK_SET, os.SEEK_CUR):
                position = checked_integer(offset if whence == os.SEEK_SET else self._position + offset, "position")
                if position < 0:
                    raise os_error(errno.EINVAL, self.name)
                await self._context._checkpoint()
            elif whence == os.SEEK_END:
                position = await self.size() + offset
                if position < 0:
                    raise os_error(errno.EINVAL, self.name)
            else:
                position = await self._simple(Operation.SEEK, offset=offset, flags=whence)
            self._position = position
            return position

    async def tell(self) -> int:
        """Give where the cursor is."""
        self._check_open()
        await self._context._checkpoint()
        return self._position

    async def truncate(self, size: int | None = None) -> int:
        """Make the file `size` bytes long (default: up to the cursor, which does not move), and give that. ftruncate(2)."""
        self._check_writable()
        async with self._turns:
            size = self._position if size is None else checked_integer(size, "size")
            if size < 0:
                raise os_error(errno.EINVAL, self.name)
            await self._simple(Operation.TRUNCATE, offset=size)
            return size

    async def flush(self) -> None:
        """Do nothing but check: writes are with the kernel when they return. For the disk there is `fsync`."""
        self._check_open()
        await self._context._checkpoint()
