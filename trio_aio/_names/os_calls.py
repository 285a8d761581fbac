"""The functions of `trio_aio.os`: those of the ``os`` module that use names, with its parameters, results and errors.

Each docstring names its model; what it does not say is as there. `calls.py` says which lane serves a call, and what becomes of a cancelled
one. A call of several steps (`makedirs`, `removedirs`, `renames`) is one request. Users call these functions as ``trio_aio.os.stat`` and
so on.
"""

from __future__ import annotations

import errno
import math
import operator
import os
from typing import TYPE_CHECKING, Any, TypeVar

from trio_aio._arguments import checked_mode, checked_offset, checked_size
from trio_aio._context.shared import checked_core
from trio_aio._engine.descriptor import Descriptor
from trio_aio._errors import os_error
from trio_aio._memory.exports import export_buffer
from trio_aio._names.calls import access_of, change, encoded, link_of, name_of, request_of, stat_of
from trio_aio._requests.names import (
    AT_REMOVEDIR,
    AT_SYMLINK_FOLLOW,
    AT_SYMLINK_NOFOLLOW,
    EXIST_OK,
    PARENTS,
    UPWARDS,
    Attribute,
    Call,
    ChangeName,
    StatVFS,
    SyncName,
)

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from trio_aio._context.context import AIOContext
    from trio_aio._context.core import Core
    from trio_aio._names.calls import AnyPath, Name, NamePath

__all__ = (
    *("access", "chmod", "chown", "getcwd", "getxattr", "lchown", "link", "listxattr", "lstat", "makedirs", "mkdir", "mkfifo", "mknod"),
    *("readlink", "remove", "removedirs", "removexattr", "rename", "renames", "replace", "rmdir", "setxattr", "stat", "statvfs"),
    *("symlink", "sync_directory", "truncate", "unlink", "utime"),
)

_AnyStr = TypeVar("_AnyStr", str, bytes)

AT_EACCESS = 0x200  # linux/fcntl.h: the same bit as AT_REMOVEDIR, for another call
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2  # linux/fs.h
_NOT_GIVEN: Any = ...
_XATTR_FIRST, _XATTR_MOST = 256, 1 << 16  # bytes: the kernel has no larger attribute


# ---- looking


async def stat(
    path: AnyPath, *, dir_fd: int | None = None, follow_symlinks: bool = True, context: AIOContext | None = None
) -> os.stat_result:
    """As ``os.stat``. Inline if the kernel has the name in memory. statx(2)."""
    return await stat_of(checked_core(context), name_of(path, dir_fd, follow_symlinks=follow_symlinks), follow_symlinks=follow_symlinks)


async def lstat(path: NamePath, *, dir_fd: int | None = None, context: AIOContext | None = None) -> os.stat_result:
    """As ``os.lstat``. Inline if the kernel has the name in memory. statx(2)."""
    return await stat_of(checked_core(context), name_of(path, dir_fd, may_be_fd=False), follow_symlinks=False)


async def access(
    path: NamePath,
    mode: int,
    *,
    dir_fd: int | None = None,
    effective_ids: bool = False,
    follow_symlinks: bool = True,
    context: AIOContext | None = None,
) -> bool:
    """As ``os.access``. Inline if the kernel has the name in memory. faccessat2(2)."""
    flags = (AT_EACCESS if effective_ids else 0) | (0 if follow_symlinks else AT_SYMLINK_NOFOLLOW)
    return await access_of(checked_core(context), name_of(path, dir_fd, may_be_fd=False), checked_mode(mode), flags)


async def readlink(path: NamePath, *, dir_fd: int | None = None, context: AIOContext | None = None) -> Any:
    """As ``os.readlink``: the target, str or bytes as `path`. Inline if the kernel has the name in memory. readlinkat(2)."""
    return await link_of(checked_core(context), name_of(path, dir_fd, may_be_fd=False))


async def getcwd(*, context: AIOContext | None = None) -> str:
    """As ``os.getcwd``. The kernel has the answer in memory. getcwd(2)."""
    await checked_core(context).checkpoint()
    return os.getcwd()


async def statvfs(path: AnyPath, *, context: AIOContext | None = None) -> os.statvfs_result:
    """As ``os.statvfs``. A worker asks: the filesystem may be on a server. fstatvfs(3)."""
    name = name_of(path)
    request = StatVFS(Descriptor(name.dir, name.shown), name.path)
    await request_of(checked_core(context), request)
    return request.status()


# ---- changes


