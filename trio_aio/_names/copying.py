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
from functools import partial
from typing import TYPE_CHECKING, Any

from trio_aio._backends import Deferred
from trio_aio._bulk.waiting import checked_depth, wait_shielded
from trio_aio._context.shared import checked_core
from trio_aio._engine.descriptor import Descriptor, kind_of
from trio_aio._errors import os_error, shown
from trio_aio._files.open import drop_unclaimed
from trio_aio._lanes.protocols import State
from trio_aio._names.calls import Name, change, changing, encoded, real_path_of, request_of, stat_of, status_or_error
from trio_aio._names.leftovers import remove_directory, remove_in_thread, run_to_the_end
from trio_aio._names.listing import DT_DIR, DT_LNK
from trio_aio._names.os_calls import RENAME_NOREPLACE
from trio_aio._names.removing import remove_named_tree
from trio_aio._names.tree import AHEAD, Node, TreeReader, join, shown_below
from trio_aio._requests.contents import DURABLE, EXCLUSIVE, FOLLOW, PRESERVE, CopyMetadata, CopyName, CopyState, DiscardCopy
from trio_aio._requests.names import EXIST_OK, Call
from trio_aio._requests.opening import AT_FDCWD

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from typing_extensions import Self

    from trio_aio._context.context import AIOContext
    from trio_aio._context.core import Core
    from trio_aio._names.calls import NamePath

