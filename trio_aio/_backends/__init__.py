"""The seam to the async library: all that the rest of the package wants of one, and the choice of the one that runs."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from anyio.abc import AsyncResource

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ("Backend", "Deferred", "Performable", "Waitable", "async_resource", "current_backend", "resources")

_Type = TypeVar("_Type", bound=type)
resources: list[type] = []


def async_resource(cls: _Type) -> _Type:
    """Make a class with ``aclose`` an ``anyio.abc.AsyncResource``, and a ``trio.abc.AsyncResource`` once trio is there."""
    AsyncResource.register(cls)
    resources.append(cls)
    return cls


class Waitable(Protocol):
    """What a task can wait for: it is done, or its waiter will be woken."""

    waiter: Any

    @property
    def finished(self) -> bool:
        """Whether there is nothing to wait for any more."""


class Performable(Waitable, Protocol):
    """What is submitted, waited for and perhaps cancelled."""

    @property
    def took_no_effect(self) -> bool:
        """Whether it is finished because it was cancelled."""


_T = TypeVar("_T", bound=Performable)


class Backend(Protocol):
    """One run of an async library's event loop, on the thread that runs it."""

    identity: object
    """This run."""
    native_cancellation: tuple[type[BaseException], ...]
    """What comes through every shield: asyncio's Task.cancel, once the wait is over."""

    def current(self) -> object:
        """Give the run that the caller is in; RuntimeError outside any."""

    async def checkpoint_if_cancelled(self) -> None:
        """Raise Cancelled if that is due; else do nothing."""

    async def cancel_shielded_checkpoint(self) -> None:
        """Let other tasks run, whatever is due."""

    async def perform(self, submit: Callable[[_T], None], request: _T, cancel: Callable[[_T], bool]) -> None:
        """Checkpoint if cancelled, submit a request (or a batch of them) and wait until it is finished.

        Cancelled is raised before `submit`; or if `cancel`, called when the task is cancelled, gives True (then nobody will be woken);
        or, after a `cancel` that gave False, once the request is finished and `took_no_effect`. asyncio's native cancellation cannot be
        put off: it is raised in any case once the request is finished.
        """

    async def wait(self, waitable: Waitable, cancel: Callable[[], bool], start: Callable[[], None] | None = None) -> None:
        """Call `start` and wait until it is finished: a checkpoint.

        Cancelled is raised if `cancel`, called when that is due, gives True. asyncio's native cancellation, which cannot be put off, is
        also raised when it is finished.
        """

    async def wait_readable(self, fd: int) -> bool:
        """Wait until a descriptor is readable; cancellable at once. False: `notify_closing` was called for it."""

    def notify_closing(self, fd: int) -> None:
        """End the `wait_readable` of a descriptor."""

    def wake(self, waitable: Waitable) -> None:
        """Wake its waiter."""

    def start_reaper(self, fd: int, reap: Callable[[], bool], drained: Callable[[], bool], end: Callable[[], None]) -> None:
        """Start a task that belongs to the run: it calls `reap` whenever `fd` is readable, until that gives True.

        When the run ends first, it goes on until `drained` gives True, then calls `end`.
        """

    def at_end_of_tick(self, flush: Callable[[], None]) -> None:
        """Call `flush` once when the tasks of this tick have had their turn."""

    def shielded(self) -> Any:
        """Give a context manager in which cancellation is not delivered."""

    async def run_in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call foreign code that may block; not cancellable once it has begun."""

    def run_local(self, make: Callable[[Backend], Any]) -> Any:
        """Give the object that `make` made for this run when it was first asked for."""


class Deferred:
    """Puts a native cancellation off to the end of a call that must not stop half-way: ``with deferred: await ...``, then `deliver`."""

    def __init__(self, backend: Backend) -> None:
        self._kinds: tuple[type[BaseException], ...] = backend.native_cancellation
        self._error: BaseException | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> bool:
        if not isinstance(value, self._kinds):
            return False
        self._error = value
        return True

    def deliver(self) -> None:
        """Raise what was put off."""
        if self._error is not None:
            raise self._error


def current_backend() -> Backend:
    """Give the backend of the run that the caller is in; RuntimeError outside any."""
    trio = sys.modules.get("trio")
    # A trio that is a guest of asyncio is there in the host's tasks too, but they are not its tasks.
    if trio is not None and trio.lowlevel.in_trio_task():
        return _load("_trio")
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        return _load("_asyncio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return _load("_trio")
    raise RuntimeError("trio_aio must be called from async context, inside trio.run, asyncio.run or anyio.run")


def _load(name: str) -> Backend:
    backend: Backend = importlib.import_module(f"trio_aio._backends.{name}").current()
    return backend