async def mkdir(path: NamePath, mode: int = 0o777, *, dir_fd: int | None = None, context: AIOContext | None = None) -> None:
    """As ``os.mkdir``. mkdirat(2)."""
    await _change(context, Call.MKDIR, name_of(path, dir_fd, may_be_fd=False), mode=mode)


async def makedirs(name: NamePath, mode: int = 0o777, exist_ok: bool = False, *, context: AIOContext | None = None) -> None:
    """As ``os.makedirs``, in one request. An error names the directory that could not be made. mkdirat(2)."""
    flags = PARENTS | UPWARDS | (EXIST_OK if exist_ok else 0)
    await _change(context, Call.MKDIR, name_of(name, may_be_fd=False), mode=mode, flags=flags)


async def rmdir(path: NamePath, *, dir_fd: int | None = None, context: AIOContext | None = None) -> None:
    """As ``os.rmdir``. unlinkat(2) with AT_REMOVEDIR."""
    await _change(context, Call.UNLINK, name_of(path, dir_fd, may_be_fd=False), flags=AT_REMOVEDIR)


async def removedirs(name: NamePath, *, context: AIOContext | None = None) -> None:
    """As ``os.removedirs``, in one request: then its parents are removed as long as they are empty. unlinkat(2)."""
    await _change(context, Call.REMOVEDIRS, name_of(name, may_be_fd=False))


async def unlink(path: NamePath, *, dir_fd: int | None = None, context: AIOContext | None = None) -> None:
    """As ``os.unlink``. unlinkat(2)."""
    await _change(context, Call.UNLINK, name_of(path, dir_fd, may_be_fd=False))


async def remove(path: NamePath, *, dir_fd: int | None = None, context: AIOContext | None = None) -> None:
    """As ``os.remove``: the same as `unlink`."""
    await unlink(path, dir_fd=dir_fd, context=context)


async def rename(
    src: NamePath,
    dst: NamePath,
    *,
    src_dir_fd: int | None = None,
    dst_dir_fd: int | None = None,
    exclusive: bool = False,
    exchange: bool = False,
    context: AIOContext | None = None,
) -> None:
    """As ``os.rename``. renameat2(2).

    exclusive: FileExistsError if `dst` exists (RENAME_NOREPLACE). exchange: swap two names that both exist (RENAME_EXCHANGE). Only one of
    them may be set: ValueError. OSError (EINVAL) where the filesystem has none.
    """
    if exclusive and exchange:
        raise ValueError("exclusive and exchange must not both be True")
    flags = RENAME_NOREPLACE if exclusive else RENAME_EXCHANGE if exchange else 0
    first, second = name_of(src, src_dir_fd, may_be_fd=False), name_of(dst, dst_dir_fd, may_be_fd=False)
    await _change(context, Call.RENAME, first, second, flags=flags)


async def replace(
    src: NamePath,
    dst: NamePath,
    *,
    src_dir_fd: int | None = None,
    dst_dir_fd: int | None = None,
    context: AIOContext | None = None,
) -> None:
    """As ``os.replace``. renameat(2)."""
    await rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, context=context)


async def renames(old: NamePath, new: NamePath, *, context: AIOContext | None = None) -> None:
    """As ``os.renames``, in one request: makes the parents of `new`, and removes those of `old` that became empty."""
    await _change(context, Call.RENAMES, name_of(old, may_be_fd=False), name_of(new, may_be_fd=False))


async def link(
    src: NamePath,
    dst: NamePath,
    *,
    src_dir_fd: int | None = None,
    dst_dir_fd: int | None = None,
    follow_symlinks: bool = True,
    context: AIOContext | None = None,
) -> None:
    """As ``os.link``: without a `dir_fd` a symbolic link is not followed on Linux, whatever `follow_symlinks` says. linkat(2)."""
    first, second = name_of(src, src_dir_fd, may_be_fd=False), name_of(dst, dst_dir_fd, may_be_fd=False)
    follow = follow_symlinks and (src_dir_fd is not None or dst_dir_fd is not None)
    await _change(context, Call.LINK, first, second, flags=AT_SYMLINK_FOLLOW if follow else 0)


async def symlink(
    src: NamePath,
    dst: NamePath,
    target_is_directory: bool = False,
    *,
    dir_fd: int | None = None,
    context: AIOContext | None = None,
) -> None:
    """As ``os.symlink``: `dst` is made, and points to `src`. symlinkat(2)."""
    made, target = name_of(dst, dir_fd, may_be_fd=False), name_of(src, may_be_fd=False)
    # The error has the names in the order of the arguments.
    await _change(context, Call.SYMLINK, made._replace(shown=src), target._replace(shown=dst))


