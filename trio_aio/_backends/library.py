"""Which async library runs the code that calls us. One thread may have two.

Trio can be a guest of asyncio's event loop. trio-asyncio runs asyncio's tasks inside a trio run. And a task of one library may call
``trio.run`` or ``asyncio.run`` in the middle, as a notebook does. Then both trio and asyncio say that they are running, and a wait of the
wrong one ends the run: ``TrioInternalError``, or "Task got bad yield".

sniffio keeps one answer for each thread: trio sets it to "trio" for as long as it runs its tasks, trio-asyncio to "asyncio" while it runs a
callback of asyncio's. Where it has no answer, asyncio's current task decides. It is wrong in one case, ``asyncio.run`` inside of a trio
task; there the stack says which of the two tasks runs inside of the other.

The backends ask before each request, because a file may be used from the other side.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from sniffio import thread_local as sniffed

if TYPE_CHECKING:
    from types import FrameType

__all__ = ("asyncio_task", "current_library", "is_inside", "sniffed")


def asyncio_task() -> Any:
    """Return the current task of the asyncio loop that runs in this thread; None if there is none."""
    asyncio = sys.modules.get("asyncio")
    # By attribute each time: trio-asyncio puts functions of its own there, and another thread may just be importing asyncio.
    running_loop = getattr(asyncio, "_get_running_loop", None)
    loop = None if running_loop is None else running_loop()
    return None if loop is None else asyncio.current_task(loop)  # type: ignore[union-attr]


def is_inside(inner: Any, outer: Any) -> bool:
    """Return whether the coroutine `inner`, which is running, was called by `outer`, which is running too."""
    inner_frame, outer_frame = getattr(inner, "cr_frame", None), getattr(outer, "cr_frame", None)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame is not outer_frame:
        if frame is inner_frame:
            return True
        frame = frame.f_back
    return False


def current_library() -> str:
    """Return "trio" or "asyncio", the library of the task that calls. RuntimeError where no task runs."""
    task = asyncio_task()
    if sniffed.name == "trio":
        trio = sys.modules["trio"]
        if trio.lowlevel.in_trio_task():
            inside = task is not None and is_inside(task.get_coro(), trio.lowlevel.current_task().coro)
            return "asyncio" if inside else "trio"
    elif task is not None:
        return "asyncio"
    raise RuntimeError(
        "trio_aio must be called from async context: in a task, not in a callback, inside trio.run, asyncio.run or anyio.run"
    )
