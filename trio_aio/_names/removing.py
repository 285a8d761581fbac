"""`remove_tree`: remove a directory and all that is in it.

Another process may put a link in the place of a directory at any moment. So each directory is opened by its path below the top, and no
component of that path may be a link (openat2(2) with RESOLVE_NO_SYMLINKS); its names are then removed by that descriptor. The directories
of the tree are kept on a stack of our own, so its depth is not limited.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from trio_aio._engine.descriptor import Descriptor
from trio_aio._errors import os_error
from trio_aio._names.calls import change, checked_context, name_of
from trio_aio._names.listing import DT_DIR
from trio_aio._names.tree import AHEAD, Node, TreeReader, join
from trio_aio._requests.contents import UnlinkMany
from trio_aio._requests.names import AT_REMOVEDIR, Call

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_aio._context.context import AIOContext
    from trio_aio._names.calls import Name, NamePath

__all__ = ("remove_named_tree", "remove_tree")

_ENOENT = -errno.ENOENT


class _Emptied(Node):
    """A directory that is to be removed itself: all that was in it has been."""

    __slots__ = ()


class _Removal:
    """The removal of one tree, from its top."""

    def __init__(self, context: AIOContext, top: Name, on_error: Callable[[OSError], object] | None) -> None:
        self._context: AIOContext = context
        self._on_error: Callable[[OSError], object] | None = on_error
        self._shown: bytes = os.fsencode(top.shown)
        self._as_bytes: bool = isinstance(top.shown, bytes)
        self._reader: TreeReader = TreeReader(context, top, no_links=True)
        self._stack: list[Node] = [Node(b"", top.shown)]
        self.removed: int = 0

    async def run(self) -> None:
        """Remove all that is in the top. OSError unless `on_error` takes it."""
        await self._reader.open(os.O_NOFOLLOW)
        try:
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

    async def _enter(self, node: Node) -> None:
        """Remove the files of a directory, and put its directories on the stack."""
        try:
            parts = await self._reader.read(node)
        except OSError as error:
            if error.errno != errno.ENOENT:
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
            await self._context._submit_and_wait(request)
        except OSError as error:
            self._report(error)
            return
        for name, result in zip(names, request.answers(), strict=True):
            if result == 0:
                self.removed += 1
            elif result != _ENOENT:
                self._report(os_error(result, self._path_of(join(parent, name))))

    def _path_of(self, path: bytes) -> str | bytes:
        """Return the path of a name below the top, as the type of the argument."""
        whole = os.path.join(self._shown, path) if path else self._shown
        return whole if self._as_bytes else os.fsdecode(whole)

    def _report(self, error: OSError) -> None:
        if self._on_error is None:
            raise error
        self._on_error(error)


async def remove_named_tree(context: AIOContext, top: Name, *, missing_ok: bool, on_error: Callable[[OSError], object] | None) -> int:
    """Remove a tree, and return how many names were removed. OSError."""
    removal = _Removal(context, top, on_error)
    try:
        await removal.run()
        await change(context, Call.UNLINK, top, flags=AT_REMOVEDIR)
    except OSError as error:
        missing = missing_ok and error.errno == errno.ENOENT
        if on_error is None and not missing:
            raise
        if not missing and on_error is not None:
            on_error(error)
        return removal.removed
    return removal.removed + 1


async def remove_tree(
    path: NamePath,
    *,
    missing_ok: bool = False,
    on_error: Callable[[OSError], object] | None = None,
    context: AIOContext | None = None,
) -> int:
    """Remove a directory and all that is in it, and return how many names were removed. unlinkat(2).

    No link is followed, not even one that appears meanwhile; NotADirectoryError if `path` itself is one. missing_ok: a missing `path` is no
    error. on_error: called with each OSError, and the removal continues; if it raises, or is None, the removal ends with that error.
    Cancelled: between two requests. What was removed is gone; call it again. Neither stack nor descriptors limit the depth.
    """
    return await remove_named_tree(checked_context(context), name_of(path, may_be_fd=False), missing_ok=missing_ok, on_error=on_error)
