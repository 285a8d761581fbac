"""`open_aio`: open a file, and make an `AsyncFile` or `AsyncTextFile` of it.

open(2) may sleep: on a disk, on a network, on a FIFO without a writer. Native AIO has no asynchronous form of it. So a worker opens the
file. It uses O_NONBLOCK, looks at the kind of file, and refuses everything but regular files and block devices.

A worker cannot be stopped, and the task may be gone when open(2) returns. The descriptor is then *unclaimed*: no file closes it.
`drop_unclaimed` lets the engine do that. The caller's own `opener` runs in a thread. Its descriptor is inspected afterwards, as is one that
the caller passes as `file`.

Users call `open_aio`. `whole.py` calls the other public functions for the files that it opens itself.
"""

from __future__ import annotations

import errno
import io
import operator
import os
import stat
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, overload

from trio_aio._context.shared import current_core, given_core
from trio_aio._engine.descriptor import Descriptor, kind_of
from trio_aio._errors import os_error
from trio_aio._files.binary import AsyncFile
from trio_aio._files.cached import may_open_cached, open_cached, probe_mount
from trio_aio._files.mode import Mode, format_of, parse_mode
from trio_aio._files.opener import FileOpener
from trio_aio._files.text import AsyncTextFile, TextFormat
from trio_aio._requests.metadata import Seek
from trio_aio._requests.opening import AT_FDCWD, Close, Describe, Open

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from _typeshed import OpenBinaryMode, OpenTextMode

    from trio_aio._context.context import AIOContext
    from trio_aio._context.core import Core
    from trio_aio._engine.engine import Engine

__all__ = ("drop_unclaimed", "dropped_on_error", "is_file", "learn", "make_opener", "open_aio", "open_descriptor", "unsupported")


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
    """Open a regular file or a block device, and return an `AsyncFile` or an `AsyncTextFile`. A worker calls open(2).

    ``async with open_aio(path) as file:`` or ``file = await open_aio(path)``. The arguments up to `opener` are those of ``open()``; errors
    in them are raised at once, before the result is awaited.

    - `file`: a path or an open descriptor.
    - `mode`: as for ``open()``; the default is "rb". Without a "b" the result is an `AsyncTextFile`.
    - `buffering`: accepted and without effect; 0 is refused for text (ValueError).
    - `encoding`, `errors`, `newline`: for text, as for ``open()``. LookupError for an unknown encoding or error handler.
    - `closefd`: whether `file`, if it is a descriptor, is closed with the file. A path needs True.
    - `opener`: called as ``opener(file, flags)`` in a thread; returns an open descriptor.
    - `direct`: open with O_DIRECT. Any offset, size and buffer works. ``file.direct`` is whether the filesystem honours it, and
      ``file.alignment`` what it requires. Writes of other than whole blocks go through the page cache, by a second descriptor. It is
      opened together with the first, if the mode allows writing; if it cannot be opened, ``open_aio`` fails and says so. When it is
      closed, the process loses its ``fcntl.lockf`` locks of the file, even with ``closefd=False``: fcntl(2).
    - `abandon_on_cancel`: a cancelled read, `stat`, `size`, `seek` or sync returns at once, and so do this call and the close, for devices
      that may hang. The context keeps memory and descriptor until the kernel is done. An open may still create or empty the file.
    - `context`: the `AIOContext` that serves the file; default: `current_context()`.

    Cancelled before the open has started: no file was opened or created. Later: the file is returned, and Cancelled is raised at the next
    checkpoint.
    OSError of open(2) with the file's name: FileNotFoundError, PermissionError, IsADirectoryError, FileExistsError; EINVAL for `direct` if
    the filesystem has no O_DIRECT. ``io.UnsupportedOperation`` for a FIFO, socket, terminal or character device: it never blocks on one.
    """
    return make_opener(
        "open_aio", file, mode, buffering, encoding, errors, newline, closefd, opener, direct, abandon_on_cancel, context, stacklevel=3
    )