async def chmod(
    path: AnyPath, mode: int, *, dir_fd: int | None = None, follow_symlinks: bool = True, context: AIOContext | None = None
) -> None:
    """As ``os.chmod``: a link itself has no mode, NotImplementedError. fchmodat2(2)."""
    flags = 0 if follow_symlinks or isinstance(path, int) else AT_SYMLINK_NOFOLLOW
    try:
        await _change(context, Call.CHMOD, name_of(path, dir_fd), mode=mode, flags=flags)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP or not flags:
            raise
        if dir_fd is not None:
            raise ValueError("chmod: cannot use dir_fd and follow_symlinks together on a link") from None
        raise NotImplementedError("chmod: follow_symlinks unavailable on this platform: a link has no mode") from None


async def chown(
    path: AnyPath, uid: int, gid: int, *, dir_fd: int | None = None, follow_symlinks: bool = True, context: AIOContext | None = None
) -> None:
    """As ``os.chown``; -1 leaves an id as it is. fchownat(2)."""
    for what, number in (("uid", uid), ("gid", gid)):
        if not -1 <= number < 1 << 32:
            raise OverflowError(f"{what} must be from -1 to 2**32 - 1, not {number}")
    flags, name = 0 if follow_symlinks else AT_SYMLINK_NOFOLLOW, name_of(path, dir_fd, follow_symlinks=follow_symlinks)
    await _change(context, Call.CHOWN, name, flags=flags, uid=uid & 0xFFFFFFFF, gid=gid & 0xFFFFFFFF)


async def lchown(path: NamePath, uid: int, gid: int, *, context: AIOContext | None = None) -> None:
    """As ``os.lchown``: `chown` that does not follow a link."""
    await chown(path, uid, gid, follow_symlinks=False, context=context)


async def utime(
    path: AnyPath,
    times: tuple[float, float] | None = None,
    *,
    ns: tuple[int, int] = _NOT_GIVEN,
    dir_fd: int | None = None,
    follow_symlinks: bool = True,
    context: AIOContext | None = None,
) -> None:
    """As ``os.utime``: sets the times of access and modification, to now by default. utimensat(2)."""
    if ns is None:  # `os` takes None for `times` only
        raise TypeError("ns must be a tuple of two numbers, not None")
    fields = time_fields(times, None if ns is _NOT_GIVEN else ns)
    name = name_of(path, dir_fd, follow_symlinks=follow_symlinks)
    await _change(context, Call.UTIME, name, flags=0 if follow_symlinks else AT_SYMLINK_NOFOLLOW, **fields)


def time_fields(times: tuple[float, float] | None, ns: tuple[int, int] | None) -> dict[str, Any]:
    """Return the times of ``os.utime`` as fields of a request. ValueError, TypeError."""
    if times is not None and ns is not None:
        raise ValueError("times and ns must not both be given")
    fields: dict[str, Any] = {}
    if ns is not None:
        fields["times"] = [part for each in _pair(ns, "ns") for part in divmod(operator.index(each), 10**9)]
    elif times is not None:
        fields["times"] = [part for each in _pair(times, "times") for part in _seconds(each)]
    else:
        fields["number"] = 1
    return fields


def _pair(values: Any, what: str) -> Any:
    if not isinstance(values, tuple) or len(values) != 2:
        raise TypeError(f"{what} must be a tuple of two numbers, not {values!r}")
    return values


def _seconds(value: float) -> tuple[int, int]:
    """Return seconds and nanoseconds of a time, rounded down as ``os.utime`` does."""
    if isinstance(value, int):
        return value, 0
    fraction, seconds = math.modf(value)
    nanoseconds = math.floor(fraction * 1e9)
    return (int(seconds) - 1, nanoseconds + 10**9) if nanoseconds < 0 else (int(seconds), nanoseconds)


async def truncate(path: AnyPath, length: int, *, context: AIOContext | None = None) -> None:
    """As ``os.truncate``. truncate(2)."""
    used, name = checked_core(context), name_of(path)
    request = ChangeName(Call.TRUNCATE, Descriptor(name.dir, name.shown), name.path, number=checked_offset(length))
    try:
        await used.submit_and_wait(request)
    finally:
        changed = request.record.stat
        if used.engine is not None and changed.mode:
            device = os.major(changed.device) << 32 | os.minor(changed.device)
            used.engine.files.note_change(device, changed.inode, cut=length if request.result == 0 else None)


