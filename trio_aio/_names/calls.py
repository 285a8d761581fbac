"""What all calls on names share: how a path reaches the kernel, which lane answers, and how an error shows the path.

A call first asks the inline lane, which answers if the kernel has the name in memory (`_lanes.names`). Otherwise it makes one request, and
a worker serves it. Both ways are a checkpoint. Paths are encoded and checked before anything runs. `os_calls`, `path`, `listing` and the
other modules of this folder use these functions.
"""

from __future__ import annotations

import errno
import operator
import os
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Union

from trio_aio._arguments import checked_mode
from trio_aio._context.shared import usable_core
from trio_aio._engine.descriptor import Descriptor
from trio_aio._errors import os_call_error, os_error
from trio_aio._lanes.names import UNKNOWN
from trio_aio._requests.names import AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, AccessName, ChangeName, ReadLink, RealPath, StatName
from trio_aio._requests.opening import AT_FDCWD

if TYPE_CHECKING:
    from pathlib import PurePath

    from trio_aio._context.core import Core
    from trio_aio._requests.names import NameRequest

__all__ = (
    *(
        "AnyPath",
        "Name",
        "NamePath",
        "access_of",
        "all_encoded",
        "change",
        "changing",
        "encoded",
        "is_bytes",
        "link_of",
        "missing",
        "name_of",
        "own_type",
    ),
    *("real_path_of", "request_of", "stat_of", "status_of_path", "status_or_error"),
)

Guard = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]
NamePath = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]
AnyPath = Union[int, str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]

_ENOENT = -errno.ENOENT
_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()


class Name(NamedTuple):
    """A name as a call uses it."""

    dir: int
    """The descriptor that a relative path starts from, or that the call is for."""
    path: bytes | None
    """None: the call is for the descriptor `dir`."""
    shown: Any
    """As the caller passed it, for errors."""
    resolve: int = 0
    """More flags of openat2(2)."""
    guard: Guard | None = None
    """Makes a call while `dir` stays open, if that is a directory of ours."""


def encoded(path: NamePath, what: str = "path") -> bytes:
    """Return a path as the kernel takes it. ValueError for a null byte; TypeError."""
    plain = os.fsencode(path)
    if 0 in plain:
        raise ValueError(f"embedded null byte: {what} must not contain one, but is {path!r}")
    return plain


def all_encoded(paths: list[Any]) -> list[bytes]:
    """Return what `encoded` returns for each path, in fewer steps. ValueError, TypeError."""
    plain = [path.encode(_ENCODING, _ERRORS) if type(path) is str else encoded(path) for path in paths]
    return [encoded(path) for path in paths] if 0 in b"".join(plain) else plain


def name_of(path: AnyPath, dir_fd: int | None = None, *, may_be_fd: bool = True, follow_symlinks: bool = True) -> Name:
    """Return a path, or a descriptor where `may_be_fd`, as a call uses it. ValueError for what excludes a descriptor."""
    if isinstance(path, int):
        if not may_be_fd:
            raise TypeError(f"path must be str, bytes or os.PathLike, not {type(path).__name__}")
        if dir_fd is not None:
            raise ValueError("dir_fd must be None if path is a descriptor")
        if not follow_symlinks:
            raise ValueError("follow_symlinks must be True if path is a descriptor")
        # No negative descriptor is open. One of them, AT_FDCWD, would mean the working directory: but only as `dir_fd`, as in `os`.
        return Name(max(_checked_fd(path), -1), None, path)
    return Name(AT_FDCWD if dir_fd is None else _checked_fd(dir_fd), encoded(path), path)


def _checked_fd(fd: int) -> int:
    fd = operator.index(fd)
    if not -(1 << 31) <= fd < 1 << 31:
        raise OverflowError(f"a descriptor must fit 32 bits, and {fd} does not")
    return fd


def is_bytes(path: Any) -> bool:
    """Return whether what a call returns for a path is bytes, and not str: the path is bytes, or an ``os.PathLike`` that returns bytes."""
    return isinstance(path, bytes) or isinstance(getattr(path, "__fspath__", str)(), bytes)


def own_type(result: bytes, like: Any) -> Any:
    """Return bytes of the kernel as the type of the argument: bytes, or otherwise str."""
    return result if is_bytes(like) else os.fsdecode(result)


def missing(code: int) -> bool:
    """Return whether an errno, negative, says that there is no such name: as pathlib and ``os.path`` ignore it."""
    return code in (_ENOENT, -errno.ENOTDIR, -errno.EBADF, -errno.ELOOP)


async def status_or_error(core: Core, name: Name, *, follow_symlinks: bool = True) -> os.stat_result | int:
    """Return the status of a name, or a negative errno."""
    core.check()
    flags = 0 if follow_symlinks else AT_SYMLINK_NOFOLLOW
    if name.path is None:
        return await _status_by_worker(core, name, AT_EMPTY_PATH, UNKNOWN)
    backend, lane = core.backend, core.names
    assert backend is not None
    answer = 0
    if lane.on:
        await backend.checkpoint_if_cancelled()
        answer = lane.stat(name.dir, name.path, flags, name.resolve)
        if answer == 0:
            status = lane.status()
            await backend.cancel_shielded_checkpoint()
            return status
        if answer == _ENOENT:
            await backend.cancel_shielded_checkpoint()
            return answer
    return await _status_by_worker(core, name, flags, answer)


