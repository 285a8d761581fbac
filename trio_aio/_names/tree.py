"""`TreeReader`: the directories of a tree, read by their paths below one open directory, a few of them ahead.

The top is opened once, with O_PATH, and each directory is opened by its path from there, in the request that reads it. So a rename above
the tree changes nothing, and a tree of any depth needs one descriptor, and one more for each directory that is being read. A path below
the top may be longer than PATH_MAX: the worker then opens it in parts.

`walk` and `glob` keep a stack of directories, and read the next ones while their user works. `copy_tree` and `remove_tree` use it too.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from trio_aio._bulk.waiting import wait_for
from trio_aio._engine.descriptor import Descriptor
from trio_aio._errors import os_error
from trio_aio._lanes.protocols import State
from trio_aio._names.calls import own_type
from trio_aio._names.listing import Directory
from trio_aio._requests.names import OpenName
from trio_aio._requests.opening import Close

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio_aio._context.core import Core
    from trio_aio._engine.engine import Engine
    from trio_aio._names.calls import Name
    from trio_aio._requests.names import Listed, ListNames

__all__ = ("AHEAD", "Node", "TreeReader", "join", "shown_below")

# Directories that are read ahead at most.
AHEAD = 4


def join(parent: bytes, name: bytes) -> bytes:
    """Return the path of a name below the top. The top itself is b""."""
    return parent + b"/" + name if parent else name


def shown_below(top: Any, path: bytes) -> Any:
    """Return a path below the top as errors show it: str or bytes, as the caller passed the top."""
    return own_type(os.path.join(os.fsencode(top), path), top) if path else top


class Node:
    """A directory of the tree, perhaps being read. path: below the top. shown: for errors."""

    __slots__ = ("directory", "listed", "path", "request", "shown")

    def __init__(self, path: bytes, shown: object) -> None:
        self.path: bytes = path
        self.shown: object = shown
        self.directory: Directory | None = None
        self.request: ListNames | None = None
        self.listed: list[Listed] = []


class _Top:
    """The open top of a tree. It is closed when neither its reader nor a request that starts from it needs it any more."""

    __slots__ = ("_close", "_engine", "descriptor")

    def __init__(self, engine: Engine, descriptor: Descriptor) -> None:
        self._engine: Engine = engine
        self.descriptor: Descriptor = descriptor
        self._close: Close = Close(descriptor)

    def __del__(self) -> None:
        if self.descriptor.take_unclaimed():
            self._engine.drops.add(self.descriptor, self._close)


class TreeReader:
    """Reads the directories below `top`. flags: those of each listing (`ListNames`)."""

    def __init__(self, core: Core, top: Name, **flags: object) -> None:
        self._core: Core = core
        self._top: Name = top
        self._flags: dict[str, object] = flags
        self._root: Descriptor = Descriptor(top.dir, top.shown)
        self._open_top: _Top | None = None
        self._reading: set[Node] = set()

    async def open(self, extra_flags: int = 0) -> None:
        """Open the top, if it is not open. OSError. Cancelled: it can be called again."""
        if self._root.unclaimed:
            return
        top = self._top
        path = b"." if top.path is None else top.path
        flags = os.O_PATH | os.O_DIRECTORY | extra_flags
        self._open_top = _Top(self._core.check(), self._root)
        await self._core.submit_and_wait(OpenName(self._root, path, flags=flags, beneath=int(top.resolve != 0)))

    @property
    def fd(self) -> int:
        """The open top."""
        return self._root.fd

    def read_ahead(self, nodes: Iterable[Node]) -> None:
        """Start to read directories. No more than `AHEAD` are being read."""
        for node in nodes:
            if len(self._reading) >= AHEAD:
                return
            if node.directory is None:
                node.directory = Directory(self._root.fd, node.path or None, node.shown, **self._flags)
                self._submit(node)

    def _submit(self, node: Node) -> None:
        engine = self._core.check()  # first: a request that was not submitted must not be left to the engine (`release`)
        assert node.directory is not None
        node.request = node.directory.request()
        node.request.kept = self._open_top
        self._reading.add(node)
        engine.submit(node.request)

    async def read(self, node: Node) -> list[Listed]:
        """Return all of a directory, in parts. OSError. Cancelled: it can be called again."""
        core = self._core
        backend = core.backend
        assert backend is not None
        await backend.checkpoint_if_cancelled()
        if node.directory is None:
            node.directory = Directory(self._root.fd, node.path or None, node.shown, **self._flags)
            self._submit(node)
        while True:
            request = node.request
            assert request is not None
            await wait_for(backend, request)
            self._reading.discard(node)
            if request.state is State.WITHDRAWN:
                raise os_error(errno.ECANCELED, node.shown)
            node.listed.append(node.directory.take(request))
            if node.directory.finished:
                return node.listed
            self._submit(node)

    def release(self) -> None:
        """Let the engine close what is open, and forget what is being read. Does not wait."""
        if self._core.engine is None:
            return
        for node in self._reading:
            assert node.directory is not None
            node.directory.release(self._core)
        self._reading.clear()
        self._open_top = None