__all__ = ("copy_file", "copy_tree", "move")

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
    ``io.UnsupportedOperation`` for what is neither a regular file nor a link, without opening it. ``shutil.SameFileError`` if both are the
    same file; without `follow_symlinks` also if a link leads from one to the other, but a link may replace one with the same text. OSError.
    """
    used = checked_core(context)
    flags = _flags(follow_symlinks, preserve_metadata, exclusive) | (DURABLE if durable else 0)
    first, second = Name(AT_FDCWD, encoded(source, "source"), source), Name(AT_FDCWD, encoded(target, "target"), target)
    return await _copied(used, first, second, flags)


async def _copied(used: Core, source: Name, target: Name, flags: int, *, special: bool = False) -> int:
    """Copy a file, and return the number of bytes. special: FIFOs, sockets and devices are made anew."""
    assert source.path is not None
    assert target.path is not None
    copy = CopyState()
    descriptor = Descriptor(source.dir, source.shown)
    fields: dict[str, Any] = {"filename2": target.shown, "dir2": target.dir, "flags": flags, "number": int(special)}
    try:
        while await request_of(used, CopyName(descriptor, source.path, target.path, copy, **fields)):
            pass
    except OSError as error:
        raise _explained(error, copy) from None
    finally:
        await _discard(used, copy)
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


async def _discard(core: Core, copy: CopyState) -> None:
    """Remove what a copy has made that is not complete, also in a cancelled scope."""
    if not copy.is_open:
        return
    backend = core.backend
    assert backend is not None
    try:
        with backend.shielded():
            await request_of(core, DiscardCopy(Descriptor(AT_FDCWD), copy))
    except RuntimeError:  # the context was closed meanwhile
        await remove_in_thread(core, CopyState.discard_now, copy)


class _TreeCopy:
    """The copy of one tree to a directory, `root`, which errors show as the target."""

    def __init__(self, core: Core, ends: _Ends, root: Name, flags: int, depth: int, on_error: Any, *, with_sockets: bool = False) -> None:
        source = ends.source
        self._core: Core = core
        self._ends: _Ends = ends
        self._root: Name = root
        self._flags: int = flags
        self._depth: int = depth
        self._on_error: Callable[[OSError], object] | None = on_error
        self._follow: bool = bool(flags & FOLLOW)
        self._reader: TreeReader = TreeReader(core, source, targets=self._follow, no_links=not self._follow)
        self._stack: list[Node] = [Node(b"", source.shown)]
        # Directories whose times and modes are set in the end, when nothing is made in them any more.
        self._directories: list[bytes] = []
        self._copying: deque[CopyName] = deque()
        self._with_sockets: bool = with_sockets
        self.made: int = 0

    async def run(self, make_root: Callable[[], Awaitable[bool]]) -> bool:
        """Open the source, make the root, and copy all. OSError unless `on_error` takes it. False: there is no source, or no root.

        make_root: returns whether the root is new.
        """
        try:
            try:
                await self._ends.check_apart()
                await self._reader.open()
                self.made += await make_root()
            except OSError as error:
                self.report(error)
                return False
            while self._stack:
                self._reader.read_ahead(self._stack[: -AHEAD - 1 : -1])
                await self._enter(self._stack.pop())
            while self._copying:
                await self._finish_one()
            if self._flags & PRESERVE:
                for path in reversed(self._directories):
                    await self._preserve(path)
            return True
        finally:
            try:
                await self._discard_all()
            finally:
                self._reader.release()  # only now: the copies start from the descriptor of the source

    async def _enter(self, node: Node) -> None:
        try:
            parts = await self._reader.read(node)
        except OSError as error:
            self.report(error)
            return
        self._directories.append(node.path)
        for listed in parts:
            for name, kind, target in zip(listed.names, listed.types, listed.targets, strict=True):
                path = join(node.path, name)
                if kind == DT_DIR or (self._follow and kind == DT_LNK and target == DT_DIR):
                    if await self._make_directory(path):
                        self._stack.append(Node(path, shown_below(self._ends.source.shown, path)))
                elif self._with_sockets or (kind != _DT_SOCK and not (self._follow and kind == DT_LNK and target == _DT_SOCK)):
                    await self._start(path)

    def _made(self, path: bytes) -> Name:
        """Return a name of the copy."""
        root = self._root
        assert root.path is not None
        return root._replace(path=os.path.join(root.path, path), shown=shown_below(root.shown, path))

    async def _make_directory(self, path: bytes) -> bool:
        try:
            self.made += await _is_new_directory(self._core, self._made(path))
        except OSError as error:
            self.report(error)
            return False
        return True

    async def _start(self, path: bytes) -> None:
        """Start to copy a file, when fewer than `depth` are being copied."""
        while len(self._copying) >= self._depth:
            await self._finish_one()
        backend = self._core.backend
        assert backend is not None
        await backend.checkpoint_if_cancelled()
        self._submit(path, CopyState())

    def _submit(self, path: bytes, copy: CopyState) -> None:
        made = self._made(path)
        assert made.path is not None
        descriptor = Descriptor(self._reader.fd, shown_below(self._ends.source.shown, path))
        request = CopyName(descriptor, path, made.path, copy, filename2=made.shown, dir2=made.dir, flags=self._flags, number=1)
        self._copying.append(request)
        self._core.check().submit(request)

    async def _finish_one(self) -> None:
        """Wait for the oldest copy, and continue it if there is more."""
        backend = self._core.backend
        assert backend is not None
        request = self._copying[0]
        await wait_shielded(backend, request)
        if request.result > 0:
            await backend.checkpoint_if_cancelled()  # while it is still among those that are discarded
        self._copying.popleft()
        if request.result > 0:
            assert request.path is not None
            self._submit(request.path, request.copy)
        elif request.result < 0:
            error = request.error()
            self.report(_explained(error, request.copy) if isinstance(error, OSError) else error)
        else:
            self.made += 1

    async def _preserve(self, path: bytes) -> None:
        made = self._made(path)
        request = CopyMetadata(Descriptor(self._reader.fd, made.shown), path or b".", made.path, dir2=made.dir)
        try:
            await request_of(self._core, request)
        except OSError as error:
            self.report(error)

    async def _discard_all(self) -> None:
        """Wait for the copies that have started, and remove what is not complete, also in a cancelled scope."""
        backend = self._core.backend
        assert backend is not None
        with Deferred(backend) as put_off, backend.shielded():
            while self._copying:
                request = self._copying[0]
                with put_off:
                    if request.state is not State.CREATED:  # otherwise the context was closed before it could be submitted
                        await wait_shielded(backend, request)
                    self._copying.popleft()
                    await _discard(self._core, request.copy)

    def report(self, error: BaseException) -> None:
        """Let `on_error` take an OSError, or raise it."""
        if self._on_error is None or not isinstance(error, OSError):
            raise error
        self._on_error(error)


async def _is_new_directory(core: Core, name: Name) -> bool:
    """Make a directory if there is none, and return whether it was made. OSError."""
    try:
        await change(core, Call.MKDIR, name, mode=0o777, flags=0)
    except OSError as error:
        try:
            await change(core, Call.MKDIR, name, mode=0o777, flags=EXIST_OK)
        except OSError:
            raise error from None
        return False
    return True


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
    raises, or is None, the copy ends with that error. Without a source, or if the target cannot be made, nothing is copied: on_error is
    called, and 0 returned. OSError with the path that failed; ValueError if the target is inside the source.
    Cancelled: between two requests. Each file is copied as by `copy_file`.
    """
    used, depth = checked_core(context), checked_depth(depth)
    used.check()
    flags = _flags(follow_symlinks, preserve_metadata, False)
    with _Ends(used, os.fspath(source), os.fspath(target)) as ends:
        if not exist_ok:
            return await _copy_to_new(used, ends, flags, on_error, depth)
        copy = _TreeCopy(used, ends, ends.target, flags, depth, on_error)
        await copy.run(partial(_is_new_directory, used, ends.target))
        return copy.made