async def status_of_path(path: PurePath, flags: int = 0) -> os.stat_result | int:
    """Return the status of a path, or a negative errno: what `status_or_error` does, in fewer steps. ValueError for a null byte."""
    core = usable_core()
    text = str(path)  # which the path keeps
    if "\0" in text:
        encoded(path)  # ValueError
    plain = text.encode(_ENCODING, _ERRORS)
    lane, answer = core.names, 0
    if lane.on:
        backend: Any = core.backend
        await backend.checkpoint_if_cancelled()
        answer = lane.stat(AT_FDCWD, plain, flags)
        if answer == 0:
            status = lane.status()
            await backend.cancel_shielded_checkpoint()
            return status
        if answer == _ENOENT:
            await backend.cancel_shielded_checkpoint()
            return answer
    return await _status_by_worker(core, Name(AT_FDCWD, plain, path), flags, answer)


async def _status_by_worker(core: Core, name: Name, flags: int, answer: int) -> os.stat_result | int:
    """Let a worker find the status. answer: what the inline lane said, if it was asked."""
    lane = core.names
    probe = answer == UNKNOWN and name.path is not None and lane.should_probe()
    request = StatName(Descriptor(name.dir, name.shown), name.path, flags=flags, probe=int(probe), beneath=int(name.resolve != 0))
    try:
        await core.submit_and_wait(request)
    except OSError:
        return request.result
    lane.note_worker_succeeded()
    if probe:
        lane.note_probe(request.record.key, bool(request.record.slept))
    return request.status()


async def stat_of(core: Core, name: Name, *, follow_symlinks: bool = True) -> os.stat_result:
    """Return the status of a name. OSError."""
    status = await status_or_error(core, name, follow_symlinks=follow_symlinks)
    if isinstance(status, int):
        raise os_call_error(status, name.shown)
    return status


async def access_of(core: Core, name: Name, mode: int, flags: int) -> bool:
    """Return whether faccessat2(2) allows it. Errors are False, as with ``os.access``."""
    core.check()
    backend, lane = core.backend, core.names
    assert backend is not None
    if name.path is not None and lane.on:
        await backend.checkpoint_if_cancelled()
        answer = lane.access(name.dir, name.path, mode, flags)
        if answer in (0, _ENOENT, -errno.EACCES):
            await backend.cancel_shielded_checkpoint()
            return answer == 0
    request = AccessName(Descriptor(name.dir, name.shown), name.path, mode=mode, flags=flags)
    try:
        await core.submit_and_wait(request)
    except OSError:
        return False
    lane.note_worker_succeeded()
    return True


async def link_of(core: Core, name: Name) -> Any:
    """Return the target of a link, as the type of the argument. OSError."""
    core.check()
    backend, lane = core.backend, core.names
    assert backend is not None
    if name.path is not None and lane.on:
        await backend.checkpoint_if_cancelled()
        answer = lane.readlink(name.dir, name.path, name.resolve)
        if isinstance(answer, bytes) or answer in (_ENOENT, -errno.EINVAL):
            await backend.cancel_shielded_checkpoint()
            if isinstance(answer, bytes):
                return own_type(answer, name.shown)
            raise os_error(answer, name.shown)
    request = ReadLink(Descriptor(name.dir, name.shown), name.path, beneath=int(name.resolve != 0))
    await core.submit_and_wait(request)
    lane.note_worker_succeeded()
    return own_type(request.answer(), name.shown)


async def real_path_of(core: Core, path: NamePath, *, strict: bool, shown: object = None) -> Any:
    """Return a path without links, as the type of the argument. OSError. shown: for errors, in place of the path."""
    request = RealPath(Descriptor(AT_FDCWD, path if shown is None else shown), encoded(path), strict=strict)
    await core.submit_and_wait(request)
    return own_type(request.answer(), path)


async def request_of(core: Core, request: NameRequest) -> int:
    """Let a worker serve a request, and return its result. OSError."""
    return await core.submit_and_wait(request)


def changing(call: int, name: Name, second: Name | None = None, **fields: Any) -> ChangeName:
    """Return the request for a call on a name, or on two. ValueError for a negative mode."""
    if "mode" in fields:
        fields["mode"] = checked_mode(fields["mode"])
    beneath = 1 if name.resolve else 0
    if second is not None:
        fields.update(dir2=second.dir, filename2=second.shown)
        beneath |= 2 if second.resolve else 0
    request = ChangeName(call, Descriptor(name.dir, name.shown), name.path, None if second is None else second.path, **fields)
    request.record.beneath = beneath
    return request


async def change(core: Core, call: int, name: Name, second: Name | None = None, **fields: Any) -> None:
    """Let a worker make a call on a name, or on two. OSError with the names as they were passed. ValueError for a negative mode."""
    await core.submit_and_wait(changing(call, name, second, **fields))
