"""`copy_file` and `copy_tree`.

A file is copied in requests of at most 64 MiB, and its name appears when all of it is there. A tree is copied a directory at a time: its
directories are made first, and several of its files are then copied at once. Without `exist_ok` all is made under a temporary name beside
the target, and renamed at the end. Whatever ends a copy early, an error or a cancellation, removes what was made, and no cancellation
stops that.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
import stat
from collections import deque
from typing import TYPE_CHECKING, Any

from trio_aio._bulk.waiting import checked_depth, wait_shielded
from trio_aio._engine.descriptor import Descriptor, kind_of
from trio_aio._errors import os_error
from trio_aio._names.calls import change, checked_context, encoded, name_of, real_path_of, request_of, status_or_error
from trio_aio._names.listing import DT_DIR, DT_LNK
from trio_aio._names.os_calls import RENAME_NOREPLACE
from trio_aio._names.removing import remove_tree
from trio_aio._names.tree import AHEAD, Node, TreeReader, join
from trio_aio._requests.contents import DURABLE, EXCLUSIVE, FOLLOW, PRESERVE, AbandonCopy, CopyMetadata, CopyName, CopyState
from trio_aio._requests.names import EXIST_OK, Call
from trio_aio._requests.opening import AT_FDCWD

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_aio._context.context import AIOContext
    from trio_aio._names.calls import NamePath

__all__ = ("copy_file", "copy_tree")

_DT_SOCK = 12


async def copy_file(
    source: NamePath,
    target: NamePath,
    *,
    follow_symlinks: bool = True,
    preserve_metadata: bool = False,
    exclusive: bool = False,
    durable: bool = False,
    context: AIOContext | None = None,
) -> int:
    """Copy a regular file, and return the number of bytes. FICLONE, copy_file_range(2), otherwise read(2) and write(2).

    The target appears whole, as with an atomic write, and holes stay holes. preserve_metadata: mode, times and extended attributes too.
    exclusive: FileExistsError if the target exists. durable: on return data and name are on the disk. follow_symlinks: False copies a link
    itself. Cancelled between two requests of 64 MiB, or failed: nothing remains.
    ``io.UnsupportedOperation`` for what is neither a regular file nor a link, without opening it; ``shutil.SameFileError``; OSError.
    """
    used = checked_context(context)
    flags = _flags(follow_symlinks, preserve_metadata, exclusive) | (DURABLE if durable else 0)
    name, second = encoded(source, "source"), encoded(target, "target")
    copy = CopyState()
    descriptor = Descriptor(AT_FDCWD, source)
    try:
        while await request_of(used, CopyName(descriptor, name, second, copy, filename2=target, dir2=AT_FDCWD, flags=flags)):
            pass
    except OSError as error:
        raise _explained(error, copy) from None
    finally:
        await _give_up(used, copy)
    return copy.copied


def _flags(follow_symlinks: bool, preserve_metadata: bool, exclusive: bool) -> int:
    return (FOLLOW if follow_symlinks else 0) | (PRESERVE if preserve_metadata else 0) | (EXCLUSIVE if exclusive else 0)


def _explained(error: OSError, copy: CopyState) -> BaseException:
    """Return the error as the caller should see it."""
    if error.errno == errno.EALREADY:
        return shutil.SameFileError(f"{error.filename!r} and {error.filename2!r} are the same file")
    if error.errno == errno.EOPNOTSUPP and stat.S_ISREG(copy.mode):
        return io.UnsupportedOperation(f"only regular files are replaced, and {error.filename!r} is of another kind")
    if error.errno == errno.EOPNOTSUPP and copy.mode:
        return io.UnsupportedOperation(f"only regular files are copied, and {error.filename!r} is {kind_of(copy.mode)}")
    return error


async def _give_up(context: AIOContext, copy: CopyState) -> None:
    """Remove what a copy has made that is not complete, also in a cancelled scope."""
    if not copy.is_open:
        return
    backend = context._backend
    assert backend is not None
    with backend.shielded():
        await request_of(context, AbandonCopy(Descriptor(AT_FDCWD), copy))


class _TreeCopy:
    """The copy of one tree to a directory, `root`, that exists."""

    def __init__(self, context: AIOContext, source: Any, root: bytes, target: Any, flags: int, depth: int, on_error: Any) -> None:
        self._context: AIOContext = context
        self._source: bytes = os.fsencode(source)
        self._root: bytes = root
        self._target: bytes = os.fsencode(target)
        self._flags: int = flags
        self._depth: int = depth
        self._on_error: Callable[[OSError], object] | None = on_error
        self._follow: bool = bool(flags & FOLLOW)
        self._reader: TreeReader = TreeReader(context, name_of(source, may_be_fd=False), targets=self._follow, no_links=not self._follow)
        self._stack: list[Node] = [Node(b"", source)]
        # Directories whose times and modes are set in the end, when nothing is made in them any more.
        self._directories: list[bytes] = []
        self._copying: deque[CopyName] = deque()
        self.made: int = 0

    async def run(self) -> None:
        """Copy all. OSError unless `on_error` takes it."""
        await self._reader.open()
        try:
            while self._stack:
                self._reader.read_ahead(self._stack[: -AHEAD - 1 : -1])
                await self._enter(self._stack.pop())
            while self._copying:
                await self._finish_one()
            if self._flags & PRESERVE:
                for path in reversed(self._directories):
                    await self._preserve(path)
        finally:
            self._reader.release()
            await self._give_up_all()

    async def _enter(self, node: Node) -> None:
        try:
            parts = await self._reader.read(node)
        except OSError as error:
            self._report(error)
            return
        self._directories.append(node.path)
        for listed in parts:
            for name, kind, target in zip(listed.names, listed.types, listed.targets, strict=True):
                path = join(node.path, name)
                if kind == DT_DIR or (self._follow and kind == DT_LNK and target == DT_DIR):
                    if await self._make_directory(path):
                        self._stack.append(Node(path, os.fsdecode(os.path.join(self._source, path))))
                elif kind != _DT_SOCK:
                    await self._start(path)

    async def _make_directory(self, path: bytes) -> bool:
        made = os.path.join(self._root, path)
        name = name_of(made)._replace(shown=os.fsdecode(os.path.join(self._target, path)))
        try:
            await change(self._context, Call.MKDIR, name, mode=0o777, flags=0)
        except FileExistsError as error:
            try:
                await change(self._context, Call.MKDIR, name, mode=0o777, flags=EXIST_OK)
            except OSError:
                self._report(error)
                return False
            return True
        except OSError as error:
            self._report(error)
            return False
        self.made += 1
        return True

    async def _start(self, path: bytes) -> None:
        """Start to copy a file, when fewer than `depth` are being copied."""
        while len(self._copying) >= self._depth:
            await self._finish_one()
        backend = self._context._backend
        assert backend is not None
        await backend.checkpoint_if_cancelled()
        self._submit(path, CopyState())

    def _submit(self, path: bytes, copy: CopyState) -> None:
        shown = os.fsdecode(os.path.join(self._source, path))
        request = CopyName(
            Descriptor(self._reader.fd, shown),
            path,
            os.path.join(self._root, path),
            copy,
            filename2=os.fsdecode(os.path.join(self._target, path)),
            dir2=AT_FDCWD,
            flags=self._flags,
            number=1,
        )
        self._copying.append(request)
        self._context._check().submit(request)

    async def _finish_one(self) -> None:
        """Wait for the oldest copy, and continue it if there is more."""
        backend = self._context._backend
        assert backend is not None
        request = self._copying[0]
        await wait_shielded(backend, request)
        self._copying.popleft()
        if request.result > 0:
            await backend.checkpoint_if_cancelled()
            assert request.path is not None
            self._submit(request.path, request.copy)
        elif request.result < 0:
            error = request.error()
            self._report(error)
        else:
            self.made += 1

    async def _preserve(self, path: bytes) -> None:
        made, shown = os.path.join(self._root, path), os.fsdecode(os.path.join(self._target, path))
        request = CopyMetadata(Descriptor(self._reader.fd, shown), path or b".", made, dir2=AT_FDCWD)
        try:
            await request_of(self._context, request)
        except OSError as error:
            self._report(error)

    async def _give_up_all(self) -> None:
        """Wait for the copies that have started, and remove what is not complete, also in a cancelled scope."""
        backend = self._context._backend
        assert backend is not None
        with backend.shielded():
            while self._copying:
                request = self._copying.popleft()
                await wait_shielded(backend, request)
                await _give_up(self._context, request.copy)

    def _report(self, error: BaseException) -> None:
        if self._on_error is None or not isinstance(error, OSError):
            raise error
        self._on_error(error)


async def copy_tree(
    source: NamePath,
    target: NamePath,
    *,
    follow_symlinks: bool = False,
    preserve_metadata: bool = True,
    exist_ok: bool = False,
    on_error: Callable[[OSError], object] | None = None,
    depth: int = 16,
    context: AIOContext | None = None,
) -> int:
    """Copy a directory and all that is in it, and return how many names were made.

    Without `exist_ok` the target must not exist; it appears at the end, and nothing remains of a copy that was cancelled or has failed.
    With it, files are replaced one by one, and those copied stay. follow_symlinks: copy what links point to. FIFOs and devices are made
    anew, sockets are left out. depth: files that are copied at once. on_error: called with each OSError, and the copy continues; if it
    raises, or is None, the copy ends with that error. ValueError if the target is inside the source.
    """
    used, depth = checked_context(context), checked_depth(depth)
    plain, end = os.fspath(source), os.fspath(target)
    encoded(plain, "source")
    # The working directory may change meanwhile.
    second = os.path.join(os.getcwdb(), encoded(end, "target"))
    await _check_apart(used, plain, end)
    flags = _flags(follow_symlinks, preserve_metadata, False)
    if exist_ok:
        copy = _TreeCopy(used, plain, second, end, flags, depth, on_error)
        status = await status_or_error(used, name_of(end))
        await change(used, Call.MKDIR, name_of(end), mode=0o777, flags=EXIST_OK)
        await copy.run()
        return copy.made + isinstance(status, int)
    status = await status_or_error(used, name_of(end), follow_symlinks=False)
    if not isinstance(status, int):
        raise os_error(errno.EEXIST, target)
    parent, last = os.path.split(second.rstrip(b"/"))
    temporary = os.path.join(parent, b".%b.%b.tmp" % (last[:200], secrets.token_hex(6).encode()))
    copy = _TreeCopy(used, plain, temporary, end, flags, depth, on_error)
    made = False
    try:
        await change(used, Call.MKDIR, name_of(temporary)._replace(shown=target), mode=0o777, flags=0)
        made = True
        await copy.run()
        await _publish(used, temporary, target)
        made = False
    finally:
        if made:
            backend = used._backend
            assert backend is not None
            with backend.shielded():
                await remove_tree(temporary, missing_ok=True, on_error=lambda _: None, context=used)
    return copy.made + 1


async def _publish(context: AIOContext, temporary: bytes, target: NamePath) -> None:
    """Give a tree its name. FileExistsError if that has been made meanwhile."""
    first, second = name_of(temporary)._replace(shown=target), name_of(target)
    try:
        await change(context, Call.RENAME, first, second._replace(shown=None), flags=RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        # Without the flag, rename(2) of a directory replaces an empty directory, and nothing else.
        await change(context, Call.RENAME, first, second._replace(shown=None), flags=0)


async def _check_apart(context: AIOContext, source: Any, target: Any) -> None:
    """ValueError if the target is the source, or inside it."""
    inside = os.fsencode(await real_path_of(context, target, strict=False))
    outside = os.fsencode(await real_path_of(context, source, strict=False))
    if inside == outside or inside.startswith(outside.rstrip(b"/") + b"/"):
        raise ValueError(f"target must not be inside the source: {target!r} is in {source!r}")