async def move(source: NamePath, target: NamePath) -> None:
    """Rename a file or a tree, or copy it to another filesystem, sockets included, and then remove it. OSError; `SameFileError`."""
    used = checked_core(None)
    with _Ends(used, source, target) as ends:
        await ends.check_different()
        try:
            await change(used, Call.RENAME, ends.source, ends.target, flags=0)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        else:
            return
        if not stat.S_ISDIR((await stat_of(used, ends.source, follow_symlinks=False)).st_mode):
            await _copied(used, ends.source, ends.target, PRESERVE, special=True)
            await change(used, Call.UNLINK, ends.source)
            return
        await _copy_to_new(used, ends, PRESERVE, None, 16, with_sockets=True)
        await remove_named_tree(used, ends.source, missing_ok=False, on_error=None)


class _Ends:
    """Source and target of a tree, which stay what they are if the working directory changes meanwhile."""

    def __init__(self, core: Core, source: NamePath, target: NamePath) -> None:
        first, second = encoded(source, "source"), encoded(target, "target")
        self._core: Core = core
        self._start: Descriptor = Descriptor(AT_FDCWD, ".")
        self._path: bytes = b"/"
        if not (first.startswith(b"/") and second.startswith(b"/")):
            self._path = os.getcwdb()
            self._start.own(os.open(".", os.O_PATH | os.O_DIRECTORY), -1)  # asks no filesystem
        self.source: Name = Name(self._start.fd, first, source)
        self.target: Name = Name(self._start.fd, second, target)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._core.engine is not None:
            drop_unclaimed(self._core.engine, self._start)
        else:
            self._start.close_unclaimed()

    def absolute(self, name: Name) -> bytes:
        """Return the path of one of them, or of a name beside it, from the root."""
        assert name.path is not None
        return os.path.join(self._path, name.path)

    async def check_different(self) -> None:
        """Raise an error, as ``pathlib``, if both are names of one file. rename(2) does nothing then, or makes a link lead to itself."""
        for follow in (False, True):
            statuses = []
            for name in (self.target, self.source):
                status = await status_or_error(self._core, name, follow_symlinks=follow)
                if isinstance(status, int):
                    break
                statuses.append(status)
            else:
                if os.path.samestat(*statuses):
                    names = shown(self.source.shown), None, shown(self.target.shown)
                    raise shutil.SameFileError(errno.EINVAL, "Source and target are the same file", *names)

    async def check_apart(self) -> None:
        """ValueError if the target is the source, or inside it. OSError for an empty path."""
        for name in (self.source, self.target):
            if not name.path:
                raise os_error(errno.ENOENT, name.shown)
        inside, outside = [
            await real_path_of(self._core, self.absolute(name), strict=False, shown=name.shown) for name in (self.target, self.source)
        ]
        if inside == outside or inside.startswith(outside.rstrip(b"/") + b"/"):
            raise ValueError(f"target must not be inside the source: {self.target.shown!r} is in {self.source.shown!r}")


async def _copy_to_new(
    used: Core,
    ends: _Ends,
    flags: int,
    on_error: Callable[[OSError], object] | None,
    depth: int,
    *,
    with_sockets: bool = False,
) -> int:
    """Copy a tree to a target that does not exist, under a temporary name. Return how many names were made."""
    target = ends.target
    assert target.path is not None
    parent, last = os.path.split(target.path.rstrip(b"/"))
    temporary = target._replace(path=os.path.join(parent, b".%b.%b.tmp" % (last[:200], secrets.token_hex(6).encode())))
    copy = _TreeCopy(used, ends, temporary, flags, depth, on_error, with_sockets=with_sockets)
    making = changing(Call.MKDIR, temporary, mode=0o777, flags=0)

    async def make_root() -> bool:
        if not isinstance(await status_or_error(used, target, follow_symlinks=False), int):
            raise os_error(errno.EEXIST, target.shown)
        await used.submit_and_wait(making)
        return True

    published = False
    try:
        if await copy.run(make_root):
            try:
                await _publish(used, temporary, target)
                published = True
            except OSError as error:
                copy.report(error)
    finally:
        if making.finished and making.result == 0 and not published:
            await _remove_incomplete(used, ends, temporary)
    return copy.made if published else 0


async def _remove_incomplete(core: Core, ends: _Ends, top: Name) -> None:
    """Remove a copy that has not got its name, whatever cancellation comes. If the context was closed meanwhile, a thread does it."""

    async def remove() -> None:
        try:
            await remove_named_tree(core, top, missing_ok=True, on_error=lambda _: None, insist=True)
        except RuntimeError:
            await remove_in_thread(core, remove_directory, ends.absolute(top))

    await run_to_the_end(core, remove)


async def _publish(core: Core, temporary: Name, target: Name) -> None:
    """Give a tree its name. FileExistsError if that has been made meanwhile."""
    second = target._replace(shown=None)
    try:
        await change(core, Call.RENAME, temporary, second, flags=RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        # Without the flag, rename(2) of a directory replaces an empty directory, and nothing else.
        await change(core, Call.RENAME, temporary, second, flags=0)
