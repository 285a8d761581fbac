"""The interface to the event loop: what the rest of the package needs of one, and the choice of the one that runs.

A backend imports its async library, and a program uses one of them, seldom both. So it is imported when that library runs. But by then the
program may be unable to open a file: after chroot(2), in a sandbox, or without a free descriptor. So `load_backends`, called by the
package's import, imports the backends of the libraries that the program has imported before, and reads the code of the others.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from anyio.abc import AsyncResource

import trio_aio._backends.flushes
import trio_aio._backends.interrupts
import trio_aio._backends.mock_clock  # noqa: F401 -- for the backends, which may have to be loaded without their files
from trio_aio._backends.library import current_library
from trio_aio._backends.scopes import sent_by_scope

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType, TracebackType

__all__ = (
    *("Backend", "Deferred", "Performable", "PutOff", "Waitable", "Waiter", "async_resource", "current_backend", "forget_scope"),
    *("load_backends", "protect_from_interrupts", "protected", "raise_if_cancelled", "resources", "shielded_checkpoint"),
)

_Type = TypeVar("_Type", bound=type)
resources: list[type] = []


def async_resource(cls: _Type) -> _Type:
    """Make a class with ``aclose`` an ``anyio.abc.AsyncResource``, and a ``trio.abc.AsyncResource`` once trio is imported."""
    AsyncResource.register(cls)
    resources.append(cls)
    return cls


_Function = TypeVar("_Function", bound="Callable[..., Any]")
protected: list[Callable[..., Any]] = []


def protect_from_interrupts(function: _Function) -> _Function:
    """Let no KeyboardInterrupt be raised inside a function on trio: it is raised at a later checkpoint instead.

    For what must be undone: an interrupt between a lease and its `try` would keep the file's close waiting for ever.
    On asyncio it does nothing: there the caller closes the gate (`interrupts.py`).
    """
    protected.append(function)
    return function


class Waitable(Protocol):
    """What a task can wait for: it is finished, or its waiter will be woken."""

    waiter: Any

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to wait for."""


class Waiter:
    """The plainest `Waitable`: set `finished`, then wake it."""

    __slots__ = ("finished", "waiter")

    def __init__(self) -> None:
        self.waiter: Any = None
        self.finished: bool = False


class Performable(Waitable, Protocol):
    """What a task submits, waits for and perhaps cancels."""

    @property
    def took_no_effect(self) -> bool:
        """Whether it is finished because it was cancelled."""


_T = TypeVar("_T", bound=Performable)