def make_opener(
    function: str,
    file: Any,
    mode: str,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
    closefd: bool,
    opener: Callable[[Any, int], int] | None,
    direct: bool,
    abandon_on_cancel: bool,
    context: AIOContext | None,
    *,
    stacklevel: int,
    otherwise: Callable[[Callable[[Any, int], int] | None], Awaitable[Any]] | None = None,
    limiter: Any = None,
) -> FileOpener[Any]:
    """Return what `open_aio` returns. function: its name. stacklevel: as for ``warnings.warn`` in the public function.

    otherwise: opens a file that is neither a regular file nor a block device, and returns it; default: it is refused. It gets an opener for
    ``open()`` that returns the descriptor of the caller's `opener`, which was called already; None if there was none.
    limiter: kept as the file's `limiter`.
    """
    parsed = parse_mode(mode)
    given = given_core(context)
    if not isinstance(file, int):
        file = os.fspath(file)
        if not closefd:
            raise ValueError(f"closefd must be True if file is a path: {file!r}")
        if ("\0" if isinstance(file, str) else b"\0") in file:
            raise ValueError(f"file must not contain a null byte: {file!r}")
    elif file < 0:
        raise ValueError(f"file must be a path or a descriptor that is not negative, not {file}")
    elif file >= 1 << 31:
        raise OverflowError(f"file must be a path or a descriptor below 2**31, not {file}")
    buffering = operator.index(buffering)
    format = format_of(mode, buffering, encoding, errors, newline, stacklevel=stacklevel + 1)
    flags = parsed.flags | (os.O_DIRECT if direct else 0)

    async def open_it() -> Any:
        used = given or current_core()
        position, descriptor = 0, None
        try:
            if isinstance(file, int):
                descriptor, position = await _adopt_number(used, file, parsed, direct=direct, abandon=abandon_on_cancel)
            elif opener is not None:
                descriptor, position = await _open_with(used, opener, file, flags, direct=direct, abandon=abandon_on_cancel)
            else:
                descriptor = await _open_path(used, file, flags, abandon=abandon_on_cancel)
            opened = AsyncFile(
                used,
                descriptor,
                parsed.shown,
                descriptor.size if opener is None and not isinstance(file, int) and flags & os.O_APPEND else position,
                readable=parsed.readable,
                writable=parsed.writable,
                abandon_on_cancel=abandon_on_cancel,
            )
            if limiter is not None:
                opened._limiter = limiter
            if isinstance(file, int):
                descriptor.borrowed = not closefd
                opened._adopt()
            made = opened if format is None else AsyncTextFile(opened, format, mode, line_buffering=buffering == 1)
            opened._claim()
        except _OtherKind as other:
            descriptor, kind = other.opened, other.mode
        except BaseException:
            if descriptor is not None:
                assert used.engine is not None
                drop_unclaimed(used.engine, descriptor)
            raise
        else:
            return made
        try:
            if otherwise is None or direct:
                raise unsupported(kind, file)
            return await otherwise(None if descriptor is None else partial(_hand_over, descriptor))
        finally:
            if descriptor is not None:
                assert used.engine is not None
                drop_unclaimed(used.engine, descriptor)

    return FileOpener(open_it(), function)


class _OtherKind(Exception):
    """A file is neither a regular file nor a block device. mode: its st_mode. opened: the descriptor, if an opener has opened it."""

    def __init__(self, mode: int) -> None:
        super().__init__(mode)
        self.mode: int = mode
        self.opened: Descriptor | None = None


def _hand_over(descriptor: Descriptor, file: object, flags: int) -> int:
    """Return a descriptor that belongs to the caller from now on, as an opener does. OSError if it was closed meanwhile."""
    if not descriptor.take_unclaimed():
        raise os_error(errno.EBADF, descriptor.name)
    return descriptor.fd


