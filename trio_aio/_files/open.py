"""`open_aio`."""

from __future__ import annotations

import errno
import io
import operator
import os
import stat
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, overload

from trio_aio._context.context import AIOContext
from trio_aio._context.shared import current_context
from trio_aio._engine.descriptor import Descriptor, kind_of
from trio_aio._errors import os_error
from trio_aio._files.binary import AsyncFile
from trio_aio._files.text import AsyncTextFile, text_format
from trio_aio._requests.metadata import Seek
from trio_aio._requests.opening import AT_FDCWD, Close, Describe, Open

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

    from _typeshed import OpenBinaryMode, OpenTextMode

    from trio_aio._engine.engine import Engine

__all__ = ("FileOpener", "drop_unclaimed", "is_file", "learn", "open_aio", "unsupported")


class _Mode(NamedTuple):
    """What a mode string means."""

    flags: int  # of open(2)
    shown: str  # AsyncFile.mode, as FileIO shows it
    readable: bool
    writable: bool
    text: bool


def _parse_mode(mode: str) -> _Mode:
    if not isinstance(mode, str):
        raise TypeError(f"open_aio() argument 'mode' must be str, not {type(mode).__name__}")
    letters = set(mode)
    if len(letters) < len(mode) or letters - set("rwxabt+"):
        raise ValueError(f"invalid mode: {mode!r}")
    if "b" in letters and "t" in letters:
        raise ValueError("can't have text and binary mode at once")
    action = letters & set("rwxa")
    if len(action) != 1:
        raise ValueError("must have exactly one of create/read/write/append mode")
    (kind,) = action
    plus = "+" in letters
    readable, writable = kind == "r" or plus, kind != "r" or plus
    flags = os.O_RDWR if readable and writable else os.O_WRONLY if writable else os.O_RDONLY
    flags |= {"r": 0, "w": os.O_CREAT | os.O_TRUNC, "x": os.O_CREAT | os.O_EXCL, "a": os.O_CREAT | os.O_APPEND}[kind]
    shown = "rb+" if kind == "w" and plus else kind + "b" + "+" * plus
    return _Mode(flags | os.O_CLOEXEC, shown, readable, writable, "b" not in letters)


_File = TypeVar("_File", bound="AsyncFile | AsyncTextFile")


class FileOpener(Generic[_File]):
    """What `open_aio` gives: await it, or use it in ``async with``."""

    def __init__(self, coroutine_function: Callable[[], Any]) -> None:
        self._open: Callable[[], Any] = coroutine_function
        self._file: _File | None = None

    def __await__(self) -> Generator[Any, Any, _File]:
        return self._open().__await__()  # type: ignore[no-any-return]

    async def __aenter__(self) -> _File:
        self._file = file = await self
        return file

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        file, self._file = self._file, None
        if file is not None:
            await file.aclose()


@overload
def open_aio(
    file: str | bytes | os.PathLike[str] | os.PathLike[bytes] | int,
    mode: OpenBinaryMode = "rb",
    buffering: int = -1,
    encoding: None = None,
    errors: None = None,
    newline: None = None,
    closefd: bool = True,
    opener: Callable[[Any, int], int] | None = None,
    *,
    direct: bool = False,
    abandon_on_cancel: bool = False,
    context: AIOContext | None = None,
) -> FileOpener[AsyncFile]: ...


@overload
def open_aio(
    file: str | bytes | os.PathLike[str] | os.PathLike[bytes] | int,
    mode: OpenTextMode,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Callable[[Any, int], int] | None = None,
    *,
    direct: bool = False,
    abandon_on_cancel: bool = False,
    context: AIOContext | None = None,
) -> FileOpener[AsyncTextFile]: ...


@overload
def open_aio(
    file: str | bytes | os.PathLike[str] | os.PathLike[bytes] | int,
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Callable[[Any, int], int] | None = None,
    *,
    direct: bool = False,
    abandon_on_cancel: bool = False,
    context: AIOContext | None = None,
) -> FileOpener[AsyncFile | AsyncTextFile]: ...


