"""`AioStreamedFile`: what `AioFileSystem.open_async` returns, a file whose `read` and `write` are coroutines.

fsspec's own class for this, `AbstractAsyncStreamedFile`, gathers what is written until it has a block to upload. A local file needs no
blocks: each call is one of trio_aio's. `seek` and `tell` are plain methods, as fsspec has them, so the position is kept here, and reads are
positional.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio_aio
from trio_aio.integrations import missing
from trio_aio.integrations.batches import LONG

try:
    from fsspec.asyn import AbstractAsyncStreamedFile
except ImportError as _error:
    raise missing("fsspec", _error) from _error

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ("MODES", "AioStreamedFile", "open_streamed")

MODES = ("rb", "wb", "ab", "xb")


class AioStreamedFile(AbstractAsyncStreamedFile):
    """A local file that is read or written by coroutines: ``async with await fs.open_async(path) as file``.

    size: bytes that the file had when it was opened for reading. `seek` is for reading only. One task at a time may use it.
    ValueError after `close`, and for the wrong mode. A file that is dropped unclosed: ResourceWarning.
    """

    loc: int
    cache: Any
    closed: bool

    def __init__(self, fs: Any, path: str, mode: str, file: trio_aio.AsyncFile, size: int) -> None:
        super().__init__(fs, path, mode, cache_type="none", size=size)
        # It refers to this object: a file that is dropped would live until the collector runs.
        self.cache = None
        self._file: trio_aio.AsyncFile = file
        self.loc = size if mode == "ab" else 0

    async def read(self, length: int | None = -1) -> bytes:
        """Return `length` bytes from the position on, fewer only at the end of the file; negative or None: all that is left."""
        self._check("rb")
        length = -1 if length is None else int(length)
        if length < 0 or length > LONG:
            left = max(await self._file.size() - self.loc, 0)
            if not left:
                # It is at its end, or in /proc or /sys, where no file has a size before it was read.
                stop = None if length < 0 else self.loc + length
                data = b"".join([chunk async for chunk in self._file.chunks(start=self.loc, stop=stop)])
            else:
                data = await self._file.pread(left if length < 0 else min(length, left), self.loc)
        else:
            data = await self._file.pread(length, self.loc)
        self.loc += len(data)
        return data

    async def write(self, data: Buffer) -> int:
        """Write all of `data` at the position, and return the number of bytes. With mode "ab", at the end of the file."""
        self._check("wb", "ab", "xb")
        count = await self._file.write(data)
        self.loc += count
        return count

    async def flush(self, force: bool = False) -> None:
        """Do nothing: what `write` has written, other programs can read."""
        if self.closed:
            raise ValueError("I/O operation on closed file")

    async def close(self) -> None:
        """Close the file, also in a cancelled scope. Nothing the second time."""
        self.closed = True
        await self._file.aclose()

    def __del__(self) -> None:
        """Leave the file to its own finalizer. That of fsspec's class would call `close`, and not await it."""

    def _check(self, *modes: str) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if self.mode not in modes:
            raise ValueError(f"the file must be open with mode {' or '.join(modes)}, not {self.mode}")


async def open_streamed(fs: Any, path: str, mode: Any) -> AioStreamedFile:
    """Open a file for `AioFileSystem.open_async`."""
    file: trio_aio.AsyncFile = await trio_aio.open_aio(path, mode)
    try:
        return AioStreamedFile(fs, path, mode, file, await file.size())
    except BaseException:
        await file.aclose()
        raise
