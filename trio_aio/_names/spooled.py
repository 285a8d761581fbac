"""`SpooledTemporaryFile`: a temporary file that is in memory until it is large."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any, AnyStr, Generic, cast

from trio_aio._backends import raise_if_cancelled
from trio_aio._errors import NotCopied
from trio_aio._files.binary import AsyncFile
from trio_aio._files.mode import format_of
from trio_aio._names.calls import checked_context
from trio_aio._names.temporary import TemporaryFile

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from types import TracebackType

    from _typeshed import ReadableBuffer, WriteableBuffer
    from typing_extensions import Self

    from trio_aio._context.context import AIOContext

__all__ = ("SpooledTemporaryFile",)


class SpooledTemporaryFile(NotCopied, Generic[AnyStr]):
    """A temporary file that is in memory until it is larger than `max_size` bytes. As ``tempfile.SpooledTemporaryFile``.

    Until then no call makes a system call. max_size: 0 keeps it in memory until `rollover`.
    """

    def __init__(
        self,
        max_size: int = 0,
        mode: str = "w+b",
        buffering: int = -1,
        encoding: str | None = None,
        newline: str | None = None,
        suffix: AnyStr | None = None,
        prefix: AnyStr | None = None,
        dir: AnyStr | os.PathLike[AnyStr] | None = None,
        *,
        errors: str | None = None,
        context: AIOContext | None = None,
    ) -> None:
        text = format_of(mode, buffering, encoding, errors, newline, stacklevel=2) is not None
        self._context: AIOContext | None = context
        self._max_size: int = max_size
        self._on_disk: Any = TemporaryFile(mode, buffering, encoding, newline, suffix, prefix, dir, errors=errors, context=context)
        self._mode: str = mode
        self._bytes: io.BytesIO = io.BytesIO()
        self._memory: Any = io.TextIOWrapper(self._bytes, encoding, errors, newline, write_through=True) if text else self._bytes
        self._file: Any = None
        self._closed: bool = False

    def __await__(self) -> Generator[Any, Any, Self]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        await checked_context(self._context)._checkpoint()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        await (self.aclose() if value is None else self._close())

    @property
    def rolled(self) -> bool:
        """Whether it is on disk."""
        return self._file is not None

    @property
    def closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._closed

    @property
    def mode(self) -> str:
        """The mode as it was given."""
        return self._mode

    @property
    def name(self) -> Any:
        """None in memory, otherwise the number of the descriptor."""
        return None if self._file is None else self._file.name

    def fileno(self) -> int:
        """Return the descriptor. UnsupportedOperation while it is in memory."""
        if self._file is None:
            raise io.UnsupportedOperation("it is in memory and has no descriptor: call rollover first")
        return cast("int", self._file.fileno())

    async def rollover(self) -> None:
        """Move it to disk, with contents and position. If that fails, nothing has changed."""
        if self._closed:
            raise ValueError("I/O operation on closed file")
        if self._file is not None:
            await checked_context(self._context)._checkpoint()
            return
        position = self._memory.tell()
        file = await self._on_disk
        try:
            binary = file if isinstance(file, AsyncFile) else file.buffer
            await binary.pwrite(self._bytes.getvalue(), 0)
            await file.seek(position)
        except BaseException:
            await file._close()
            raise
        self._file = file
        self._memory = self._bytes = io.BytesIO()

    async def aclose(self) -> None:
        """Close it, also in a cancelled scope, and then raise Cancelled. A second call is a checkpoint."""
        await self._close()
        await raise_if_cancelled()

    async def _close(self) -> None:
        """Do what `aclose` does, and do not raise Cancelled."""
        self._closed = True
        if self._file is not None:
            await self._file._close()
        else:
            self._memory.close()
            backend = checked_context(self._context)._backend
            assert backend is not None
            await backend.cancel_shielded_checkpoint()

    async def _call(self, name: str, *arguments: Any) -> Any:
        if self._file is not None:
            return await getattr(self._file, name)(*arguments)
        if self._closed:
            raise ValueError("I/O operation on closed file")
        await checked_context(self._context)._checkpoint()
        result = getattr(self._memory, name)(*arguments)
        if name in ("write", "writelines", "truncate") and self._max_size and self._bytes.getbuffer().nbytes > self._max_size:
            backend = checked_context(self._context)._backend
            assert backend is not None
            with backend.shielded():
                await self.rollover()
        return result

    async def read(self, size: int = -1) -> AnyStr:
        """As ``read`` of a file: bytes or characters."""
        return cast("AnyStr", await self._call("read", size))

    async def read1(self, size: int = -1) -> bytes:
        """As ``read1`` of a binary file."""
        return cast("bytes", await self._call("read1", size))

    async def readinto(self, buffer: WriteableBuffer) -> int:
        """As ``readinto`` of a binary file."""
        return cast("int", await self._call("readinto", buffer))

    async def readinto1(self, buffer: WriteableBuffer) -> int:
        """As ``readinto1`` of a binary file."""
        return cast("int", await self._call("readinto1", buffer))

    async def readline(self, size: int = -1) -> AnyStr:
        """As ``readline`` of a file."""
        return cast("AnyStr", await self._call("readline", size))

    async def readlines(self, hint: int = -1) -> list[AnyStr]:
        """As ``readlines`` of a file."""
        return cast("list[AnyStr]", await self._call("readlines", hint))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AnyStr:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    async def write(self, data: ReadableBuffer | str) -> int:
        """As ``write`` of a file. It moves to disk if it has become larger than `max_size`."""
        return cast("int", await self._call("write", data))

    async def writelines(self, lines: Iterable[Any]) -> None:
        """As ``writelines`` of a file."""
        await self._call("writelines", lines)

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As ``seek`` of a file."""
        return cast("int", await self._call("seek", offset, whence))

    async def tell(self) -> int:
        """Return the position."""
        if self._file is not None:
            return cast("int", await self._file.tell())
        return cast("int", await self._call("tell"))

    async def truncate(self, size: int | None = None) -> int:
        """As ``truncate`` of a file."""
        return cast("int", await self._call("truncate", size))

    async def flush(self) -> None:
        """Let other tasks run: nothing is held back."""
        await checked_context(self._context)._checkpoint()