def open_aio(
    file: str | bytes | os.PathLike[str] | os.PathLike[bytes] | int,
    mode: str = "rb",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Callable[[Any, int], int] | None = None,
    *,
    direct: bool = False,
    abandon_on_cancel: bool = False,
    context: AIOContext | None = None,
) -> FileOpener[Any]:
    """Open a regular file or a block device, off the event loop's thread.

    ``async with open_aio(path) as file:`` or ``file = await open_aio(path)``. The arguments up to `opener` are those of ``open()``; what is
    wrong with them is raised at once.

    - `file`: a path or an open descriptor.
    - `mode`: as ``open()`` has it; "rb" if not given. Without a "b" it is a text file's, and the file an `AsyncTextFile`.
    - `buffering`: accepted and of no effect; 0 is refused for text (ValueError).
    - `encoding`, `errors`, `newline`: for text, with the meaning and the defaults of ``open()``; LookupError if there is no such.
    - `closefd`: whether `file`, if it is a descriptor, is closed with the file. A path needs True.
    - `opener`: called as ``opener(file, flags)``, in a thread; gives an open descriptor.
    - `direct`: O_DIRECT, with any offset, size and buffer. ``file.direct`` says whether the file took it, ``file.alignment`` what it
      asks for; writes that are not of whole blocks go through the page cache, by a second descriptor with the same flags that is open as
      long as the file is. When that is closed the process loses its ``fcntl.lockf`` locks of the file, `closefd` or not: fcntl(2).
    - `abandon_on_cancel`: a cancelled read gives up waiting at once, for devices that may hang. Its memory stays with the context.
    - `context`: the `AIOContext` that serves the file; if not given, the one that all files of this run share.

    OSError as open(2), with the file's name: FileNotFoundError, PermissionError, IsADirectoryError, FileExistsError; EINVAL for
    `direct` where the filesystem has no O_DIRECT. ``io.UnsupportedOperation`` for a FIFO, socket, terminal or character
    device, without ever blocking.
    Cancelled: it was not opened (nor created). An open that has begun is waited for, and gives the file.
    """
    parsed = _parse_mode(mode)
    if context is not None and not isinstance(context, AIOContext):
        raise TypeError(f"context must be an AIOContext, not {type(context).__name__}")
    if not isinstance(file, int):
        file = os.fspath(file)
        if not closefd:
            raise ValueError("Cannot use closefd=False with file name")
        if ("\0" if isinstance(file, str) else b"\0") in file:  # type: ignore[operator]
            raise ValueError("embedded null byte")
    elif file < 0:
        raise ValueError(f"negative file descriptor: {file}")
    elif file >= 1 << 31:
        raise OverflowError(f"too large for a file descriptor: {file}")
    buffering = operator.index(buffering)
    format = None
    if parsed.text:
        if buffering == 0:
            raise ValueError("can't have unbuffered text I/O")
        format = text_format(encoding, errors, newline, readable=parsed.readable, writable=parsed.writable, stacklevel=3)
    else:
        for name, value in (("encoding", encoding), ("errors", errors), ("newline", newline)):
            if value is not None:
                raise ValueError(f"binary mode doesn't take an {name} argument")
    flags = parsed.flags | (os.O_DIRECT if direct else 0)

    async def open_it() -> AsyncFile | AsyncTextFile:
        used = current_context() if context is None else context
        position = 0
        if isinstance(file, int):
            descriptor = Descriptor(file, file)
            await _adopt(used, descriptor, direct=direct)
            descriptor.borrowed = not closefd
            position = await used._submit_and_wait(Seek(descriptor, 0, os.SEEK_CUR))
        elif opener is not None:
            descriptor = await _open_with(used, opener, file, flags, direct=direct)
        else:
            descriptor = await _open_path(used, file, flags)
        opened = AsyncFile(
            used,
            descriptor,
            parsed.shown,
            descriptor.size if flags & os.O_APPEND else position,
            readable=parsed.readable,
            writable=parsed.writable,
            abandon_on_cancel=abandon_on_cancel,
        )
        return opened if format is None else AsyncTextFile(opened, format, mode, line_buffering=buffering == 1)

    return FileOpener(open_it)


async def _open_with(context: AIOContext, opener: Callable[[Any, int], int], file: str | bytes, flags: int, *, direct: bool) -> Descriptor:
    engine = context._check()
    backend = context._backend
    assert backend is not None
    descriptor = Descriptor(-1, file)

    def open_it() -> object:
        fd = opener(file, flags)
        if isinstance(fd, int) and fd >= 0:
            descriptor.own(fd)  # here: the loop may end meanwhile, and nobody take the result
        return fd

    fd = await backend.run_in_thread(open_it)
    if not isinstance(fd, int):
        raise TypeError("expected integer from opener")
    if fd < 0:
        raise ValueError(f"opener returned {fd}")
    with backend.shielded():
        try:
            os.set_inheritable(fd, False)
            await _adopt(context, descriptor, direct=direct)
        except BaseException:
            drop_unclaimed(engine, descriptor)
            raise
    if flags & os.O_TRUNC:
        engine.files.note_change(descriptor.device, descriptor.inode_number)
    return descriptor


async def _open_path(context: AIOContext, file: str | bytes, flags: int) -> Descriptor:
    engine = context._check()
    descriptor = Descriptor(AT_FDCWD, file)
    request = Open(descriptor, os.fsencode(file), flags)
    description = request.record.value
    try:
        await context._submit_and_wait(request)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP and not is_file(description.mode):
            raise unsupported(description.mode, file) from None
        if error.errno == errno.EINVAL and flags & os.O_DIRECT:
            raise os_error(errno.EINVAL, file, "this filesystem may not support direct I/O (O_DIRECT)") from None
        raise
    except BaseException:
        drop_unclaimed(engine, descriptor)  # natively cancelled
        raise
    finally:
        if flags & os.O_TRUNC:
            engine.files.note_change(description.device, description.inode)
    learn(context, descriptor, description)
    return descriptor


async def _adopt(context: AIOContext, descriptor: Descriptor, *, direct: bool) -> None:
    """Learn what an open descriptor is."""
    request = Describe(descriptor)
    await context._submit_and_wait(request)
    mode = request.record.value.mode
    if stat.S_ISDIR(mode):
        raise os_error(errno.EISDIR, descriptor.name)
    if not is_file(mode):
        raise unsupported(mode, descriptor.name)
    learn(context, descriptor, request.record.value)
    if direct and not descriptor.direct:
        raise ValueError("direct=True needs a descriptor that was opened with O_DIRECT")


def drop_unclaimed(engine: Engine, descriptor: Descriptor) -> None:
    """Have closed what a request has opened, if no file has taken it over."""
    if descriptor.take_unclaimed():
        engine.drops.add(descriptor, Close(descriptor))


def learn(context: AIOContext, descriptor: Descriptor, description: Any) -> None:
    """Take over what the kernel says of a new descriptor, and connect it with what is known of its device and file."""
    descriptor.load(description)
    assert context._engine is not None
    context._engine.learn(descriptor)


def is_file(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def unsupported(mode: int, name: object) -> io.UnsupportedOperation:
    return io.UnsupportedOperation(
        f"open_aio opens regular files and block devices, and {name!r} is {kind_of(mode)}: "
        "use trio.lowlevel.FdStream for pipes and terminals, or anyio.wrap_file"
    )