class Backend(Protocol):
    """One run of an async library's event loop, on the thread that runs it."""

    identity: object
    """This run."""
    side: Callable[[], object]
    own_side: object
    """A quick look in this run's thread: ``side() == own_side``, unless the other library, or another loop, runs the code that calls."""

    turn: float
    """Seconds that the event loop may need for one turn of the reaper, with the tasks that it wakes."""

    def current(self) -> object:
        """Return the run whose task calls. RuntimeError outside a task, and in a task of the other library."""

    def current_task(self) -> object:
        """Return the task that calls; None in a callback of asyncio."""

    def is_native(self, error: BaseException | None) -> bool:
        """Return whether an exception passes every shield: asyncio's Task.cancel, which is raised once the wait has ended."""

    def has_ended(self, task: Any) -> bool:
        """Return whether a task that `current_task` has returned has ended."""

    async def checkpoint_if_cancelled(self) -> None:
        """Raise Cancelled if that is due; otherwise do nothing."""

    async def cancel_shielded_checkpoint(self) -> None:
        """Let other tasks run, even if a cancellation is due."""

    async def perform(self, submit: Callable[[_T], bool | None], request: _T, cancel: Callable[[_T], bool]) -> None:
        """Checkpoint if cancelled, submit a request or a group of them, and wait until it is finished.

        `submit` returns True if it knows that the request is not finished yet.

        Cancelled is raised before `submit`; or if `cancel`, called when the task is cancelled, returns True (then no task will be woken);
        or, after a `cancel` that returned False, once the request is finished and `took_no_effect`. asyncio's native cancellation cannot
        be put off: it is always raised once the request is finished.
        """

    async def wait(self, waitable: Waitable, cancel: Callable[[], bool], start: Callable[[], None] | None = None) -> None:
        """Call `start` and wait until `waitable` is finished: a checkpoint.

        Cancelled is raised if `cancel`, called when that is due, returns True. asyncio's native cancellation, which cannot be put off, is
        also raised when it is finished.
        """

    async def wait_readable(self, fd: int) -> bool:
        """Wait until an fd is readable. Can be cancelled at once. False: `notify_closing` was called for it."""

    def notify_closing(self, fd: int) -> None:
        """End the `wait_readable` of an fd."""

    def step(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function that must not be torn: no exception of a signal handler is raised inside. On asyncio it may be raised after it.

        trio puts off KeyboardInterrupt alone. `perform` and `wait` do the same for what they call, and so do the reaper and the flush.
        """

    def wake(self, waitable: Waitable) -> None:
        """Wake the task that waits for it."""

    def start_reaper(self, fd: int, reap: Callable[[], bool], drained: Callable[[], bool], end: Callable[[], None]) -> None:
        """Start the reaper, which belongs to the run: it calls `reap` whenever `fd` is readable, until that returns True.

        If the run ends first, it continues until `drained` returns True, then calls `end`.
        """

    def at_end_of_tick(self, flush: Callable[[], None]) -> None:
        """Call `flush` once, when the tasks of this tick have run."""

    def shielded(self) -> Any:
        """Return a context manager in which cancellation is not delivered."""

    def hold_clock(self, is_busy: Callable[[], bool]) -> None:
        """Let a mock clock stand still while a bound method returns True: trio's, if this run has one."""

    async def run_in_thread(self, function: Callable[..., Any], *args: Any, abandon: bool = False) -> Any:
        """Call foreign code that may block. It cannot be cancelled once it has started. abandon: then the cancelled task does not wait."""

    def run_local(self, make: Callable[[Backend], Any]) -> Any:
        """Return the object that `make` made for this run at the first call."""


class PutOff:
    """Keeps a native cancellation until the end of a call: ``with put_off: await ...``. `Deferred` makes it, and raises what it keeps."""

    __slots__ = ("error", "is_native")

    def __init__(self, is_native: Callable[[BaseException | None], bool]) -> None:
        self.is_native: Callable[[BaseException | None], bool] = is_native
        self.error: BaseException | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> bool:
        if not self.is_native(value):
            return False
        self.error = value
        return True

    @property
    def due(self) -> bool:
        """Whether one was put off."""
        return self.error is not None


class Deferred:
    """Puts off native cancellations to the end of a call that must not stop half-way, and raises one there, whatever the call raises::

        with Deferred(backend) as put_off:
            with put_off:
                await ...

    What the call raises otherwise, an error or the Cancelled of a scope, is then its ``__cause__``. error: what was raised before, if the
    call mends that. A native cancellation is then raised in place of what the call raises.
    """

    __slots__ = ("_before", "_put_off")

    def __init__(self, backend: Backend, error: BaseException | None = None) -> None:
        self._put_off: PutOff = PutOff(backend.is_native)
        self._before: BaseException | None = error

    def __enter__(self) -> PutOff:
        return self._put_off

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        # The frames in a traceback hold this object. It must not hold the exception: that cycle would keep what they have alive.
        put_off, before = self._put_off, self._before
        self._before = None
        if put_off.error is None and value is not None and put_off.is_native(before):
            put_off.error = before
        del before
        if put_off.error is not None and (value is None or isinstance(value, (Exception, type(put_off.error)))):
            raise_native(put_off, value)


def raise_native(put_off: PutOff, cause: BaseException | None) -> NoReturn:
    """Raise what was put off. anyio would take it for that of a scope if it were raised while that one is handled."""
    error, put_off.error = put_off.error, None
    assert error is not None
    try:
        if cause is not None:
            error.__cause__ = cause
            if cause.__context__ is error:
                cause.__context__ = None
        raise error
    finally:
        forget_scope(error)
        del error, cause


def forget_scope(error: BaseException) -> None:
    """Take the cancellation of a scope from the context of a native one, which came while that was handled: anyio would confuse them."""
    before: Any = error.__context__
    alike = isinstance(before, type(error))
    if alike and sent_by_scope(before):
        error.__context__ = before.__context__


_LIBRARIES = ("trio", "asyncio")
# What asyncio imports late, for the first function that it calls in a thread.
_LATE_IMPORTS = {"trio": (), "asyncio": ("concurrent.futures.thread",)}
# Backends of libraries that were not imported when this package was.
_unused: dict[str, tuple[ModuleSpec, CodeType]] = {}
_loading = threading.Lock()  # runs in several threads may want their backend at once


def load_backends() -> None:
    """Import the backends of the async libraries that are imported, and read the code of the others."""
    for library in _LIBRARIES:
        name = f"{__name__}._{library}"
        if library in sys.modules:
            for module in (name, *_LATE_IMPORTS[library]):
                importlib.import_module(module)
        else:
            spec = importlib.util.find_spec(name)
            get_code = getattr(None if spec is None else spec.loader, "get_code", None)
            if get_code is not None:
                assert spec is not None
                _unused[name] = spec, get_code(name)


def current_backend() -> Backend:
    """Return the backend of the run whose task calls this. RuntimeError outside a task."""
    name = f"{__name__}._{current_library()}"
    module = sys.modules.get(name)
    backend: Backend = (_load(name) if module is None else module).current()
    return backend


async def raise_if_cancelled() -> None:
    """Raise Cancelled if the caller's scope is cancelled, in whatever run the caller is. For the end of a close.

    Where no task runs, it does nothing: see `shielded_checkpoint`.
    """
    try:
        backend = current_backend()
    except RuntimeError:
        return
    await backend.checkpoint_if_cancelled()


async def shielded_checkpoint() -> None:
    """Let other tasks run, in whatever run the caller is. Never raises Cancelled. For what was closed with a run that is over.

    Where no task runs, it does nothing: a coroutine that is thrown away with its loop still closes its files.
    """
    try:
        backend = current_backend()
    except RuntimeError:
        return
    await backend.cancel_shielded_checkpoint()


def _load(name: str) -> ModuleType:
    """Import a backend, without reading a file if `load_backends` has read its code."""
    with _loading:
        unused = None if name in sys.modules else _unused.pop(name, None)
        if unused is not None:
            spec, code = unused
            module = importlib.util.module_from_spec(spec)
            exec(code, module.__dict__)
            sys.modules[name] = module
    return importlib.import_module(name)
