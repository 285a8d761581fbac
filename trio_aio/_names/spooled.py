"""`SpooledTemporaryFile`: a temporary file that is in memory until it is large.

Moving it to disk takes several requests. What another task writes meanwhile must not go to the memory that was copied already. So one lock
is held during each call, and calls are served in their order. On disk the file has a lock of its own, but a call that has waited for the
move goes there before later ones.
"""

from __future__ import annotations

import errno
import io
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, AnyStr, Generic, cast

from trio_aio._arguments import checked_integer
from trio_aio._backends import Deferred, async_resource, raise_if_cancelled, shielded_checkpoint
from trio_aio._context.lock import FairLock
from trio_aio._context.shared import current_core, given_core
from trio_aio._errors import NotCopied, os_error
from trio_aio._files.binary import AsyncFile
from trio_aio._files.mode import format_of
from trio_aio._memory.exports import bytes_of
from trio_aio._names.temporary import TemporaryFile

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from types import TracebackType

    from _typeshed import ReadableBuffer, WriteableBuffer
    from typing_extensions import Self

    from trio_aio._backends import Backend
    from trio_aio._context.context import AIOContext
    from trio_aio._context.core import Core

__all__ = ("SpooledTemporaryFile",)


@async_resource
class SpooledTemporaryFile(NotCopied, Generic[AnyStr]):
    """A temporary file that is in memory until it is larger than `max_size` bytes. As ``tempfile.SpooledTemporaryFile``.

    Until then no call makes a system call. max_size: 0 keeps it in memory until `rollover`. Tasks that use it at once are served one after
    the other, in the order of their calls. A task that is cancelled while it waits for the others has had no effect. It belongs to the run
    that is the first to use it, in memory too: RuntimeError in another run or thread, and in a child of fork.
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
        self._core: Core | None = given_core(context)
        self._max_size: int = max_size
        self._on_disk: Any = TemporaryFile(mode, buffering, encoding, newline, suffix, prefix, dir, errors=errors, context=context)
        self._mode: str = mode
        self._line_buffering: bool = text and buffering == 1
        self._bytes: io.BytesIO = io.BytesIO()
        self._memory: Any = io.TextIOWrapper(self._bytes, encoding, errors, newline, write_through=True) if text else self._bytes
        self._file: Any = None
        self._closed: bool = False
        # Of the run that was the first to use it.
        self._backend: Backend | None = None
        self._lock: FairLock | None = None
        self._mover: Any = None  # the task whose call moves it, while that holds the lock

    def __await__(self) -> Generator[Any, Any, Self]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        self._check_open()
        await self._usable().checkpoint()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        core = self._core or current_core()
        if core.backend is None:
            raise core.refusal()
        with Deferred(core.backend, value):
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

    @property
    def wrapped(self) -> Any:
        """A synchronous file: in memory the ``io.BytesIO`` or ``io.TextIOWrapper`` itself, until it moves; on disk `AsyncFile.wrapped`."""
        return self._memory if self._file is None else self._file.wrapped

    @property
    def limiter(self) -> None:
        """None: no call takes a thread."""
        return None

    @property
    def encoding(self) -> str:
        """The name of the encoding. AttributeError for a binary file; so are the next four."""
        return cast("str", self._inner.encoding)

    @property
    def errors(self) -> str:
        """How bytes or characters that cannot be converted are handled."""
        return cast("str", self._inner.errors)

    @property
    def newlines(self) -> str | tuple[str, ...] | None:
        """The line ends seen so far, in memory or since it is on disk."""
        return cast("str | tuple[str, ...] | None", self._inner.newlines)

    @property
    def line_buffering(self) -> bool:
        """Whether `buffering` was 1. It has no effect: there is no write buffer."""
        _ = self._inner.line_buffering
        return self._line_buffering

    @property
    def write_through(self) -> bool:
        """True: there is no write buffer."""
        return cast("bool", self._inner.write_through)

    @property
    def _inner(self) -> Any:
        return self._memory if self._file is None else self._file

    def readable(self) -> bool:
        """Return whether it can be read: in memory always, on disk if the mode says so."""
        self._check_open()
        return bool(self._inner.readable())

    def writable(self) -> bool:
        """Return whether it can be written: in memory always, on disk if the mode says so."""
        self._check_open()
        return bool(self._inner.writable())

    def seekable(self) -> bool:
        """Return True."""
        self._check_open()
        return True

    def isatty(self) -> bool:
        """Return False."""
        self._check_open()
        return False

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("I/O operation on closed file")

    def fileno(self) -> int:
        """Return the descriptor. UnsupportedOperation while it is in memory."""
        self._check_open()
        if self._file is None:
            raise io.UnsupportedOperation("it is in memory and has no descriptor: call rollover first")
        return cast("int", self._file.fileno())

    # ---- one call at a time

    def _usable(self) -> Core:
        """Return its core: that of the run that was the first to use it. RuntimeError in another run, thread or process."""
        core = self._core = self._core or current_core()
        core.check()
        return core

    def _lock_of_run(self) -> FairLock:
        """Return the lock. RuntimeError as `_usable`."""
        backend = self._usable().backend
        assert backend is not None
        if self._lock is None:
            self._backend, self._lock = backend, FairLock(backend, lambda: None)
        return self._lock

    async def _call(self, name: str, *arguments: Any) -> Any:
        self._check_open()
        if self._is_mover():
            return await self._call_inside(name, *arguments)
        lock = self._lock_of_run()
        if not lock.acquire():
            await lock.wait()
        try:
            return await self._call_inside(name, *arguments)
        finally:
            lock.release()

    async def _call_inside(self, name: str, *arguments: Any) -> Any:
        """Make a call. The task holds the lock."""
        self._check_open()
        if self._file is not None:
            return await getattr(self._file, name)(*arguments)
        await self._usable().checkpoint()
        if name == "truncate":
            return await self._truncate(*arguments)
        if name in ("write", "readinto", "readinto1") and self._memory is self._bytes:
            # io.BytesIO raises other errors than a file on disk, and takes memory of Python objects.
            bytes_of(arguments[0], writable=name != "write").release()
        result = getattr(self._memory, name)(*arguments)
        if name in ("write", "writelines") and self._is_large(self._bytes.getbuffer().nbytes) and not self._is_mover():
            await self._grow()
        return result

    def _is_mover(self) -> bool:
        """Return whether this task is moving the file, by the `rollover` of a subclass perhaps, and holds the lock."""
        return self._mover is not None and self._backend is not None and self._mover is self._backend.current_task()

    def _is_large(self, size: int) -> bool:
        return 0 < self._max_size < size

    async def _truncate(self, size: int | None) -> int:
        """Do in memory what ftruncate(2) does: zeros appear behind the end, and the position does not move."""
        self._memory.flush()
        position = self._bytes.tell()
        size = position if size is None else checked_integer(size, "size")
        if size < 0:
            raise os_error(errno.EINVAL)
        if size <= self._bytes.getbuffer().nbytes:
            self._bytes.truncate(size)
        elif self._is_large(size):
            await self._grow()
            await self._file.truncate(size)
        else:
            try:
                self._bytes.seek(size - 1)
                self._bytes.write(b"\0")
            finally:
                self._bytes.seek(position)
        return size

    async def _grow(self) -> None:
        """Move it to disk in a call that holds the lock and has had an effect: by `rollover`, as ``tempfile``, for subclasses."""
        backend = self._backend
        assert backend is not None
        self._mover = backend.current_task()
        try:
            with backend.shielded():
                await self.rollover()
        finally:
            self._mover = None

    async def rollover(self) -> None:
        """Move it to disk, with contents and position. If that fails, or is cancelled, nothing has changed."""
        if self._is_mover():
            await self._move()
            return
        self._check_open()
        lock = self._lock_of_run()
        if not lock.acquire():
            await lock.wait()
        try:
            self._check_open()
            if self._file is None:
                await self._move()
            else:
                await self._usable().checkpoint()
        finally:
            lock.release()

    async def _move(self) -> None:
        """Do what `rollover` does. The caller holds the lock."""
        position = self._memory.tell()
        file = await self._on_disk._open()  # not `await self._on_disk`, which can be done once: it may fail, and be tried again
        try:
            binary = file if isinstance(file, AsyncFile) else file.buffer
            await binary.pwrite(self._bytes.getvalue(), 0)
            await file.seek(position)
        except BaseException:
            await file._close()
            raise
        memory, self._memory = self._memory, io.BytesIO()
        self._file, self._bytes = file, self._memory
        with suppress(BufferError):  # `wrapped` has exported it
            memory.close()

    async def aclose(self) -> None:
        """Close it, also in a cancelled scope, and then raise Cancelled. A second call is a checkpoint.

        Calls that have started end first. Those that wait for them raise ValueError.
        """
        await self._close()
        await raise_if_cancelled()

    async def _close(self) -> None:
        """Do what `aclose` does, and do not raise Cancelled."""
        if self._core is not None and self._core.state in ("open", "forked"):  # otherwise no run uses it any more
            self._usable()
        self._closed = True
        backend, lock = self._backend, self._lock
        if backend is None or lock is None or lock.free or not _is_current(backend):
            await self._close_inner()
            return
        with Deferred(backend) as put_off, backend.shielded():
            while not lock.acquire():
                with put_off:
                    await lock.wait()
                    break
            try:
                await self._close_inner()
            finally:
                lock.release()

    async def _close_inner(self) -> None:
        if self._file is not None:
            await self._file._close()
        else:
            self._memory.close()
            await shielded_checkpoint()

    # ---- as a file

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
        return cast("int", await self._call("tell"))

    async def truncate(self, size: int | None = None) -> int:
        """As ``truncate`` of a file: zeros appear behind the end, and the position does not move. It moves to disk as `write` does."""
        return cast("int", await self._call("truncate", size))

    async def flush(self) -> None:
        """Check that it is open. Nothing is held back."""
        await self._call("flush")


def _is_current(backend: Backend) -> bool:
    """Return whether a task of its run calls."""
    try:
        return backend.current() is backend.identity
    except RuntimeError:
        return False
