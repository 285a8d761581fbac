"""`FileReadStream` and `FileWriteStream`: files as anyio's byte streams, with the interface of ``anyio.streams.file``.

anyio's own streams call each read and write in a thread. These use an `AsyncFile` instead, so they need no thread for each call.

A stream may be made of an ordinary binary file, outside of any event loop, as anyio allows. `open_aio` then opens its descriptor in
the first call, where an event loop runs. A lock lets one task do that, and keeps `aclose` from closing the file meanwhile.

anyio reports errors by its own exceptions. So OSError becomes ``BrokenResourceError``, a closed file ``ClosedResourceError``, and the end
of the file ``EndOfStream``. Users construct the streams, or call `from_path`.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ByteReceiveStream, ByteSendStream
from anyio.streams.file import FileStreamAttribute

from trio_aio._backends import Deferred, current_backend, raise_if_cancelled
from trio_aio._context.lock import FairLock
from trio_aio._errors import NotCopied
from trio_aio._files.binary import AsyncFile
from trio_aio._files.open import open_aio
from trio_aio._files.text import AsyncTextFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from typing_extensions import Self

    from trio_aio._context.context import AIOContext

__all__ = ("FileReadStream", "FileWriteStream")


class _FileStream(NotCopied):
    """What both streams share: the file, opened when it is first used, and its close."""

    def __init__(self, file: AsyncFile | IO[bytes]) -> None:
        if not isinstance(file, AsyncFile) and not (hasattr(file, "fileno") and hasattr(file, "tell")):
            raise TypeError(f"a stream needs an AsyncFile or an ordinary binary file as file, not {type(file).__name__}")
        if isinstance(file, AsyncTextFile):
            raise TypeError("a stream needs a binary file as file, not an AsyncTextFile: pass its `buffer`")
        self._file: AsyncFile | IO[bytes] = file
        self._opened: AsyncFile | None = file if isinstance(file, AsyncFile) else None
        self._lock: FairLock | None = None
        self._closed: bool = False

    async def _open_once(self) -> AsyncFile:
        """Return the `AsyncFile`. The first call opens it, if the stream was made of an ordinary file."""
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
            # Another task may have opened it while this one waited for the lock.
            if self._opened is None:
                if file.writable():
                    await backend.run_in_thread(file.flush)
                opened = await open_aio(file.fileno(), "r+b" if file.writable() else "rb", closefd=False)
                await opened.seek(file.tell())
                self._opened = opened
            return self._opened

    async def aclose(self) -> None:
        """Close the file, also in a cancelled scope, and then raise Cancelled. OSError: the file is closed all the same."""
        await self._close()
        await raise_if_cancelled()

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        with Deferred(current_backend(), value):
            await (self.aclose() if value is None else self._close())

    async def _close(self) -> None:
        """Do what `aclose` does, and do not raise Cancelled."""
        if isinstance(self._file, AsyncFile):
            await self._file._close()
            return
        backend = current_backend()
        if self._lock is None:
            self._lock = FairLock(backend, lambda: None)
        with Deferred(backend) as put_off, backend.shielded():
            # Another task may be opening the file: wait for it.
            while not self._lock.acquire():
                with put_off:
                    await self._lock.wait()
                    break
            try:
                self._closed = True
                try:
                    if self._opened is not None:
                        with put_off:
                            await self._opened._close()
                finally:
                    with put_off:
                        await backend.run_in_thread(self._file.close)
                    with put_off:
                        await backend.cancel_shielded_checkpoint()  # where one is raised that came during the call in the thread
            finally:
                self._lock.release()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """What ``stream.extra(attribute)`` returns: ``FileStreamAttribute.file``, `fileno`, and `path` if the file has one."""
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

    file: an `AsyncFile` opened for reading, or a regular file of ``open(path, "rb")``, which is read from its position on. The stream
    closes it. Tasks that call `receive` at once are served one after the other.
    """

    @classmethod
    async def from_path(cls, path: str | os.PathLike[str], *, context: AIOContext | None = None) -> Self:
        """Open a file for reading, and return its stream. Cancellation and errors as `open_aio`. context: serves it."""
        return cls(await open_aio(path, "rb", context=context))

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return the next `max_bytes` bytes, fewer only at the end of the file.

        max_bytes: at least 1, otherwise ValueError. Cancelled: no effect. ``anyio.EndOfStream`` at the end of the file;
        ``anyio.ClosedResourceError`` if the stream is closed, or its file was not opened for reading; ``anyio.BrokenResourceError`` instead
        of OSError, which is its cause.
        """
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be a positive integer, not {max_bytes}")
        try:
            if not self._file.readable():
                raise io.UnsupportedOperation("the file was not opened for reading")
            data = await (await self._open_once()).read(max_bytes)
        except ValueError:  # also of a file that was not opened for this, as with anyio's streams: that is an OSError too
            raise ClosedResourceError from None
        except OSError as error:
            raise BrokenResourceError from error
        if not data:
            raise EndOfStream
        return data

    async def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position in bytes, and return it. Arguments and errors as `AsyncFile.seek`."""
        return await (await self._open_once()).seek(position, whence)

    async def tell(self) -> int:
        """Return the position in bytes."""
        return await (await self._open_once()).tell()


class FileWriteStream(_FileStream, ByteSendStream):
    """A stream of bytes into a file.

    file: an `AsyncFile` opened for writing, or a regular file of ``open(path, "wb")``, which is written from its position on. The stream
    closes it. Tasks that call `send` at once are served one after the other.
    """

    @classmethod
    async def from_path(cls, path: str | os.PathLike[str], append: bool = False, *, context: AIOContext | None = None) -> Self:
        """Open a file for writing, emptied or with `append` for appending. Return its stream. Otherwise as `open_aio`."""
        return cls(await open_aio(path, "ab" if append else "wb", context=context))

    async def send(self, item: bytes) -> None:
        """Write all of `item`.

        Cancelled: no effect. ``anyio.ClosedResourceError`` if the stream is closed, or its file was not opened for writing;
        ``anyio.BrokenResourceError`` instead of OSError, which is its cause: a part of `item` may have been written.
        """
        try:
            await (await self._open_once()).write(item)
        except ValueError:  # also of a file that was not opened for this, as with anyio's streams: that is an OSError too
            raise ClosedResourceError from None
        except OSError as error:
            raise BrokenResourceError from error