async def _open_with(
    core: Core, opener: Callable[[Any, int], int], file: str | bytes, flags: int, *, direct: bool, abandon: bool
) -> tuple[Descriptor, int]:
    """Return the descriptor that the caller's `opener` opens, in a thread, and where its cursor is."""
    engine = core.check()
    backend = core.backend
    assert backend is not None
    descriptor = Descriptor(-1, file)
    has_left = False

    def open_it() -> object:
        fd = opener(file, flags)
        if isinstance(fd, int) and fd >= 0:
            # In this thread: if the event loop ends meanwhile, no task takes the result, and the descriptor would stay open.
            descriptor.own(fd)
            if has_left:
                descriptor.close_unclaimed()
        return fd

    try:
        fd = await backend.run_in_thread(open_it, abandon=abandon)
    except BaseException:
        has_left = True  # first: the thread may be about to look
        drop_unclaimed(engine, descriptor)
        raise
    if not isinstance(fd, int):
        raise TypeError(f"opener must return an open descriptor, not {type(fd).__name__}")
    if fd < 0:
        raise ValueError(f"opener must return an open descriptor, not {fd}")
    with nullcontext() if abandon else backend.shielded():
        try:
            os.set_inheritable(fd, False)
            await _adopt(core, descriptor, writable=flags & os.O_ACCMODE != os.O_RDONLY, direct=direct, abandon=abandon)
            position = await core.submit_and_wait(_seek_to_start(descriptor, flags), abandon=abandon)
        except _OtherKind as other:
            other.opened = descriptor
            raise
        except BaseException:
            drop_unclaimed(engine, descriptor)
            raise
    if flags & os.O_TRUNC:
        engine.files.note_change(descriptor.device, descriptor.inode_number, cut=0)
    return descriptor, position


async def _open_path(core: Core, file: str | bytes, flags: int, *, abandon: bool) -> Descriptor:
    """Return a new descriptor. Opened from memory if the kernel has the name there, otherwise by a worker."""
    engine = core.check()
    descriptor = Descriptor(AT_FDCWD, file)
    path = os.fsencode(file)
    if may_open_cached(core, flags):
        assert core.backend is not None
        await core.backend.checkpoint_if_cancelled()
        try:
            if open_cached(core, descriptor, path, flags):
                engine.learn(descriptor)
                await core.backend.cancel_shielded_checkpoint()
                return descriptor
        except BaseException:
            drop_unclaimed(engine, descriptor)
            raise
        await probe_mount(core, AT_FDCWD, path, file, abandon=abandon)
    request = Open(descriptor, path, flags)
    description = request.record.value
    try:
        await core.submit_and_wait(request, abandon=abandon)
        learn(core, descriptor, description)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP and not is_file(description.mode):
            raise _OtherKind(description.mode) from None
        if error.errno == errno.EINVAL and flags & os.O_DIRECT:
            raise os_error(errno.EINVAL, file, "this filesystem may not support direct I/O (O_DIRECT)") from None
        if description.buffered_error:
            raise _second_error(error, file) from None
        raise
    except BaseException:
        # asyncio's own Task.cancel after the worker had opened the file, or an interrupt or an abandoned open, perhaps before.
        request.unwanted = True
        drop_unclaimed(engine, descriptor)
        raise
    return descriptor


async def open_descriptor(
    core: Core,
    descriptor: Descriptor,
    mode: str,
    format: TextFormat | None,
    buffering: int,
    *,
    direct: bool = False,
    kind: type[AsyncFile] = AsyncFile,
) -> AsyncFile | AsyncTextFile:
    """Return a file of a new descriptor, which a request has opened, and perhaps described. `mode` as for ``open()``.

    If that fails, the engine closes it.
    """
    engine = core.check()
    parsed = parse_mode(mode)
    try:
        if descriptor.mode and not direct:
            engine.learn(descriptor)
        else:
            await _adopt(core, descriptor, writable=parsed.writable, direct=direct)
        start = descriptor.size if parsed.flags & os.O_APPEND else 0
        opened = kind(
            core,
            descriptor,
            parsed.shown,
            start,
            readable=parsed.readable,
            writable=parsed.writable,
            abandon_on_cancel=False,
        )
        made = opened if format is None else AsyncTextFile(opened, format, mode, line_buffering=buffering == 1)
        opened._claim()
    except BaseException as error:
        drop_unclaimed(engine, descriptor)
        if isinstance(error, _OtherKind):
            raise unsupported(error.mode, descriptor.name) from None
        raise
    return made


