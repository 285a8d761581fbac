"""`AsyncDirectory`: an open directory, and calls with paths below it that cannot leave it.

How the kernel works. openat2(2) with RESOLVE_BENEATH fails with EXDEV if a path would leave its directory, by ``..``, an absolute path or
a link, and also if a component is renamed at the same time. Calls that change a name have no such flag.

What we do about it. What is looked at or opened is resolved with that flag. For a call that changes a name, its parent is, and the call
gets that parent's descriptor and the last component, which is never followed (names.c). Without openat2 the components are opened one by
one, and every link is an error (ELOOP).
"""

from __future__ import annotations

import errno
import os
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from trio_aio._arguments import checked_integer, checked_offset
from trio_aio._backends import raise_if_cancelled, shielded_checkpoint
from trio_aio._context.leasing import Lease
from trio_aio._context.shared import given_core
from trio_aio._engine.descriptor import Descriptor
from trio_aio._errors import NotCopied, os_error
from trio_aio._files.cached import may_open_cached, open_cached
from trio_aio._files.coding import decoded, encoded, joined_text
from trio_aio._files.mode import flags_of, format_of
from trio_aio._files.open import is_file, open_descriptor, unsupported
from trio_aio._files.opener import FileOpener
from trio_aio._files.parts import LARGEST_PART, read_into, read_part, write_flags, write_specially
from trio_aio._files.text import text_format
from trio_aio._names import os_calls
from trio_aio._names.calls import Name, change, link_of, name_of, request_of, stat_of, status_or_error
from trio_aio._names.calls import encoded as encoded_path
from trio_aio._names.directory_opener import NameOpener
from trio_aio._names.listing import DirEntry, Entries, Listing, entries_of, names_maker
from trio_aio._names.removing import remove_named_tree
from trio_aio._names.walk import Visit, Walk
from trio_aio._requests.names import AT_REMOVEDIR, EXIST_OK, PARENTS, Call, OpenFile, SyncName
from trio_aio._requests.opening import CREATION_MODE, Close

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from _typeshed import ReadableBuffer, WriteableBuffer
    from typing_extensions import Self

    from trio_aio._context.context import AIOContext
    from trio_aio._context.core import Core
    from trio_aio._engine.engine import Engine
    from trio_aio._files.binary import AsyncFile
    from trio_aio._files.text import AsyncTextFile
    from trio_aio._names.calls import NamePath

__all__ = ("AsyncDirectory", "DirectoryOpener", "open_directory")

_T = TypeVar("_T")

# linux/openat2.h: RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
BENEATH = 0x08 | 0x02


