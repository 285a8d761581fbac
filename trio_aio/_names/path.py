"""`Path`: a pure path with asynchronous calls, as ``pathlib.Path`` has them.

It is a ``pathlib.PurePosixPath``, so all pure operations, comparison, hashing and pickling are the running Python's. It is no
``pathlib.Path``: no method blocks. Each docstring names its model; what it does not say is as there. Calls that came with a later Python
are here on every Python.
"""

from __future__ import annotations

import errno
import os
import pathlib
import stat as _stat
import sys
from typing import TYPE_CHECKING, Any, overload
from urllib.parse import unquote_to_bytes

from trio_aio._context.shared import current_context
from trio_aio._engine.descriptor import Descriptor
from trio_aio._errors import os_error
from trio_aio._files import whole
from trio_aio._files.open import open_aio
from trio_aio._names import copying, os_calls, os_path, removing
from trio_aio._names.calls import change, encoded, link_of, missing, name_of, request_of, stat_of, status_or_error
from trio_aio._names.glob import Glob, parts_of
from trio_aio._names.info import PathInfo
from trio_aio._names.listing import DirEntry, Entries, Listing, scandir
from trio_aio._names.walk import Walk
from trio_aio._requests.names import AT_REMOVEDIR, AT_SYMLINK_NOFOLLOW, EXIST_OK, PARENTS, Call, RealPath, UserName
from trio_aio._requests.opening import AT_FDCWD

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import ReadableBuffer, WriteableBuffer
    from typing_extensions import Self

    from trio_aio._files.opener import FileOpener
    from trio_aio._requests.names import Listed

__all__ = ("Path",)


