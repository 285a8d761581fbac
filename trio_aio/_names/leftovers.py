"""How temporary names are removed: by the task that made them, by a thread when they were dropped, or at the end of the interpreter.

asyncio's own Task.cancel passes every shield, and may come at any await. So a removal is repeated until it has run to its end, and what was
just made is removed before the cancellation leaves: no caller would learn its name. What a context can no longer remove, because it was
closed, a thread removes while the task waits. A finalizer cannot wait for a removal, so it starts a thread and leaves. When modules have
been taken apart it cannot do that either, so what is left at the end of the interpreter is in a list.
"""

from __future__ import annotations

import atexit
import os
import shutil
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from trio_aio._backends import Deferred
from trio_aio._lanes.threads import Background, living
from trio_aio._names.calls import change, name_of
from trio_aio._requests.names import AT_REMOVEDIR, Call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_aio._context.core import Core

__all__ = ("Leftover", "left", "remove_directory", "remove_in_thread", "remove_later", "remove_name", "run_to_the_end", "take_back")


class Leftover(Protocol):
    """What has a name that may be left at the end."""

    def _drop(self) -> None:
        """Remove it, if that is still to be done."""


left: WeakSet[Any] = WeakSet()
_THREAD = "trio_aio temporary file"  # the name of threads that remove what was dropped: the end of the interpreter waits for them
_at_the_end: bool = False


@atexit.register
def _remove_left() -> None:
    global _at_the_end
    _at_the_end = True
    errors: list[Exception] = []
    each: Leftover
    for each in list(left):
        try:
            each._drop()
        except Exception as error:  # a warning that is an error must not keep the others
            errors.append(error)
    for thread in list(living):
        if thread.name == _THREAD:
            thread.join()
    if errors:
        raise errors[0]


def remove_later(core: Core, remove: Callable[[Any], object], path: Any) -> None:
    """Let a thread remove what was dropped. In a child of fork it is the parent's."""
    if core.state == "forked":
        return
    if _at_the_end:  # no thread runs any more, nor an event loop
        _remove_quietly(remove, path)
        return
    try:
        Background(_THREAD, _remove_quietly, remove, path).start()
    except RuntimeError:  # no thread can be had
        _remove_quietly(remove, path)


async def remove_in_thread(core: Core, remove: Callable[[Any], object], path: Any) -> None:
    """Let a thread remove what a context cannot, because it was closed meanwhile. Wait for that, also in a cancelled scope."""
    backend = core.backend
    if backend is None:  # in a child of fork it is the parent's
        return
    try:
        with backend.shielded():
            await backend.run_in_thread(_remove_quietly, remove, path)
    except RuntimeError:  # no event loop runs any more, or no thread can be had
        remove_later(core, remove, path)


def _remove_quietly(remove: Callable[[Any], object], path: Any) -> None:
    with suppress(OSError):  # it may be gone, and no caller is left for any other error
        remove(path)


def remove_directory(path: Any) -> None:
    """Remove a tree, as far as that is possible, in the thread that calls. Directories that forbid it are changed, as by `remove_tree`."""
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):
        _permit(path)
        shutil.rmtree(path, ignore_errors=True)


def _permit(top: Any) -> None:
    """Give the owner of all directories of a tree all permissions of them. No link is followed, not even one that appears meanwhile."""
    _permit_one(top, None)
    for _, directories, _, fd in os.fwalk(top):
        for name in directories:
            _permit_one(name, fd)


def _permit_one(name: Any, dir_fd: int | None) -> None:
    with suppress(OSError):
        # By descriptor: chmod(2) follows a link, and one may have taken the directory's place.
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
        try:
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
        finally:
            os.close(fd)


async def remove_name(core: Core, path: Any, *, directory: bool = False) -> None:
    """Remove a file, or an empty directory, if it is still there. OSError."""
    with suppress(FileNotFoundError):
        await change(core, Call.UNLINK, name_of(path), flags=AT_REMOVEDIR if directory else 0)


async def run_to_the_end(core: Core, remove: Callable[[], Awaitable[object]]) -> None:
    """Call `remove`, which may be called again, until it has run to its end, whatever cancellation comes.

    asyncio's own Task.cancel is raised then. What `remove` raises ends it too.
    """
    backend = core.backend
    assert backend is not None
    ended = False
    with Deferred(backend) as put_off, backend.shielded():
        while not ended:
            with put_off:
                await remove()
                ended = True


async def take_back(core: Core, path: Any, error: BaseException, *, directory: bool = False) -> None:
    """Remove what was just made, because of an error that is about to be raised."""
    backend = core.backend
    if backend is None:  # a child of fork: it is the parent's
        return
    remove_without_waiting = partial(remove_later, core, os.rmdir if directory else os.unlink, path)
    if not isinstance(error, Exception) and not backend.is_native(error):
        # The coroutine is thrown away, or interrupted: it should wait for nothing any more.
        remove_without_waiting()
        return
    try:
        await run_to_the_end(core, partial(remove_name, core, path, directory=directory))
    except Exception:
        remove_without_waiting()