class AsyncDirectory(NotCopied):
    """An open directory: what `open_directory` opens. Any number of tasks may use it at once.

    Paths given to it start from it and, unless it was opened with ``beneath=False``, cannot leave it: OSError (EXDEV). Calls that only
    look are answered inline if the kernel has the name in memory. ValueError once it is closed. Dropped: ResourceWarning, and it is closed.
    Every coroutine is a checkpoint. A call that raises Cancelled has changed no name; `remove_tree` stops between two names.
    """

    def __init__(self, core: Core, descriptor: Descriptor, *, beneath: bool) -> None:
        self._closed: bool = True
        self._core: Core = core
        self._descriptor: Descriptor = descriptor
        self._resolve: int = BENEATH if beneath else 0
        self._close_request: Close = Close(descriptor)
        self._closed, descriptor.unclaimed = False, False

    def __repr__(self) -> str:
        return f"<trio_aio.AsyncDirectory name={self.name!r}{' closed' * self._closed}>"

    # ---- what it is

    @property
    def name(self) -> Any:
        """The path as it was given."""
        return self._descriptor.name

    @property
    def closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._closed

    def fileno(self) -> int:
        """Return the descriptor. It is the directory's: do not close it."""
        self._check_open()
        return self._descriptor.fd

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("operation on a closed directory")

    def _check(self) -> Engine:
        """Return the engine. ValueError if it is closed; RuntimeError in another run, thread or process."""
        self._check_open()
        return self._core.check()

    def _name(self, path: NamePath) -> Name:
        """Return a path for a call that starts now. ValueError, RuntimeError: before there is a coroutine that would not be awaited."""
        self._check()
        return self._later_name(path)

    def _later_name(self, path: NamePath) -> Name:
        """Return a path for a call that is awaited later, and perhaps made in another thread. ValueError."""
        self._check_open()
        return Name(self._descriptor.fd, encoded_path(path), path, self._resolve, self._guarded_later)

    async def _guarded_later(self, make: Callable[[], Awaitable[_T]]) -> _T:
        """Make a call and await it as `_guarded` does, some time after its path was checked. ValueError, RuntimeError."""
        self._check()
        return await self._guarded(make())

    async def _guarded(self, call: Awaitable[_T]) -> _T:
        """Await a call while the directory stays open, and explain the error of a path that leaves it."""
        try:
            return await self._while_open(call)
        except OSError as error:
            self._explain(error)
            raise

    def _explain(self, error: OSError) -> None:
        """Raise an error that says more, if it comes from a path that leaves the directory."""
        if error.errno == errno.EXDEV and self._resolve:
            detail = f"the path leads out of the directory {self.name!r}"
            raise os_error(errno.EXDEV, error.filename, detail, error.filename2) from None

    async def _while_open(self, call: Awaitable[_T]) -> _T:
        """Await a call while the directory stays open."""
        engine = self._core.check()
        backend = self._core.backend
        assert backend is not None
        lease = Lease(backend, engine, self._descriptor)
        try:
            try:
                lease.take()
                return await call
            finally:
                lease.end()
        finally:
            lease.end()

    # ---- looking

    async def stat(self, path: NamePath = ".", *, follow_symlinks: bool = True) -> os.stat_result:
        """Return the status of a name. As ``os.stat``. statx(2)."""
        return await self._guarded(stat_of(self._core, self._name(path), follow_symlinks=follow_symlinks))

    async def exists(self, path: NamePath) -> bool:
        """Return whether a name exists. OSError (EXDEV) for a path that leaves the directory."""
        status = await self._guarded(status_or_error(self._core, self._name(path)))
        if status == -errno.EXDEV:
            raise os_error(errno.EXDEV, path, f"the path leads out of the directory {self.name!r}")
        return not isinstance(status, int)

    async def readlink(self, path: NamePath) -> Any:
        """Return the target of a link, as the type of `path`. readlinkat(2)."""
        return await self._guarded(link_of(self._core, self._name(path)))

    # ---- contents

    def open(
        self,
        path: NamePath,
        mode: str = "rb",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        direct: bool = False,
    ) -> FileOpener[Any]:
        """Open a regular file or a block device: await it, or use it in ``async with``. The arguments are those of `open_aio`."""
        name = self._later_name(path)
        format = format_of(mode, buffering, encoding, errors, newline, stacklevel=2)
        flags = flags_of(mode) | (os.O_DIRECT if direct else 0)

        async def open_it() -> AsyncFile | AsyncTextFile:
            descriptor = await self._guarded_later(lambda: self._open(name, flags))
            return await open_descriptor(self._core, descriptor, mode, format, buffering, direct=direct)

        return FileOpener(open_it())

    async def _open(self, name: Name, flags: int) -> Descriptor:
        core = self._core
        descriptor = Descriptor(name.dir, name.shown)
        assert name.path is not None
        if may_open_cached(core, flags):
            backend: Any = core.backend
            await backend.checkpoint_if_cancelled()
            if open_cached(core, descriptor, name.path, flags, name.resolve):
                await backend.cancel_shielded_checkpoint()
                return descriptor
        request = OpenFile(descriptor, name.path, flags=flags, mode=CREATION_MODE, beneath=int(name.resolve != 0))
        try:
            await request_of(core, request)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP and request.kind and not is_file(request.kind):
                raise unsupported(request.kind, name.shown) from None
            raise
        return descriptor

    async def read_bytes(self, path: NamePath, *, offset: int = 0, size: int = -1, into: WriteableBuffer | None = None) -> bytes | int:
        """Return the bytes of a file, or with `into` their number. As `trio_aio.read_bytes`."""
        offset, size = checked_offset(offset), checked_integer(size, "size")
        if size < -1:
            raise ValueError(f"size must be -1 or not negative, not {size}")
        name = self._name(path)
        assert name.path is not None
        if into is not None:
            return await self._guarded(read_into(self._core, name.dir, name.path, path, offset, size, into, name.resolve))
        return await self._read(name, offset, size)

    async def _read(self, name: Name, offset: int, size: int) -> bytes:
        """Return the bytes of a file: in one request, or of a long one by an open file, so that they are those of one file."""
        assert name.path is not None
        if size <= LARGEST_PART:
            call = read_part(self._core, name.dir, name.path, name.shown, offset, size, name.resolve, by_descriptor=True)
            part = await self._guarded(call)
            if size >= 0 or len(part) < LARGEST_PART:
                return part
        async with self.open(name.shown) as file:
            if size >= 0:
                return await file.pread(size, offset)  # type: ignore[no-any-return]
            await file.seek(offset)
            return await file.readall()  # type: ignore[no-any-return]

    async def read_text(self, path: NamePath, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        """Return the text of a file. As `trio_aio.read_text`."""
        format = text_format(encoding, errors, newline, readable=True, writable=False, stacklevel=2)
        data = await self._read(self._name(path), 0, -1)
        backend = self._core.backend
        assert backend is not None
        parts = await decoded(backend, format.decoder(), data, format.encoding)
        with backend.shielded():
            return await joined_text(backend, parts)

    async def write_bytes(
        self,
        path: NamePath,
        data: ReadableBuffer,
        *,
        offset: int | None = None,
        append: bool = False,
        exclusive: bool = False,
        atomic: bool = False,
        durable: bool = False,
        mode: int = 0o666,
    ) -> int:
        """Write a file, and return the number of bytes. As `trio_aio.write_bytes`. An atomic write does not follow a link: it replaces
        it.
        """
        flags = write_flags(at_offset=offset is not None, append=append, exclusive=exclusive, atomic=atomic, durable=durable)
        at = 0 if offset is None else checked_offset(offset)
        name = self._name(path)
        assert name.path is not None
        call = write_specially(self._core, name.dir, name.path, path, data, at, flags, mode, beneath=name.resolve != 0)
        return await self._guarded(call)

    async def write_text(
        self,
        path: NamePath,
        data: str,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        append: bool = False,
        exclusive: bool = False,
        atomic: bool = False,
        durable: bool = False,
        mode: int = 0o666,
    ) -> int:
        """Write a text file, and return the number of characters. As `trio_aio.write_text`."""
        if not isinstance(data, str):
            raise TypeError(f"data must be str, not {type(data).__name__}: use write_bytes for bytes")
        format = text_format(encoding, errors, newline, readable=False, writable=True, stacklevel=2)
        self._check()
        backend = self._core.backend
        assert backend is not None
        text = await encoded(backend, format.encoder(), [data], newline, format.encoding)
        await self.write_bytes(path, text, append=append, exclusive=exclusive, atomic=atomic, durable=durable, mode=mode)
        return len(data)

    # ---- listings

    async def listdir(self, path: NamePath = ".") -> list[Any]:
        """Return the names in a directory, as the type of `path`. As ``os.listdir``."""
        return await self._guarded(Entries(self._name(path), names_maker(path), self._core)._all_once())

    def scandir(self, path: NamePath = ".", *, stat: bool = False) -> Listing[DirEntry]:
        """Return a `Listing` of the `DirEntry`s of a directory. As `trio_aio.scandir`; their paths start from this directory."""
        return entries_of(self._later_name(path), path, self._core, stat=stat)

    def walk(self, path: NamePath = ".") -> Listing[Visit]:
        """Return a `Listing` of ``(path, dirnames, filenames)``. As `trio_aio.walk`; links are not followed.

        OSError (EXDEV) if `path` leads out of this directory. Other errors are ignored, as by `trio_aio.walk`.
        """
        name, top, on_error = self._later_name(path), os.fspath(path), self._explain
        return Walk(name, top, os.path.join, self._core, top_down=True, on_error=on_error, follow=False, links_are_directories=True)

    # ---- changes

    async def mkdir(self, path: NamePath, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a directory. As ``pathlib.Path.mkdir``. mkdirat(2)."""
        flags = (PARENTS if parents else 0) | (EXIST_OK if exist_ok else 0)
        await self._guarded(change(self._core, Call.MKDIR, self._name(path), mode=mode, flags=flags))

    async def unlink(self, path: NamePath, *, missing_ok: bool = False) -> None:
        """Remove a name that is no directory. unlinkat(2)."""
        try:
            await self._guarded(change(self._core, Call.UNLINK, self._name(path)))
        except FileNotFoundError:
            if not missing_ok:
                raise

    async def rmdir(self, path: NamePath) -> None:
        """Remove an empty directory. unlinkat(2)."""
        await self._guarded(change(self._core, Call.UNLINK, self._name(path), flags=AT_REMOVEDIR))

    async def rename(
        self, source: NamePath, target: NamePath, *, to: AsyncDirectory | None = None, exclusive: bool = False, exchange: bool = False
    ) -> None:
        """Rename a name. `to`: the directory that `target` starts from, otherwise this one. As `trio_aio.os.rename`. renameat2(2)."""
        if exclusive and exchange:
            raise ValueError("exclusive and exchange must not both be True")
        flags = os_calls.RENAME_NOREPLACE if exclusive else os_calls.RENAME_EXCHANGE if exchange else 0
        await self._with_two(Call.RENAME, source, target, to, flags)

    async def link(self, source: NamePath, target: NamePath, *, to: AsyncDirectory | None = None) -> None:
        """Make `target` a hard link to `source`, which is not followed. `to`: as `rename`. linkat(2)."""
        await self._with_two(Call.LINK, source, target, to, 0)

    async def _with_two(self, call: Call, source: NamePath, target: NamePath, to: AsyncDirectory | None, flags: int) -> None:
        other = self if to is None else to
        if not isinstance(other, AsyncDirectory):
            raise TypeError(f"to must be an AsyncDirectory, not {type(other).__name__}")
        second = other._name(target)
        request = change(self._core, call, self._name(source), second, flags=flags)
        try:
            await other._while_open(self._while_open(request))
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            where = f"{self.name!r}" if other is self else f"{self.name!r} or {other.name!r}"
            both = f"a path leads out of the directory {where}, or they lie on different filesystems"
            raise os_error(errno.EXDEV, source, both, target) from None

    async def symlink(self, target: NamePath, path: NamePath) -> None:
        """Make `path` a link that points to `target`, whatever that is. symlinkat(2)."""
        made, points = self._name(path), name_of(target, may_be_fd=False)
        await self._guarded(change(self._core, Call.SYMLINK, made._replace(shown=target), points._replace(shown=path)))

    async def chmod(self, path: NamePath, mode: int) -> None:
        """Change the mode of a name, which is not followed if it is a link. fchmodat2(2)."""
        name = self._name(path)
        try:
            await self._guarded(change(self._core, Call.CHMOD, name, mode=mode, flags=0x100 if self._resolve else 0))
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP and self._resolve:  # a link has no mode
                raise os_error(errno.ELOOP, path) from None
            raise

    async def utime(self, path: NamePath, times: tuple[float, float] | None = None, *, ns: tuple[int, int] | None = None) -> None:
        """Set the times of a name, which is not followed if it is a link. As ``os.utime``. utimensat(2)."""
        fields = os_calls.time_fields(times, ns)
        await self._guarded(change(self._core, Call.UTIME, self._name(path), flags=0x100 if self._resolve else 0, **fields))

    async def remove_tree(self, path: NamePath) -> int:
        """Remove a directory and all that is in it. As `trio_aio.remove_tree`."""
        return await self._guarded(remove_named_tree(self._core, self._name(path), missing_ok=False, on_error=None))

    def open_directory(self, path: NamePath) -> DirectoryOpener:
        """Open a directory below this one: await it, or use it in ``async with``."""
        return DirectoryOpener(self._core, lambda: self._name(path), partial(AsyncDirectory, beneath=self._resolve != 0), self._guarded)

    async def sync(self) -> None:
        """Make the names in this directory durable. fsync(2)."""
        self._check()
        await self._guarded(request_of(self._core, SyncName(Descriptor(self._descriptor.fd, self.name), None)))

    # ---- its end

    async def aclose(self) -> None:
        """Wait for the directory's own calls, and close it, also in a cancelled scope; then raise Cancelled. close(2).

        A second call is a checkpoint.
        """
        await self._close()
        await raise_if_cancelled()

    async def _close(self) -> None:
        """Do what `aclose` does, and do not raise Cancelled."""
        core: Any = self._core
        if core.state == "closing" and not self._closed:
            await core.close()
        if self._closed or core.state == "closed":
            if not self._closed:
                self._mark_closed()
                core.engine.drops.add(self._descriptor, self._close_request)
            await shielded_checkpoint()
            return
        await core.submit_close(self._close_request, self._mark_closed, abandon=False)

    def _mark_closed(self) -> None:
        self._closed = True

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        await (self.aclose() if value is None else self._close())

    def __del__(self) -> None:
        if getattr(self, "_closed", True):
            return
        self._closed = True
        engine = self._core.engine
        if engine is None:
            self._descriptor.close_now()
            return
        engine.drops.add(self._descriptor, self._close_request)
        warnings.warn(f"unclosed directory <trio_aio.AsyncDirectory name={self.name!r}>", ResourceWarning, stacklevel=2, source=self)


class DirectoryOpener(NameOpener[AsyncDirectory]):
    """What `open_directory` returns. Await it for the directory, or use it in ``async with``, which closes the directory."""


def open_directory(path: NamePath, *, beneath: bool = True, context: AIOContext | None = None) -> DirectoryOpener:
    """Open a directory, and return an `AsyncDirectory`. ``async with open_directory(path) as directory:``, or ``await`` it.

    beneath: paths given to it cannot leave it, by ``..``, an absolute path, a link, or a rename at the same time: OSError (EXDEV).
    openat(2). OSError: FileNotFoundError, NotADirectoryError, PermissionError. Cancelled: nothing stays open.
    """
    name = name_of(path, may_be_fd=False)
    return DirectoryOpener(given_core(context), lambda: name, partial(AsyncDirectory, beneath=beneath))
