"""`FileReadStream` and `FileWriteStream`: files as anyio's byte streams, with the interface of ``anyio.streams.file``.

anyio's own streams call each read and write in a thread. These use an `AsyncFile` instead, so they need no thread for each call.

A stream may be made of an ordinary binary file, outside of any event loop, as anyio allows. `open_aio` then opens its descriptor in
the first call, where an event loop runs. A lock lets one task do that, and keeps `aclose` from closing the file meanwhile.

Any other file is called in threads, as by anyio: pipes and devices, and objects that stand before a file or have none, such as a GzipFile,
whose bytes are not those of its descriptor.

anyio reports errors by its own exceptions. So OSError becomes ``BrokenResourceError``, a closed file ``ClosedResourceError``, and the end
of the file ``EndOfStream``. Users construct the streams, or call `from_path`.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import anyio
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ByteReceiveStream, ByteSendStream
from anyio.streams.file import FileStreamAttribute

from trio_aio._backends import Deferred, current_backend, raise_if_cancelled
from trio_aio._context.lock import FairLock
from trio_aio._errors import NotCopied
from trio_aio._files.binary import AsyncFile
from trio_aio._files.open import make_opener, open_aio
from trio_aio._files.text import AsyncTextFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from typing_extensions import Self

    from trio_aio._context.context import AIOContext

__all__ = ("FileReadStream", "FileWriteStream")

_open_with_anyio = anyio.open_file  # `install` may replace the attribute


def _is_plain(file: Any) -> bool:
    """Return whether reads and writes of `file` are those of its descriptor: it is of a type that ``open(path, "rb")`` or "wb" returns."""
    try:
        raw = file.raw if type(file) in (io.BufferedReader, io.BufferedWriter, io.BufferedRandom) else file
    except ValueError:  # it was detached
        return False
    return type(raw) is io.FileIO


async def _open(path: str | os.PathLike[str], mode: str, context: AIOContext | None) -> Any:
    """Return an `AsyncFile`; for a pipe or a device, the file that anyio opens."""

    def otherwise(_: object) -> Any:
        return _open_with_anyio(path, mode)  # type: ignore[call-overload]

    return await make_opener(
        "open_aio", path, mode, -1, None, None, None, True, None, False, False, context, stacklevel=3, otherwise=otherwise
    )


class _FileStream(NotCopied):
    """What both streams share: the file, opened when it is first used, and its close."""

    def __init__(self, file: AsyncFile | IO[bytes]) -> None:
        if isinstance(file, AsyncTextFile):
            raise TypeError("a stream needs a binary file as file, not an AsyncTextFile: pass its `buffer`")
        if isinstance(file, io.TextIOBase):
            raise TypeError("a stream needs a binary file as file, not a text file: open it with 'rb' or 'wb'")
        self._opened: AsyncFile | anyio.AsyncFile[bytes] | None = None
        self._file: AsyncFile | IO[bytes]
        if isinstance(file, AsyncFile):
            self._file = self._opened = file
        elif isinstance(file, anyio.AsyncFile):
            self._file, self._opened = file.wrapped, file
        elif hasattr(file, "close") and (hasattr(file, "read") or hasattr(file, "write")):
            self._file = file
        else:
            raise TypeError(f"a stream needs an AsyncFile or an ordinary binary file as file, not {type(file).__name__}")
        self._lock: FairLock | None = None
        self._closed: bool = False

    async def _open_once(self) -> AsyncFile | anyio.AsyncFile[bytes]:
        """Return the `AsyncFile`, or anyio's. The first call opens it, if the stream was made of an ordinary file."""
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
                self._opened = (await self._take_over(file) if _is_plain(file) else None) or anyio.wrap_file(file)
            return self._opened

    async def _take_over(self, file: IO[bytes]) -> AsyncFile | None:
        """Return an `AsyncFile` for the descriptor of an ordinary file; None if that is a pipe or a device."""
        if file.writable():
            await current_backend().run_in_thread(file.flush)
        try:
            opened = await open_aio(file.fileno(), "r+b" if file.writable() else "rb", closefd=False)
        except io.UnsupportedOperation:
            return None
        await opened.seek(file.tell())
        return opened

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
                    if isinstance(self._opened, AsyncFile):
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
        }
        name = getattr(file, "name", None)
        if isinstance(name, (str, bytes, os.PathLike)):
            attributes[FileStreamAttribute.path] = lambda: Path(os.fsdecode(name))
        try:
            file.fileno()
        except (AttributeError, io.UnsupportedOperation):
            pass  # it has none, such as a BytesIO
        else:
            attributes[FileStreamAttribute.fileno] = file.fileno
        return attributes


class FileReadStream(_FileStream, ByteReceiveStream):
    """A stream of the bytes of a file.

    file: an `AsyncFile` opened for reading, or a file of ``open(path, "rb")``, which is read from its position on, or another binary
    file object. Pipes, devices and other objects are called in threads, as by anyio. The stream closes it. Tasks that call `receive` at
    once are served one after the other.
    """

    @classmethod
    async def from_path(cls, path: str | os.PathLike[str], *, context: AIOContext | None = None) -> Self:
        """Open a file of any kind for reading, and return its stream. Cancellation and errors as `open_file`. context: serves it."""
        return cls(await _open(path, "rb", context))

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return the next `max_bytes` bytes, fewer only at the end of the file.

        max_bytes: at least 1, otherwise ValueError. Cancelled: no effect. ``anyio.EndOfStream`` at the end of the file;
        ``anyio.ClosedResourceError`` if the stream is closed, or its file was not opened for reading; ``anyio.BrokenResourceError`` instead
        of OSError, which is its cause.
        """
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be a positive integer, not {max_bytes}")
        try:
            file = await self._open_once()
            if isinstance(file, AsyncFile) and not self._file.readable():
                raise io.UnsupportedOperation("the file was not opened for reading")
            data = await file.read(max_bytes)
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

    file: an `AsyncFile` opened for writing, or a file of ``open(path, "wb")``, which is written from its position on, or another binary
    file object. Pipes, devices and other objects are called in threads, as by anyio. The stream closes it. Tasks that call `send` at once
    are served one after the other.
    """

    @classmethod
    async def from_path(cls, path: str | os.PathLike[str], append: bool = False, *, context: AIOContext | None = None) -> Self:
        """Open a file of any kind for writing, emptied or with `append` for appending, and return its stream. Otherwise as `open_file`."""
        return cls(await _open(path, "ab" if append else "wb", context))

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
