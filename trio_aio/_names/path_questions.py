"""What a `Path` asks without changing anything: what a name is, whose it is, and which other paths it stands for."""

from __future__ import annotations

import errno
import os
import pathlib
import stat as _stat
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from trio_aio._context.shared import current_core
from trio_aio._engine.descriptor import Descriptor
from trio_aio._errors import os_error
from trio_aio._names import os_path
from trio_aio._names.calls import encoded, link_of, missing, name_of, request_of, stat_of, status_of_path, status_or_error
from trio_aio._names.info import PathInfo
from trio_aio._requests.names import AT_SYMLINK_NOFOLLOW, Call, RealPath, UserName
from trio_aio._requests.opening import AT_FDCWD

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

__all__ = ("PathQuestions",)


class PathQuestions(pathlib.PurePosixPath):
    """The calls of `Path` that only look."""

    __slots__ = ("_info",)

    if TYPE_CHECKING:
        _info: tuple[int, int]

    # ---- looking

    async def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """As ``pathlib.Path.stat``. statx(2)."""
        status = await status_of_path(self, 0 if follow_symlinks else AT_SYMLINK_NOFOLLOW)
        if isinstance(status, int):
            raise os_error(status, self)
        return status

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
        await current_core().checkpoint()
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
        core = current_core()
        return os.path.samestat(await stat_of(core, name_of(self)), await stat_of(core, name_of(other_path)))

    async def readlink(self) -> Self:
        """As ``pathlib.Path.readlink``. readlinkat(2)."""
        return self._like(await link_of(current_core(), name_of(self)))

    async def _mode(self, follow_symlinks: bool = True) -> int | None:
        """Return the mode; None if there is no such name, by the errors that the running Python takes for that."""
        try:
            status = await status_of_path(self, 0 if follow_symlinks else AT_SYMLINK_NOFOLLOW)
        except ValueError:
            await current_core().checkpoint()
            return None
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
        await current_core().checkpoint()
        return self if self.is_absolute() else self._like(os.getcwd(), self)

    @classmethod
    async def cwd(cls) -> Self:
        """As ``pathlib.Path.cwd``. getcwd(2)."""
        await current_core().checkpoint()
        return cls(os.getcwd())

    @classmethod
    async def home(cls) -> Self:
        """As ``pathlib.Path.home``."""
        return await cls("~").expanduser()

    @classmethod
    def from_uri(cls, uri: str) -> Self:
        """As ``pathlib.Path.from_uri``: the path of a ``file:`` URI. ValueError for another. It is not awaited."""
        if not uri.startswith("file:"):
            raise ValueError(f"URI must start with 'file:', but is {uri!r}")
        rest, host = uri.removeprefix("file:"), ""
        if rest.startswith("//"):
            host, slash, rest = rest[2:].partition("/")
            rest = slash + rest
        path = os.fsdecode(unquote_to_bytes(rest))
        if host not in ("", "localhost") or not path.startswith("/"):
            raise ValueError(f"URI must have an absolute path on this host, but is {uri!r}")
        return cls(path)

    async def expanduser(self) -> Self:
        """As ``pathlib.Path.expanduser``: RuntimeError if there is no such user. A worker asks the user database. getpwnam_r(3)."""
        core = current_core()
        parts = self.parts
        if not parts or parts[0][:1] != "~":
            await core.checkpoint()
            return self
        user = parts[0][1:]
        home = os.environ.get("HOME") if not user else None
        if home is None:
            request = UserName(Call.HOME, Descriptor(AT_FDCWD, self), encoded(user))
            await request_of(core, request)
            home = os.fsdecode(request.answer())
            if not home:
                raise RuntimeError("Could not determine home directory.")
        else:
            await core.checkpoint()
        return self._like(home.rstrip("/") or "/", *parts[1:])

    async def resolve(self, strict: bool = False) -> Self:
        """As ``pathlib.Path.resolve``. A worker follows the links, in one request. A loop is the running Python's error."""
        core = current_core()
        request = RealPath(Descriptor(AT_FDCWD, str(self)), encoded(self), strict=strict)
        old = sys.version_info < (3, 13)
        try:
            await request_of(core, request)
        except OSError as error:
            if old and error.errno == errno.ELOOP:
                raise RuntimeError(f"Symlink loop from {error.filename!r}") from None
            raise
        path = self._like(os.fsdecode(request.answer()))
        if old and not strict and await status_or_error(core, name_of(path)) == -errno.ELOOP:
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
        await request_of(current_core(), request)
        if not request.result:
            raise KeyError(f"{what} not found: {request.record.number}")
        return os.fsdecode(request.answer())

    def _like(self, *segments: Any) -> Self:
        """Return a path of this class, as the pure operations do."""
        if sys.version_info >= (3, 12):
            return self.with_segments(*segments)
        return type(self)(*segments)
