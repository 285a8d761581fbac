"""`FileOpener`: what `open_aio` and `open_file` return, a coroutine that is also an async context manager.

``await open_aio(path)`` needs an awaitable, ``async with open_aio(path)`` a context manager, and `asyncio.create_task`,
`trio.Nursery.start_soon` and ``anyio.from_thread.run`` ask for a coroutine. No coroutine of Python's is all three. So this object stands
before one, and passes on what drives it. The coroutine is made at once, and so Python warns if it is dropped before it has been awaited.

A coroutine runs once. So does this: a second file would have no owner, and the first one's end would close the second instead.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from trio_aio._errors import NotCopied

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import CodeType, CoroutineType, FrameType, TracebackType

__all__ = ("FileOpener",)


class _Closable(Protocol):
    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...


_File = TypeVar("_File", bound=_Closable)


class FileOpener(NotCopied, Coroutine[Any, Any, _File], Generic[_File]):
    """What `open_aio` and `open_file` return. Await it for the file, or use it in ``async with``, which closes the file.

    It is a coroutine: `asyncio.create_task`, `asyncio.run_coroutine_threadsafe` and others take it, and Python warns if it is dropped
    unused (RuntimeWarning). It opens one file: RuntimeError if it is awaited or entered again.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, _File], function: str = "open_aio") -> None:
        self._coroutine: CoroutineType[Any, Any, _File] = cast("CoroutineType[Any, Any, _File]", coroutine)
        self._used: bool = False
        # Whether `send` has started it.
        self._driven: bool = False
        self._file: _File | None = None
        # For tracebacks and the names of tasks, and for Python's warning.
        self.__name__: str = function
        self.__qualname__: str = function
        self._coroutine.__name__ = self._coroutine.__qualname__ = function

    def _use(self) -> None:
        """RuntimeError if it was used before."""
        if self._used:
            name = self.__name__
            raise RuntimeError(f"this {name}(...) was awaited or entered before, and opens one file: call {name} again for another")
        self._used = True

    def __await__(self) -> Generator[Any, Any, _File]:
        self._use()
        return self._coroutine.__await__()

    async def __aenter__(self) -> _File:
        self._file = file = await self
        return file

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        file, self._file = self._file, None
        if file is not None:
            await file.__aexit__(kind, value, traceback)

    # ---- as a coroutine: for event loops, which drive it without `await`

    def send(self, value: Any) -> Any:
        """Start the coroutine, or continue it with the result of what it waits for. For event loops."""
        if not self._driven:
            self._use()
            self._driven = True
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """Continue the coroutine with an exception. For event loops."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """End the coroutine: if it has not started, no file is opened."""
        self._used = True
        self._coroutine.close()

    # What event loops and debuggers ask a coroutine, see `inspect.getcoroutinestate`.

    @property
    def cr_await(self) -> Any:
        """What the coroutine waits for, or None."""
        return self._coroutine.cr_await

    @property
    def cr_code(self) -> CodeType:
        """The code of the coroutine."""
        return self._coroutine.cr_code

    @property
    def cr_frame(self) -> FrameType | None:
        """The frame of the coroutine; None when it has ended."""
        return self._coroutine.cr_frame

    @property
    def cr_running(self) -> bool:
        """Whether the coroutine is running now."""
        return self._coroutine.cr_running

    @property
    def cr_suspended(self) -> bool:
        """Whether the coroutine has started, and waits."""
        return self._coroutine.cr_await is not None

    @property
    def cr_origin(self) -> Any:
        """Where it was made, if ``sys.set_coroutine_origin_tracking_depth`` was called."""
        return self._coroutine.cr_origin