class Path(pathlib.PurePosixPath):
    """A path with asynchronous calls. As ``pathlib.Path``, except that what asks the filesystem is awaited.

    It is equal to a ``pathlib`` path of the same name, and has the same hash. It uses the run's shared context. Calls that only look are
    answered inline if the kernel has the name in memory; others go to workers. A call that raises Cancelled has changed no name.
    """

    __slots__ = ("_info",)

    if TYPE_CHECKING:
        _info: tuple[int, int]

    # ---- looking

    async def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """As ``pathlib.Path.stat``. statx(2)."""
        return await stat_of(current_context(), name_of(self), follow_symlinks=follow_symlinks)

    async def lstat(self) -> os.stat_result:
        """As ``pathlib.Path.lstat``. statx(2)."""
        return await self.stat(follow_symlinks=False)

    async def exists(self, *, follow_symlinks: bool = True) -> bool:
        """As ``pathlib.Path.exists``."""
        return await self._mode(follow_symlinks) is not None

    async def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """As ``pathlib.Path.is_dir``."""
        return await self._is(_stat.S_ISDIR, follow_symlinks)

    async def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """As ``pathlib.Path.is_file``."""
        return await self._is(_stat.S_ISREG, follow_symlinks)

    async def is_symlink(self) -> bool:
        """As ``pathlib.Path.is_symlink``."""
        return await self._is(_stat.S_ISLNK, False)

    async def is_socket(self) -> bool:
        """As ``pathlib.Path.is_socket``."""
        return await self._is(_stat.S_ISSOCK)

    async def is_fifo(self) -> bool:
        """As ``pathlib.Path.is_fifo``."""
        return await self._is(_stat.S_ISFIFO)

    async def is_block_device(self) -> bool:
        """As ``pathlib.Path.is_block_device``."""
        return await self._is(_stat.S_ISBLK)

    async def is_char_device(self) -> bool:
        """As ``pathlib.Path.is_char_device``."""
        return await self._is(_stat.S_ISCHR)

    async def is_junction(self) -> bool:
        """As ``pathlib.Path.is_junction``: False, as Linux has none."""
        await current_context()._checkpoint()
        return False

    async def is_mount(self) -> bool:
        """As ``pathlib.Path.is_mount``."""
        if sys.version_info >= (3, 12):
            return await os_path.ismount(self)
        if not await self.is_dir():
            return False
        try:
            above, own = await self.parent.stat(), await self.stat()
        except OSError:
            return False
        return own.st_dev != above.st_dev or own.st_ino == above.st_ino

    async def samefile(self, other_path: str | os.PathLike[str]) -> bool:
        """As ``pathlib.Path.samefile``."""
        context = current_context()
        return os.path.samestat(await stat_of(context, name_of(self)), await stat_of(context, name_of(other_path)))

    async def readlink(self) -> Self:
        """As ``pathlib.Path.readlink``. readlinkat(2)."""
        return self._like(await link_of(current_context(), name_of(self)))

    async def _mode(self, follow_symlinks: bool = True) -> int | None:
        """Return the mode; None if there is no such name, by the errors that the running Python takes for that."""
        context = current_context()
        try:
            name = name_of(self)
        except ValueError:
            await context._checkpoint()
            return None
        status = await status_or_error(context, name, follow_symlinks=follow_symlinks)
        if not isinstance(status, int):
            return status.st_mode
        if sys.version_info >= (3, 14) or missing(status):
            return None
        raise os_error(status, self)

    async def _is(self, test: Callable[[int], bool], follow_symlinks: bool = True) -> bool:
        mode = await self._mode(follow_symlinks)
        return mode is not None and test(mode)

    @property
    def info(self) -> PathInfo:
        """What the listing that returned this path saw of it. RuntimeError if no listing did. As ``pathlib.Path.info``."""
        try:
            return PathInfo(*self._info)
        except AttributeError:  # the slot is empty
            raise RuntimeError(f"no listing returned {self!r}: use iterdir, glob or rglob, or await its stat") from None

    # ---- other paths

    async def absolute(self) -> Self:
        """As ``pathlib.Path.absolute``."""
        await current_context()._checkpoint()
        return self if self.is_absolute() else self._like(os.getcwd(), self)

    @classmethod
    async def cwd(cls) -> Self:
        """As ``pathlib.Path.cwd``. getcwd(2)."""
        await current_context()._checkpoint()
        return cls(os.getcwd())

    @classmethod
    async def home(cls) -> Self:
        """As ``pathlib.Path.home``."""
        return await cls("~").expanduser()

    @classmethod
    def from_uri(cls, uri: str) -> Self:
        """As ``pathlib.Path.from_uri``: the path of a ``file:`` URI. ValueError for another. It is not awaited."""
        rest = uri.removeprefix("file:")
        rest = (
            rest.removeprefix("//localhost") if rest.startswith("//localhost/") else rest.removeprefix("//") if rest[:3] == "///" else rest
        )
        if not uri.startswith("file:"):
            raise ValueError(f"URI must start with 'file:', but is {uri!r}")
        if not rest.startswith("/") or rest.startswith("//"):
            raise ValueError(f"URI must have an absolute path on this host, but is {uri!r}")
        return cls(os.fsdecode(unquote_to_bytes(rest)))

    async def expanduser(self) -> Self:
        """As ``pathlib.Path.expanduser``: RuntimeError if there is no such user. A worker asks the user database. getpwnam_r(3)."""
        context = current_context()
        parts = self.parts
        if not parts or parts[0][:1] != "~":
            await context._checkpoint()
            return self
        user = parts[0][1:]
        home = os.environ.get("HOME") if not user else None
        if home is None:
            request = UserName(Call.HOME, Descriptor(AT_FDCWD, self), encoded(user))
            await request_of(context, request)
            home = os.fsdecode(request.answer())
            if not home:
                raise RuntimeError("Could not determine home directory.")
        else:
            await context._checkpoint()
        return self._like(home.rstrip("/") or "/", *parts[1:])

    async def resolve(self, strict: bool = False) -> Self:
        """As ``pathlib.Path.resolve``. A worker follows the links, in one request. A loop is the running Python's error."""
        context = current_context()
        request = RealPath(Descriptor(AT_FDCWD, str(self)), encoded(self), strict=strict)
        old = sys.version_info < (3, 13)
        try:
            await request_of(context, request)
        except OSError as error:
            if old and error.errno == errno.ELOOP:
                raise RuntimeError(f"Symlink loop from {error.filename!r}") from None
            raise
        path = self._like(os.fsdecode(request.answer()))
        if old and not strict and await status_or_error(context, name_of(path)) == -errno.ELOOP:
            raise RuntimeError(f"Symlink loop from {str(path)!r}")
        return path

    async def owner(self, *, follow_symlinks: bool = True) -> str:
        """As ``pathlib.Path.owner``: KeyError for a user without a name. A worker asks the user database. getpwuid_r(3)."""
        return await self._user(Call.OWNER, "getpwuid(): uid", follow_symlinks)

    async def group(self, *, follow_symlinks: bool = True) -> str:
        """As ``pathlib.Path.group``: KeyError for a group without a name. A worker asks the user database. getgrgid_r(3)."""
        return await self._user(Call.GROUP, "getgrgid(): gid", follow_symlinks)

    async def _user(self, call: Call, what: str, follow_symlinks: bool) -> str:
        request = UserName(call, Descriptor(AT_FDCWD, self), encoded(self), flags=0 if follow_symlinks else AT_SYMLINK_NOFOLLOW)
        await request_of(current_context(), request)
        if not request.result:
            raise KeyError(f"{what} not found: {request.record.number}")
        return os.fsdecode(request.answer())

    # ---- contents

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        direct: bool = False,
    ) -> FileOpener[Any]:
        """As ``pathlib.Path.open``: text by default. Returns what `open_aio` does: await it, or use it in ``async with``."""
        return open_aio(self, mode, buffering, encoding, errors, newline, direct=direct)

    @overload
    async def read_bytes(self, *, offset: int = 0, size: int = -1, into: None = None) -> bytes: ...
    @overload
    async def read_bytes(self, *, offset: int = 0, size: int = -1, into: WriteableBuffer) -> int: ...
    async def read_bytes(self, *, offset: int = 0, size: int = -1, into: WriteableBuffer | None = None) -> bytes | int:
        """As ``pathlib.Path.read_bytes``, and with the options of `trio_aio.read_bytes`."""
        if into is None:
            return await whole.read_bytes(self, offset=offset, size=size)
        return await whole.read_bytes(self, offset=offset, size=size, into=into)

    async def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        """As ``pathlib.Path.read_text``: `trio_aio.read_text`."""
        return await whole.read_text(self, encoding, errors, newline)

    async def write_bytes(
        self,
        data: ReadableBuffer,
        *,
        offset: int | None = None,
        append: bool = False,
        exclusive: bool = False,
        atomic: bool = False,
        durable: bool = False,
        mode: int = 0o666,
    ) -> int:
        """As ``pathlib.Path.write_bytes``, and with the options of `trio_aio.write_bytes`."""
        return await whole.write_bytes(
            self, data, offset=offset, append=append, exclusive=exclusive, atomic=atomic, durable=durable, mode=mode
        )

    async def write_text(
        self,
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
        """As ``pathlib.Path.write_text``, and with the options of `trio_aio.write_text`."""
        return await whole.write_text(
            self, data, encoding, errors, newline, append=append, exclusive=exclusive, atomic=atomic, durable=durable, mode=mode
        )

    # ---- changes

    async def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        """As ``pathlib.Path.touch``. utimensat(2), open(2)."""
        await change(current_context(), Call.TOUCH, name_of(self), mode=mode, flags=EXIST_OK if exist_ok else 0)

    async def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """As ``pathlib.Path.mkdir``, in one request. mkdirat(2)."""
        flags = (PARENTS if parents else 0) | (EXIST_OK if exist_ok else 0)
        await change(current_context(), Call.MKDIR, name_of(self), mode=mode, flags=flags)

    async def unlink(self, missing_ok: bool = False) -> None:
        """As ``pathlib.Path.unlink``. unlinkat(2)."""
        try:
            await change(current_context(), Call.UNLINK, name_of(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    async def rmdir(self) -> None:
        """As ``pathlib.Path.rmdir``. unlinkat(2)."""
        await change(current_context(), Call.UNLINK, name_of(self), flags=AT_REMOVEDIR)

    async def rename(self, target: str | os.PathLike[str]) -> Self:
        """As ``pathlib.Path.rename``. renameat(2)."""
        await os_calls.rename(self, target)
        return self._like(target)

    async def replace(self, target: str | os.PathLike[str]) -> Self:
        """As ``pathlib.Path.replace``. renameat(2)."""
        await os_calls.rename(self, target)
        return self._like(target)

    async def chmod(self, mode: int, *, follow_symlinks: bool = True) -> None:
        """As ``pathlib.Path.chmod``. fchmodat2(2)."""
        await os_calls.chmod(self, mode, follow_symlinks=follow_symlinks)

    async def lchmod(self, mode: int) -> None:
        """As ``pathlib.Path.lchmod``. fchmodat2(2)."""
        await os_calls.chmod(self, mode, follow_symlinks=False)

    async def symlink_to(self, target: str | bytes | os.PathLike[str] | os.PathLike[bytes], target_is_directory: bool = False) -> None:
        """As ``pathlib.Path.symlink_to``: this path is made, and points to `target`. symlinkat(2)."""
        await os_calls.symlink(target, self)

    async def hardlink_to(self, target: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> None:
        """As ``pathlib.Path.hardlink_to``: this path is made, and is the same file as `target`. linkat(2)."""
        await os_calls.link(target, self)

    # ---- copies and trees: calls of several requests, which can be cancelled between two

    async def copy(self, target: str | os.PathLike[str], *, follow_symlinks: bool = True, preserve_metadata: bool = False) -> Self:
        """As ``pathlib.Path.copy``: a file, a link, or a directory with all that is in it; returns the path of the copy.

        A file replaces an old one, whole: `copy_file`. A directory must not exist: `copy_tree`.
        """
        if await self._is(_stat.S_ISDIR, follow_symlinks):
            await copying.copy_tree(self, target, follow_symlinks=follow_symlinks, preserve_metadata=preserve_metadata)
        else:
            await copying.copy_file(self, target, follow_symlinks=follow_symlinks, preserve_metadata=preserve_metadata)
        return self._like(target)

    async def copy_into(self, target_dir: str | os.PathLike[str], *, follow_symlinks: bool = True, preserve_metadata: bool = False) -> Self:
        """As ``pathlib.Path.copy_into``: `copy` under the same name into a directory."""
        target = self._inside(target_dir)
        return await self.copy(target, follow_symlinks=follow_symlinks, preserve_metadata=preserve_metadata)

    async def move(self, target: str | os.PathLike[str]) -> Self:
        """As ``pathlib.Path.move``: renamed, or to another filesystem copied, with metadata, and then removed. Returns the new path."""
        try:
            return await self.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        moved = await self.copy(target, follow_symlinks=False, preserve_metadata=True)
        if await self._is(_stat.S_ISDIR, False):
            await self.remove_tree()
        else:
            await self.unlink()
        return moved

    async def move_into(self, target_dir: str | os.PathLike[str]) -> Self:
        """As ``pathlib.Path.move_into``: `move` under the same name into a directory."""
        return await self.move(self._inside(target_dir))

    def _inside(self, directory: str | os.PathLike[str]) -> Self:
        if not self.name:
            raise ValueError(f"{self!r} has an empty name")
        return self._like(directory, self.name)

    async def remove_tree(self, *, missing_ok: bool = False) -> int:
        """Remove this directory and all that is in it: `trio_aio.remove_tree`. Returns how many names were removed."""
        return await removing.remove_tree(self, missing_ok=missing_ok)

    # ---- listings

    def iterdir(self) -> Listing[Self]:
        """As ``pathlib.Path.iterdir``: a `Listing` of the paths in this directory. getdents64(2)."""
        make = self._child_maker()

        def children(listed: Listed, _: object) -> list[Any]:
            return [make(name, kind, target) for name, kind, target in zip(listed.names, listed.types, listed.targets, strict=True)]

        return Entries(name_of(self), children, None, targets=True)

    def glob(self, pattern: str | os.PathLike[str], *, case_sensitive: bool | None = None, recurse_symlinks: bool = False) -> Listing[Self]:
        """As ``pathlib.Path.glob`` of the running Python: a `Listing` of the same set of paths. Directories are read a few ahead.

        ValueError or NotImplementedError for a pattern that cannot be used, at the call.
        """
        return self._glob([], pattern, case_sensitive, recurse_symlinks)

    def rglob(
        self, pattern: str | os.PathLike[str], *, case_sensitive: bool | None = None, recurse_symlinks: bool = False
    ) -> Listing[Self]:
        """As ``pathlib.Path.rglob`` of the running Python: `glob` with ``**/`` in front of the pattern."""
        return self._glob(["**"], pattern, case_sensitive, recurse_symlinks)

    def _glob(
        self, parts: list[str], pattern: str | os.PathLike[str], case_sensitive: bool | None, recurse_symlinks: bool
    ) -> Listing[Self]:
        text = os.fspath(pattern)
        pure = pathlib.PurePosixPath(text)
        if pure.anchor:
            raise NotImplementedError("Non-relative patterns are unsupported")
        parts = [*parts, *pure.parts]
        if not parts:
            raise ValueError(f"Unacceptable pattern: {text!r}")
        if sys.version_info >= (3, 11) and text.endswith("/"):
            parts.append("")
        compiled = parts_of(parts, case_sensitive)
        make = self._child_maker()

        def found(path: bytes, kind: int, target: int) -> Any:
            return make(path, kind, target) if path else self

        return Glob(name_of(self), compiled, found, recurse_symlinks=recurse_symlinks)

    def walk(
        self, top_down: bool = True, on_error: Callable[[OSError], object] | None = None, follow_symlinks: bool = False
    ) -> Listing[tuple[Self, list[str], list[str]]]:
        """As ``pathlib.Path.walk``: a `Listing` of ``(path, dirnames, filenames)``. Directories are read a few ahead."""
        return Walk(
            name_of(self),
            self,
            lambda path, name: path / name,
            None,
            top_down=top_down,
            on_error=on_error,
            follow=follow_symlinks,
            links_are_directories=False,
        )

    def scandir(self, *, stat: bool = False) -> Listing[DirEntry]:
        """Return a `Listing` of the `DirEntry`s of this directory: `trio_aio.scandir`."""
        return scandir(self, stat=stat)

    def _child_maker(self) -> Any:
        """Return a function that makes a path of this class from what a listing has found below this one."""
        own = str(self)
        start = "" if own == "." else own if own.endswith("/") else own + "/"
        like = self._like

        def make(name: bytes, kind: int, target: int) -> Path:
            path = like(start + os.fsdecode(name))
            path._info = kind, target
            return path

        return make

    def _like(self, *segments: Any) -> Self:
        """Return a path of this class, as the pure operations do."""
        if sys.version_info >= (3, 12):
            return self.with_segments(*segments)
        return type(self)(*segments)