async def _adopt_number(core: Core, fd: int, mode: Mode, *, direct: bool, abandon: bool) -> tuple[Descriptor, int]:
    """Return the descriptor that the caller passes, and where its cursor is."""
    core.check()
    descriptor = Descriptor(fd, fd)
    descriptor.borrowed = True  # until there is a file: if that fails, the caller keeps it
    descriptor.opened = False
    with dropped_on_error(core, descriptor):
        await _adopt(core, descriptor, writable=mode.writable, direct=direct, abandon=abandon)
        return descriptor, await core.submit_and_wait(_seek_to_start(descriptor, mode.flags), abandon=abandon)


def _seek_to_start(descriptor: Descriptor, flags: int) -> Seek:
    """Return the request for the position where the cursor of an open descriptor starts, as with ``open()``."""
    return Seek(descriptor, 0, os.SEEK_END if flags & os.O_APPEND else os.SEEK_CUR)


async def _adopt(core: Core, descriptor: Descriptor, *, writable: bool, direct: bool, abandon: bool = False) -> None:
    """Ask the kernel what a descriptor is, and check that it can be served. fstat(2), statx(2)."""
    request = Describe(descriptor, writable=writable)
    try:
        await core.submit_and_wait(request, abandon=abandon)
    except OSError as error:
        if request.record.value.buffered_error:
            raise _second_error(error, descriptor.name) from None
        raise
    mode = request.record.value.mode
    if stat.S_ISDIR(mode):
        raise os_error(errno.EISDIR, descriptor.name)
    if not is_file(mode):
        raise _OtherKind(mode)
    learn(core, descriptor, request.record.value)
    if direct and not descriptor.direct:
        raise ValueError(f"direct must be False for {descriptor.name!r}: its descriptor was not opened with O_DIRECT")


def _second_error(error: OSError, name: object) -> OSError:
    """Return the error for a file that was opened for direct writing, and cannot be opened a second time."""
    detail = "writes of parts of blocks need a second descriptor of the file, without O_DIRECT, and it cannot be opened"
    if error.errno in (errno.EACCES, errno.EPERM):
        detail += ": make the file writable for this user, open it before privileges are dropped, or open it without O_DIRECT"
    elif error.errno == errno.ENOENT:
        detail += " without /proc: mount it, pass a path instead of a descriptor, or open it without O_DIRECT"
    return os_error(error.errno or 0, name, detail)


def drop_unclaimed(engine: Engine, descriptor: Descriptor) -> None:
    """Let the engine close a descriptor that a request has opened, if no file has taken it over."""
    if descriptor.take_unclaimed():
        engine.drops.add(descriptor, Close(descriptor))


@contextmanager
def dropped_on_error(core: Core, descriptor: Descriptor) -> Generator[None]:
    """Let the engine close what a request has opened, if the block ends with an exception: asyncio's own Task.cancel may come after it."""
    try:
        yield
    except BaseException:
        if core.engine is not None:
            drop_unclaimed(core.engine, descriptor)
        raise


def learn(core: Core, descriptor: Descriptor, description: Any) -> None:
    """Store what the kernel reports about a new descriptor, and connect it with the records of its device and file."""
    descriptor.load(description)
    assert core.engine is not None
    core.engine.learn(descriptor)


def is_file(mode: int) -> bool:
    """Return whether `mode`, the st_mode of stat(2), is that of a regular file or a block device."""
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def unsupported(mode: int, name: object) -> io.UnsupportedOperation:
    """Return the error for a file that is neither a regular file nor a block device."""
    return io.UnsupportedOperation(
        f"open_aio opens regular files and block devices, and {name!r} is {kind_of(mode)}: "
        "use trio.lowlevel.FdStream for pipes and terminals, or anyio.wrap_file"
    )
