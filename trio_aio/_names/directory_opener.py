"""`NameOpener`: opens a directory when it is awaited or entered. The base of `DirectoryOpener`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from trio_aio._context.shared import current_core
from trio_aio._engine.descriptor import Descriptor
from trio_aio._errors import UsedOnce
from trio_aio._files.open import dropped_on_error
from trio_aio._names.calls import request_of
from trio_aio._requests.names import OpenName

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from types import TracebackType

    from trio_aio._context.core import Core
    from trio_aio._names.calls import Name

__all__ = ("NameOpener",)

_Directory = TypeVar("_Directory")


class NameOpener(UsedOnce, Generic[_Directory]):
    """Opens a directory, once. make: returns the object that owns it. guard: keeps open what the name starts from."""

    def __init__(
        self,
        core: Core | None,
        name: Callable[[], Name],
        make: Callable[[Core, Descriptor], _Directory],
        guard: Callable[[Awaitable[int]], Awaitable[int]] | None = None,
    ) -> None:
        self._core: Core | None = core
        self._name: Callable[[], Name] = name
        self._make: Callable[[Core, Descriptor], _Directory] = make
        self._guard: Callable[[Awaitable[int]], Awaitable[int]] | None = guard
        self._opened: Any = None

    async def _open(self) -> _Directory:
        used, name = self._core or current_core(), self._name()
        descriptor = Descriptor(name.dir, name.shown)
        request = OpenName(descriptor, name.path, flags=os.O_RDONLY | os.O_DIRECTORY, beneath=int(name.resolve != 0))
        with dropped_on_error(used, descriptor):
            call = request_of(used, request)
            await (call if self._guard is None else self._guard(call))
        return self._make(used, descriptor)

    def __await__(self) -> Generator[Any, Any, _Directory]:
        self._use("open_directory(...)")
        return self._open().__await__()

    async def __aenter__(self) -> _Directory:
        directory = self._opened = await self
        return directory

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        directory, self._opened = self._opened, None
        if directory is not None:
            await directory.__aexit__(kind, value, traceback)
