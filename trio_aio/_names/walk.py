"""`walk`, for paths as str and bytes like ``os.walk``, and for `Path` like ``pathlib.Path.walk``.

Directories are read a few ahead. One is read ahead only once its parent has been yielded, and the consumer has seen its name there: the
list of names may be changed to leave directories out.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from trio_aio._context.shared import given_core
from trio_aio._names.calls import name_of
from trio_aio._names.listing import DT_DIR, DT_LNK, Listing
from trio_aio._names.tree import AHEAD, Node, TreeReader, join

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_aio._context.context import AIOContext
    from trio_aio._context.core import Core
    from trio_aio._names.calls import Name, NamePath

__all__ = ("Walk", "walk")

Visit = tuple[Any, list[Any], list[Any]]


class Walk(Listing[Visit]):
    """What `walk` returns.

    links_are_directories: a link to a directory is among the directories, as with ``os.walk``, even if it is not followed.
    """

    def __init__(
        self,
        name: Name,
        top: Any,
        descend: Callable[[Any, Any], Any],
        core: Core | None,
        *,
        top_down: bool,
        on_error: Callable[[OSError], object] | None,
        follow: bool,
        links_are_directories: bool,
    ) -> None:
        self._name: Name = name
        self._descend: Callable[[Any, Any], Any] = descend
        self._as_bytes: bool = isinstance(top, bytes)
        self._top_down: bool = top_down
        self._on_error: Callable[[OSError], object] | None = on_error
        self._follow: bool = follow
        self._links_are_directories: bool = links_are_directories
        self._reader: TreeReader | None = None
        # What is to come, the last first: directories to be read, and, bottom-up, those whose children come before them.
        self._stack: list[Node | Visit] = [Node(b"", top)]
        # Top-down: the last one yielded, its path below the top, and the names in it that are not descended into.
        self._last: tuple[Visit, bytes, set[Any]] | None = None
        super().__init__(core, name.guard)

    async def _next_batch(self, core: Core) -> list[Visit] | None:
        if self._reader is None:
            self._reader = TreeReader(core, self._name, targets=self._follow or self._links_are_directories, no_links=not self._follow)
        try:
            await self._reader.open()
        except OSError as error:
            self._report(error)
            return None
        if self._last is not None:
            self._push_children(*self._last)
            self._last = None
        while self._stack and not self._ended:
            self._reader.read_ahead(node for node in self._stack[: -AHEAD - 1 : -1] if isinstance(node, Node))
            node = self._stack[-1]
            if not isinstance(node, Node):
                self._stack.pop()
                return [node]
            try:
                listed = await self._reader.read(node)
            except OSError as error:
                self._stack.pop()
                # A link that was not followed, although its name was added to the list of directories.
                if not (error.errno in (errno.ELOOP, errno.ENOTDIR) and self._links_are_directories and not self._follow):
                    self._report(error)
                continue
            self._stack.pop()
            visit, links = self._sorted(node, listed)
            if self._top_down:
                self._last = visit, node.path, links
                return [visit]
            self._stack.append(visit)
            self._push_children(visit, node.path, links)
        return None

    def _sorted(self, node: Node, listed: list[Any]) -> tuple[Visit, set[Any]]:
        """Return the names of a directory, and those of links to directories."""
        directories: list[Any] = []
        others: list[Any] = []
        links: set[Any] = set()
        through_links = self._follow or self._links_are_directories
        for part in listed:
            for each, kind, target in zip(part.names, part.types, part.targets, strict=True):
                own = each if self._as_bytes else os.fsdecode(each)
                if kind == DT_DIR:
                    directories.append(own)
                elif through_links and kind == DT_LNK and target == DT_DIR:
                    directories.append(own)
                    links.add(own)
                else:
                    others.append(own)
        return (node.shown, directories, others), links

    def _push_children(self, visit: Visit, path: bytes, links: set[Any]) -> None:
        skipped = set() if self._follow else links
        for each in reversed(visit[1]):
            if each not in skipped:
                self._stack.append(Node(join(path, os.fsencode(each)), self._descend(visit[0], each)))

    def _report(self, error: OSError) -> None:
        if self._on_error is not None:
            self._on_error(error)

    def _release(self) -> None:
        if self._reader is not None:
            self._reader.release()


def walk(
    top: NamePath,
    *,
    topdown: bool = True,
    onerror: Callable[[OSError], object] | None = None,
    followlinks: bool = False,
    context: AIOContext | None = None,
) -> Listing[Visit]:
    """Return a `Listing` of ``(path, dirnames, filenames)``, as ``os.walk`` yields them. getdents64(2).

    top: str, bytes or PathLike. topdown: parents come before children, and `dirnames` may be changed to leave directories out. onerror:
    called with each OSError; None ignores them. followlinks: descend into links to directories too.
    At most 4 directories are read ahead, and at most 16 descriptors are open, however deep the tree.
    """
    plain = os.fspath(top)
    return Walk(
        name_of(plain, may_be_fd=False),
        plain,
        os.path.join,
        given_core(context),
        top_down=topdown,
        on_error=onerror,
        follow=followlinks,
        links_are_directories=True,
    )
