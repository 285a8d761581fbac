"""The functions of `trio_aio.os.path`: those of ``os.path`` that ask the filesystem. Each docstring names its model.

All but `realpath` are answered inline if the kernel has the name in memory: see `calls.py`.
"""

from __future__ import annotations

import os
import stat as _stat
from typing import TYPE_CHECKING, Any

# With an underscore: what this module imports is not a part of `trio_aio.os.path`.
from trio_aio._context import shared as _shared
from trio_aio._names import calls as _calls

if TYPE_CHECKING:
    from trio_aio._context.context import AIOContext
    from trio_aio._names.calls import AnyPath, NamePath

__all__ = (
    *("abspath", "exists", "getatime", "getctime", "getmtime", "getsize", "isdir", "isfile", "islink", "ismount", "lexists", "realpath"),
    *("samefile", "sameopenfile"),
)


# It asks the kernel for the working directory at most, which is in memory.
_abspath = os.path.abspath


async def _status(
    path: AnyPath, context: AIOContext | None, *, follow_symlinks: bool = True, may_be_fd: bool = True
) -> os.stat_result | None:
    """Return the status of a name; None after any error, and for a path that cannot be one (a null byte)."""
    used = _shared.checked_core(context)
    try:
        name = _calls.name_of(path, may_be_fd=may_be_fd)
    except ValueError:
        await used.checkpoint()
        return None
    status = await _calls.status_or_error(used, name, follow_symlinks=follow_symlinks)
    return None if isinstance(status, int) else status


async def exists(path: AnyPath, *, context: AIOContext | None = None) -> bool:
    """As ``os.path.exists``."""
    return await _status(path, context) is not None


async def lexists(path: NamePath, *, context: AIOContext | None = None) -> bool:
    """As ``os.path.lexists``."""
    return await _status(path, context, follow_symlinks=False, may_be_fd=False) is not None


async def isfile(path: AnyPath, *, context: AIOContext | None = None) -> bool:
    """As ``os.path.isfile``."""
    status = await _status(path, context)
    return status is not None and _stat.S_ISREG(status.st_mode)


async def isdir(s: AnyPath, *, context: AIOContext | None = None) -> bool:
    """As ``os.path.isdir``."""
    status = await _status(s, context)
    return status is not None and _stat.S_ISDIR(status.st_mode)


async def islink(path: NamePath, *, context: AIOContext | None = None) -> bool:
    """As ``os.path.islink``."""
    status = await _status(path, context, follow_symlinks=False, may_be_fd=False)
    return status is not None and _stat.S_ISLNK(status.st_mode)


async def ismount(path: NamePath, *, context: AIOContext | None = None) -> bool:
    """As ``os.path.ismount``."""
    status = await _status(path, context, follow_symlinks=False, may_be_fd=False)
    if status is None or _stat.S_ISLNK(status.st_mode):
        return False
    plain: Any = os.fspath(path)
    above = await _status(os.path.join(plain, b".." if isinstance(plain, bytes) else ".."), context, follow_symlinks=False)
    return above is not None and (status.st_dev != above.st_dev or status.st_ino == above.st_ino)


async def getsize(filename: AnyPath, *, context: AIOContext | None = None) -> int:
    """As ``os.path.getsize``: bytes."""
    return (await _calls.stat_of(_shared.checked_core(context), _calls.name_of(filename))).st_size


async def getmtime(filename: AnyPath, *, context: AIOContext | None = None) -> float:
    """As ``os.path.getmtime``: seconds since the epoch."""
    return (await _calls.stat_of(_shared.checked_core(context), _calls.name_of(filename))).st_mtime


async def getatime(filename: AnyPath, *, context: AIOContext | None = None) -> float:
    """As ``os.path.getatime``: seconds since the epoch."""
    return (await _calls.stat_of(_shared.checked_core(context), _calls.name_of(filename))).st_atime


async def getctime(filename: AnyPath, *, context: AIOContext | None = None) -> float:
    """As ``os.path.getctime``: seconds since the epoch."""
    return (await _calls.stat_of(_shared.checked_core(context), _calls.name_of(filename))).st_ctime


async def samefile(f1: AnyPath, f2: AnyPath, *, context: AIOContext | None = None) -> bool:
    """As ``os.path.samefile``."""
    used = _shared.checked_core(context)
    return os.path.samestat(await _calls.stat_of(used, _calls.name_of(f1)), await _calls.stat_of(used, _calls.name_of(f2)))


async def sameopenfile(fp1: int, fp2: int, *, context: AIOContext | None = None) -> bool:
    """As ``os.path.sameopenfile``."""
    return await samefile(fp1, fp2, context=context)


async def abspath(path: NamePath, *, context: AIOContext | None = None) -> Any:
    """As ``os.path.abspath``: str or bytes as `path`."""
    await _shared.checked_core(context).checkpoint()
    return _abspath(path)


async def realpath(filename: NamePath, *, strict: bool = False, context: AIOContext | None = None) -> Any:
    """As ``os.path.realpath``: str or bytes as `filename`. A worker follows the links, in one request. readlink(2)."""
    return await _calls.real_path_of(_shared.checked_core(context), filename, strict=strict)