async def mkfifo(path: NamePath, mode: int = 0o666, *, dir_fd: int | None = None, context: AIOContext | None = None) -> None:
    """As ``os.mkfifo``. mknodat(2)."""
    await _change(context, Call.MKNOD, name_of(path, dir_fd, may_be_fd=False), mode=checked_mode(mode) | 0o010000)


async def mknod(
    path: NamePath, mode: int = 0o600, device: int = 0, *, dir_fd: int | None = None, context: AIOContext | None = None
) -> None:
    """As ``os.mknod``. mknodat(2)."""
    await _change(context, Call.MKNOD, name_of(path, dir_fd, may_be_fd=False), mode=mode, number=checked_size(device, "device"))


async def sync_directory(path: AnyPath, *, context: AIOContext | None = None) -> None:
    """Make the names in a directory durable: what was made, renamed and removed there before. fsync(2).

    OSError (ENOTDIR) if it is no directory.
    """
    name = name_of(path)
    await request_of(checked_core(context), SyncName(Descriptor(name.dir, name.shown), name.path))


# ---- extended attributes


async def getxattr(path: AnyPath, attribute: str | bytes, *, follow_symlinks: bool = True, context: AIOContext | None = None) -> bytes:
    """As ``os.getxattr``. getxattr(2)."""
    name, key = name_of(path, follow_symlinks=follow_symlinks), encoded(attribute, "attribute")
    return await _read_attribute(checked_core(context), Call.GETXATTR, name, key, follow_symlinks)


async def listxattr(path: AnyPath | None = None, *, follow_symlinks: bool = True, context: AIOContext | None = None) -> list[str]:
    """As ``os.listxattr``; None: the working directory. listxattr(2)."""
    name = name_of("." if path is None else path, follow_symlinks=follow_symlinks)
    names = await _read_attribute(checked_core(context), Call.LISTXATTR, name, None, follow_symlinks)
    return [os.fsdecode(name) for name in names.split(b"\0")[:-1]]


async def setxattr(
    path: AnyPath,
    attribute: str | bytes,
    value: ReadableBuffer,
    flags: int = 0,
    *,
    follow_symlinks: bool = True,
    context: AIOContext | None = None,
) -> None:
    """As ``os.setxattr``; flags: ``os.XATTR_CREATE`` or ``os.XATTR_REPLACE``. setxattr(2)."""
    core = checked_core(context)
    name = name_of(path, follow_symlinks=follow_symlinks)
    await request_of(core, _setting(name, encoded(attribute, "attribute"), value, flags, follow_symlinks))


def _setting(name: Name, key: bytes, value: ReadableBuffer, flags: int, follow_symlinks: bool) -> ChangeName:
    """Return a request that sets an attribute. It alone holds the value, until it has ended."""
    export = export_buffer(value, writable=False)
    return ChangeName(
        Call.SETXATTR,
        Descriptor(name.dir, name.shown),
        name.path,
        key,
        memory=export.held,
        capacity=export.length,
        number=checked_mode(flags, "flags"),
        flags=0 if follow_symlinks else AT_SYMLINK_NOFOLLOW,
    )


async def removexattr(path: AnyPath, attribute: str | bytes, *, follow_symlinks: bool = True, context: AIOContext | None = None) -> None:
    """As ``os.removexattr``. removexattr(2)."""
    name, key = name_of(path, follow_symlinks=follow_symlinks), encoded(attribute, "attribute")
    request = ChangeName(
        Call.REMOVEXATTR,
        Descriptor(name.dir, name.shown),
        name.path,
        key,
        flags=0 if follow_symlinks else AT_SYMLINK_NOFOLLOW,
    )
    await request_of(checked_core(context), request)


async def _read_attribute(core: Core, call: int, name: Name, key: bytes | None, follow_symlinks: bool) -> bytes:
    """Return the value of an attribute, or the names of all. A larger one than usual takes a second request."""
    flags = 0 if follow_symlinks else AT_SYMLINK_NOFOLLOW
    for capacity in (_XATTR_FIRST, _XATTR_MOST):
        request = Attribute(call, Descriptor(name.dir, name.shown), name.path, key, capacity=capacity, flags=flags)
        try:
            await request_of(core, request)
        except OSError as error:
            if error.errno == errno.ERANGE and capacity < _XATTR_MOST:
                continue
            raise
        return request.answer()
    raise os_error(errno.E2BIG, name.shown)


async def _change(context: AIOContext | None, call: int, name: Name, second: Name | None = None, **fields: Any) -> None:
    await change(checked_core(context), call, name, second, **fields)
