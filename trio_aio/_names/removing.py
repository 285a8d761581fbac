"""`remove_tree`: remove a directory and all that is in it.

Another process may put a link in the place of a directory at any moment. So each directory is opened by its path below the top, and no
component of that path may be a link (openat2(2) with RESOLVE_NO_SYMLINKS); its names are then removed by that descriptor. The directories
of the tree are kept on a stack of our own, so its depth is not limited.

A directory's mode may forbid its owner to look into it, or to remove names in it. A removal that insists gives the owner all permissions
of it then, and tries once more: a temporary directory is removed so.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from trio_aio._context.shared import checked_core
from trio_aio._engine.descriptor import Descriptor
from trio_aio._errors import os_error
from trio_aio._names.calls import Name, change, name_of
from trio_aio._names.listing import DT_DIR
from trio_aio._names.tree import AHEAD, Node, TreeReader, join, shown_below
from trio_aio._requests.contents import UnlinkMany
from trio_aio._requests.names import AT_REMOVEDIR, AT_SYMLINK_NOFOLLOW, Call

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_aio._context.context import AIOContext
    from trio_aio._context.core import Core
    from trio_aio._names.calls import NamePath

__all__ = ("remove_named_tree", "remove_tree")

_ENOENT = -errno.ENOENT
_FORBIDDEN = (-errno.EACCES, -errno.EPERM)


class _Emptied(Node):
    """A directory that is to be removed itself: all that was in it has been."""

    __slots__ = ()


class _Removal:
    """The removal of one tree with its top. insist: change the modes of directories that forbid it."""

    def __init__(self, core: Core, top: Name, on_error: Callable[[OSError], object] | None, *, missing_ok: bool, insist: bool) -> None:
        self._core: Core = core
        self._top: Name = top
        self._on_error: Callable[[OSError], object] | None = on_error
        self._missing_ok: bool = missing_ok
        self._insist: bool = insist
        self._permitted: set[bytes] = set()  # the directories whose mode was changed, or could not be
        self._reader: TreeReader = TreeReader(core, top, no_links=True)
        self._stack: list[Node] = [Node(b"", top.shown)]
        self.removed: int = 0

    async def run(self) -> None:
        """Remove all. OSError unless `on_error` takes it; what that raises ends the removal."""
        try:
            try:
                self._check_last()
                await self._reader.open(os.O_NOFOLLOW)
            except OSError as error:
                self._report_top(error)
                return
            while self._stack:
                ahead = (node for node in self._stack[: -AHEAD - 1 : -1] if not isinstance(node, _Emptied))
                self._reader.read_ahead(ahead)
                node = self._stack.pop()
                if isinstance(node, _Emptied):
                    parent, _, name = node.path.rpartition(b"/")
                    await self._unlink(parent, [name], b"\1")
                else:
                    await self._enter(node)
        finally:
            self._reader.release()
        try:
            await change(self._core, Call.UNLINK, self._top, flags=AT_REMOVEDIR)
        except OSError as error:
            self._report_top(error)
        else:
            self.removed += 1

    def _check_last(self) -> None:
        """Raise what rmdir(2) would raise in the end, before anything is removed. "link/." leads through a link."""
        last = b"" if self._top.path is None else self._top.path.rpartition(b"/")[2]
        if last in (b".", b".."):
            raise os_error(errno.EINVAL if last == b"." else errno.ENOTEMPTY, self._top.shown)

    async def _enter(self, node: Node) -> None:
        """Remove the files of a directory, and put its directories on the stack."""
        try:
            parts = await self._reader.read(node)
        except OSError as error:
            if -(error.errno or 0) in _FORBIDDEN and await self._permit(node.path):
                self._stack.append(Node(node.path, node.shown))
            elif error.errno != errno.ENOENT:
                self._report(error)
            return
        if node.path:
            self._stack.append(_Emptied(node.path, node.shown))
        for listed in parts:
            files = [name for name, kind in zip(listed.names, listed.types, strict=True) if kind != DT_DIR]
            if files:
                await self._unlink(node.path, files, bytes(len(files)))
            for name, kind in zip(listed.names, listed.types, strict=True):
                if kind == DT_DIR:
                    path = join(node.path, name)
                    self._stack.append(Node(path, self._path_of(path)))

    async def _unlink(self, parent: bytes, names: list[bytes], directories: bytes) -> None:
        """Remove names in a directory of the tree."""
        request = UnlinkMany(Descriptor(self._reader.fd, self._path_of(parent)), parent or None, names, directories)
        try:
            await self._core.submit_and_wait(request)
        except OSError as error:
            if error.errno != errno.ENOENT:
                self._report(error)
            return
        results = request.answers()
        self.removed += results.count(0)
        failed = [(name, result) for name, result in zip(names, results, strict=True) if result not in (0, _ENOENT)]
        if any(result in _FORBIDDEN for _, result in failed) and await self._permit(parent):
            await self._unlink(parent, [name for name, _ in failed], directories[: len(failed)])
            return
        for name, result in failed:
            self._report(os_error(result, self._path_of(join(parent, name))))

    async def _permit(self, path: bytes) -> bool:
        """Give the owner of a directory, and of its parent, all permissions of it. Return whether that is new: then try once more."""
        if not self._insist or path in self._permitted:
            return False
        for each in (path.rpartition(b"/")[0], path):
            if each not in self._permitted:
                self._permitted.add(each)
                name = Name(self._reader.fd, each, self._path_of(each), resolve=1) if each else self._top
                with suppress(OSError):
                    await change(self._core, Call.CHMOD, name, mode=0o700, flags=AT_SYMLINK_NOFOLLOW)
        return True

    def _path_of(self, path: bytes) -> Any:
        return shown_below(self._top.shown, path)

    def _report(self, error: OSError) -> None:
        if self._on_error is None:
            raise error
        self._on_error(error)

    def _report_top(self, error: OSError) -> None:
        if not (self._missing_ok and error.errno == errno.ENOENT):
            self._report(error)


async def remove_named_tree(
    core: Core, top: Name, *, missing_ok: bool, on_error: Callable[[OSError], object] | None, insist: bool = False
) -> int:
    """Remove a tree, and return how many names were removed. OSError. insist: change the modes of directories that forbid it."""
    if top.path is not None:
        # open(2) follows a link whose name ends with a slash.
        top = top._replace(path=top.path.rstrip(b"/") or top.path[:1])
    removal = _Removal(core, top, on_error, missing_ok=missing_ok, insist=insist)
    await removal.run()
    return removal.removed


async def remove_tree(
    path: NamePath,
    *,
    missing_ok: bool = False,
    on_error: Callable[[OSError], object] | None = None,
    context: AIOContext | None = None,
) -> int:
    """Remove a directory and all that is in it, and return how many names were removed. unlinkat(2).

    No link is followed, not even one that appears meanwhile; NotADirectoryError if `path` itself is one, also with a slash at its end. One
    that ends with "." or ".." is refused as by rmdir(2), before anything is removed. missing_ok: a missing `path` is no error.
    on_error: called with each OSError, and the removal continues; if it raises, or is None, the removal ends with that error.
    Cancelled: between two requests. What was removed is gone; call it again. Neither stack nor descriptors limit the depth.
    """
    return await remove_named_tree(checked_core(context), name_of(path, may_be_fd=False), missing_ok=missing_ok, on_error=on_error)
