"""`Path`: a pure path with asynchronous calls, as ``pathlib.Path`` has them.

It is a ``pathlib.PurePosixPath``, so all pure operations, comparison, hashing and pickling are the running Python's. It is no
``pathlib.Path``: no method blocks. Each docstring names its model; what it does not say is as there. Calls that came with a later Python
are here on every Python.
"""

from __future__ import annotations

import os
import pathlib
import stat as _stat
import sys
from types import FunctionType
from typing import TYPE_CHECKING, Any, overload

from trio_aio._context.shared import current_core
from trio_aio._files import whole
from trio_aio._files.open import open_aio
from trio_aio._names import copying, os_calls, removing
from trio_aio._names.calls import change, name_of
from trio_aio._names.glob import Glob, parts_of
from trio_aio._names.listing import DirEntry, Entries, Listing, scandir
from trio_aio._names.path_questions import PathQuestions
from trio_aio._names.walk import Walk
from trio_aio._requests.names import AT_REMOVEDIR, EXIST_OK, PARENTS, Call

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import ReadableBuffer, WriteableBuffer
    from typing_extensions import Self

    from trio_aio._files.opener import FileOpener
    from trio_aio._requests.names import Listed

__all__ = ("Path",)


class Path(PathQuestions):
    """A path with asynchronous calls. As ``pathlib.Path``, except that what asks the filesystem is awaited.

    It is equal to a ``pathlib`` path of the same name, and has the same hash. It uses the run's shared context. Calls that only look are
    answered inline if the kernel has the name in memory; others go to workers. A call that raises Cancelled has changed no name;
    `copy` and `move` remove what they have made by then.
    """

    __slots__ = ()

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
        await change(current_core(), Call.TOUCH, name_of(self), mode=mode, flags=EXIST_OK if exist_ok else 0)

    async def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """As ``pathlib.Path.mkdir``, in one request. mkdirat(2)."""
        flags = (PARENTS if parents else 0) | (EXIST_OK if exist_ok else 0)
        await change(current_core(), Call.MKDIR, name_of(self), mode=mode, flags=flags)

    async def unlink(self, missing_ok: bool = False) -> None:
        """As ``pathlib.Path.unlink``. unlinkat(2)."""
        try:
            await change(current_core(), Call.UNLINK, name_of(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    async def rmdir(self) -> None:
        """As ``pathlib.Path.rmdir``. unlinkat(2)."""
        await change(current_core(), Call.UNLINK, name_of(self), flags=AT_REMOVEDIR)

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
        """As ``pathlib.Path.lchmod``: NotImplementedError for a link. fchmodat2(2)."""
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
        """As ``pathlib.Path.move``: renamed, or to another filesystem copied, with metadata, and then removed. Returns the new path.

        FIFOs, sockets and devices are made anew on another filesystem. ``shutil.SameFileError`` (EINVAL), and nothing changes, if this path
        and `target` are the same file: one path, hard links, or a link and what it leads to.
        """
        await copying.move(self, target)
        return self._like(target)

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
            return [make(name, kind, target) for name, kind, target in zip(listed.texts(), listed.types, listed.targets, strict=True)]

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
        if "\0" in text:
            raise ValueError(f"embedded null byte: pattern must not contain one, but is {text!r}")
        if pure.anchor:
            raise NotImplementedError("Non-relative patterns are unsupported")
        parts = [*parts, *pure.parts]
        if not parts:
            raise ValueError(f"Unacceptable pattern: {text!r}")
        # Since 3.13, "**" alone also matches files, and an empty pattern behind it still matches directories only.
        if sys.version_info >= (3, 11) and (text.endswith("/") or not text):
            parts.append("")
        compiled = parts_of(parts, case_sensitive)
        make = self._child_maker()

        def found(path: str, kind: int, target: int) -> Any:
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
        if sys.version_info < (3, 12) or type(self).with_segments is pathlib.PurePath.with_segments:
            like = type(self)  # the same, in fewer steps

        def make(name: str, kind: int, target: int) -> Path:
            path = like(start + name)
            path._info = kind, target
            return path

        return make


# What lies in a base class only for its length is shown as users know it.
for _name, _call in vars(PathQuestions).items():
    _function = getattr(_call, "__func__", _call)
    if isinstance(_function, FunctionType):
        _function.__qualname__ = f"Path.{_name}"
