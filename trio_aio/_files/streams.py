"""`FileReadStream` and `FileWriteStream`: files as anyio's byte streams, with the interface of ``anyio.streams.file``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ByteReceiveStream, ByteSendStream
from anyio.streams.file import FileStreamAttribute

from trio_aio._backends import current_backend
from trio_aio._context.lock import FairLock
from trio_aio._files.binary import AsyncFile
from trio_aio._files.open import open_aio
from trio_aio._files.text import AsyncTextFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self

__all__ = ("FileReadStream", "FileWriteStream")


class _FileStream:
    def __init__(self, file: AsyncFile | IO[bytes]) -> None:
        if not isinstance(file, AsyncFile) and not (hasattr(file, "fileno") and hasattr(file, "tell")):
            raise TypeError(f"a stream needs an AsyncFile or a binary file of Python's, not {type(file).__name__}")
        if isinstance(file, AsyncTextFile):
            raise TypeError("a stream needs a binary file, not an AsyncTextFile")
        self._file: AsyncFile | IO[bytes] = file
        self._opened: AsyncFile | None = file if isinstance(file, AsyncFile) else None
        self._lock: FairLock | None = None
        self._closed: bool = False

    async def _get(self) -> AsyncFile:
        """Give the file, opened here and now if it was a file of Python's."""
        if self._opened is not None:
            return self._opened
        file = self._file
        assert not isinstance(file, AsyncFile)
        backend = current_backend()
        if self._lock is None:
            self._lock = FairLock(backend, lambda: None)
        async with self._lock:
            if self._closed:
                raise ValueError("I/O operation on closed file")
            if self._opened is None:  # nobody was quicker
                if file.writable():
                    await backend.run_in_thread(file.flush)
                opened = await open_aio(file.fileno(), "r+b" if file.writable() else "rb", closefd=False)
                await opened.seek(file.tell())
                self._opened = opened
            return self._opened

    async def aclose(self) -> None:
        """Close the file. Closes in a cancelled scope too."""
        if isinstance(self._file, AsyncFile):
            await self._file.aclose()
            return
        backend = current_backend()
        if self._lock is None:
            self._lock = FairLock(backend, lambda: None)
        with backend.shielded():
            async with self._lock:  # somebody may be about to open it
                self._closed = True
                try:
                    if self._opened is not None:
                        await self._opened.aclose()
                finally:
                    await backend.run_in_thread(self._file.close)

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """What ``stream.extra(attribute)`` gives: ``FileStreamAttribute.file``, `fileno`, and `path` if it was opened by a path."""
        file = self._file
        attributes: dict[Any, Callable[[], Any]] = {
            FileStreamAttribute.file: lambda: file,
            FileStreamAttribute.fileno: file.fileno,
        }
        if not isinstance(file.name, int):
            attributes[FileStreamAttribute.path] = lambda: Path(os.fsdecode(file.name))
        return attributes


class FileReadStream(_FileStream, ByteReceiveStream):
    """A stream of the bytes of a file.

    `file`: an `AsyncFile` opened for reading; or a binary file of Python's, a regular one, whose descriptor is used from where it stands.
    The stream closes it.
    """

    @classmethod
    async def from_path(cls, path: str | os.PathLike[str]) -> Self:
        """Open a file for reading; errors as `open_aio`."""
        return cls(await open_aio(path, "rb"))

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Give the next bytes, `max_bytes` of them, fewer only at the end of the file.

        ``anyio.EndOfStream`` behind it; ``anyio.ClosedResourceError`` if the stream is closed; ``anyio.BrokenResourceError`` from OSError.
        """
        if max_bytes < 1:
            raise ValueError("max_bytes must be a positive integer")
        try:
            data = await (await self._get()).read(max_bytes)
        except OSError as error:
            raise BrokenResourceError from error
        except ValueError:
            raise ClosedResourceError from None
        if not data:
            raise EndOfStream
        return data

    async def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position in bytes, and give where that is; as `AsyncFile.seek`."""
        return await (await self._get()).seek(position, whence)

    async def tell(self) -> int:
        """Give the position in bytes."""
        return await (await self._get()).tell()


class FileWriteStream(_FileStream, ByteSendStream):
    """A stream of bytes into a file.

    `file`: an `AsyncFile` opened for writing; or a binary file of Python's, likewise.
    """

    @classmethod
    async def from_path(cls, path: str | os.PathLike[str], append: bool = False) -> Self:
        """Open a file for writing, emptied or, with `append`, for appending; errors as `open_aio`."""
        return cls(await open_aio(path, "ab" if append else "wb"))

    async def send(self, item: bytes) -> None:
        """Write all of `item`. ``anyio.ClosedResourceError`` if the stream is closed; ``anyio.BrokenResourceError`` from OSError."""
        try:
            await (await self._get()).write(item)
        except OSError as error:
            raise BrokenResourceError from error
        except ValueError:
            raise ClosedResourceError from None
