"""Our files as ordinary ones: each call goes to an event loop in another thread, and is waited for."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import tempfile
import threading
import unittest
from typing import TYPE_CHECKING, Any

import trio

from trio_aio import AIOContext, open_aio
from trio_aio._files.text import AsyncTextFile, text_format

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Portal:
    """A trio run in a thread, with a context of its own that has one worker."""

    def __init__(self) -> None:
        self._ready: threading.Event = threading.Event()
        self._thread: threading.Thread = threading.Thread(target=trio.run, args=(self._main,), name="portal")
        self._thread.start()
        self._ready.wait()

    async def _main(self) -> None:
        async with AIOContext(max_workers=1) as self.context:
            self.token = trio.lowlevel.current_trio_token()
            self._end = trio.Event()
            self._ready.set()
            await self._end.wait()

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call an async function there, or a plain one."""

        async def make() -> Any:
            result = function(*arguments, **options)
            return await result if hasattr(result, "__await__") else result

        return trio.from_thread.run(make, trio_token=self.token)

    def settle(self) -> None:
        """Wait until the descriptors of files that were dropped are closed."""
        gc.collect()
        engine = self.context._core.engine
        assert engine is not None

        async def until_idle() -> None:
            while engine.drops or engine.outstanding:
                await trio.lowlevel.checkpoint()

        self.call(until_idle)

    def close(self) -> None:
        self.token.run_sync_soon(self._end.set)
        self._thread.join()


portal: Portal


@contextlib.contextmanager
def running_portal() -> Iterator[Portal]:
    global portal
    portal = Portal()
    try:
        yield portal
    finally:
        portal.close()


CALLS = ("read", "readline", "readlines", "seek", "tell", "truncate", "flush", "write", "writelines", "fileno", "isatty")
CALLS += ("readable", "writable", "seekable")
BINARY_CALLS = (*CALLS, "readinto", "readall")
BUFFERED_CALLS = (*CALLS, "readinto", "read1", "readinto1", "peek")


def _method(name: str) -> Any:
    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        return self._call(name, *arguments, **options)

    method.__name__ = name
    return method


def _plain(*names: str) -> Callable[[type], type]:
    """Give a class these methods of the file."""

    def decorate(kind: type) -> type:
        for name in names:
            setattr(kind, name, _method(name))
        return kind

    return decorate


class Adapter:
    _file: Any = None

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        return portal.call(getattr(self._file, name), *arguments, **options)

    @property
    def closed(self) -> bool:
        return self._file is None or bool(self._file.closed)

    @property
    def name(self) -> Any:
        return self._file.name

    @property
    def mode(self) -> str:
        return str(self._file.mode)

    def close(self) -> None:
        if self._file is not None:
            portal.call(self._file.aclose)

    def __del__(self) -> None:
        """Do not close, as io.IOBase would: the collector may run in the portal's own thread. The file itself sees to it."""

    def __next__(self) -> Any:
        try:
            return portal.call(self._file.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def __iter__(self) -> Any:
        portal.call(self._file.__aiter__)
        return self

    def __enter__(self) -> Any:
        portal.call(self._file.__aenter__)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@_plain(*BINARY_CALLS)
class FileIO(Adapter, io.RawIOBase):
    """An AsyncFile as io.FileIO."""

    def __init__(self, file: Any, mode: str = "r", closefd: bool = True, opener: Any = None) -> None:
        self._file = portal.call(open_aio, file, mode.replace("b", "") + "b", closefd=closefd, opener=opener, context=portal.context)
        self.closefd = closefd


@_plain(*BUFFERED_CALLS)
class Buffered(Adapter, io.BufferedIOBase):
    """An AsyncFile as io.BufferedReader, BufferedWriter and BufferedRandom."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._file = portal.call(open_aio, *arguments, **options, context=portal.context)


@_plain(*CALLS)
class Text(Adapter, io.TextIOBase):
    """An AsyncTextFile as io.TextIOWrapper."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._file = portal.call(open_aio, *arguments, **options, context=portal.context)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self._file.encoding)

    @property
    def errors(self) -> str:  # type: ignore[override]
        return str(self._file.errors)

    @property
    def newlines(self) -> Any:  # type: ignore[override]
        return self._file.newlines

    @property
    def line_buffering(self) -> bool:
        return bool(self._file.line_buffering)

    @property
    def buffer(self) -> Any:
        adapter = Buffered.__new__(Buffered)
        adapter._file = self._file.buffer
        return adapter


class TextOverBytesIO(Text):
    """An AsyncTextFile over a file that has the bytes of an io.BytesIO (perhaps in a buffered file), which is kept up to date."""

    def __init__(
        self,
        buffer: Any,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        line_buffering: bool = False,
        write_through: bool = False,
    ) -> None:
        readable, writable = buffer.readable(), buffer.writable()
        mode = "r+" if readable and writable else "r" if readable else "a"
        format = text_format(encoding, errors, newline, readable=readable, writable=writable, stacklevel=2)
        self._buffer: Any = buffer
        if isinstance(buffer, io.BufferedReader | io.BufferedWriter | io.BufferedRandom):
            position = buffer.tell()
            buffer = buffer.raw
            buffer.seek(position)
        if not isinstance(buffer, io.BytesIO):
            raise unittest.SkipTest("over an object that is no file of the system")
        self._bytes: io.BytesIO = buffer
        self._copy: Any = tempfile.NamedTemporaryFile(buffering=0)  # noqa: SIM115
        self._copy.write(buffer.getvalue())

        async def make() -> AsyncTextFile:
            below = await open_aio(self._copy.name, mode + "b", context=portal.context)
            await below.seek(buffer.tell())
            return AsyncTextFile(below, format, mode, line_buffering=line_buffering)

        self._file = portal.call(make)

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        try:
            return super()._call(name, *arguments, **options)
        finally:
            if not self.closed and not self._bytes.closed:
                fd = self._copy.fileno()
                data = os.pread(fd, os.fstat(fd).st_size, 0)
                position = self._file.buffer._cursor.position
                if data != self._bytes.getvalue():
                    self._bytes.seek(0)
                    self._bytes.truncate()
                    self._bytes.write(data)
                self._bytes.seek(position)

    @property
    def buffer(self) -> Any:
        return self._buffer

    def close(self) -> None:
        super().close()
        if hasattr(self, "_copy"):
            self._copy.close()
            self._buffer.close()


def open_synchronously(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    """Do what open() does."""
    if "b" not in mode:
        return Text(file, mode, buffering, encoding, errors, newline, closefd, opener)
    if buffering == 0 and encoding is errors is newline is None:
        return FileIO(file, mode, closefd, opener)
    return Buffered(file, mode, buffering, encoding, errors, newline, closefd, opener)
