"""`current_context`: the one context that all files of a run share."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

from trio_aio._backends import current_backend
from trio_aio._context.context import AIOContext, core_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_aio._backends import Backend
    from trio_aio._context.core import Core

__all__ = ("checked_core", "current_context", "current_core", "given_core", "usable_core")


class _Last(threading.local):
    """The core that `current_core` has returned last in this thread. Weak: an open context keeps its event loop alive."""

    core: Callable[[], Core | None] = staticmethod(lambda: None)


_last = _Last()


def current_context() -> AIOContext:
    """Return the context that all files of this run share, made on first use.

    It ends with the run. RuntimeError outside a run, or if the context is closed.
    """
    context: AIOContext = current_core().context
    return context


def current_core() -> Core:
    """Return the core of what `current_context` returns."""
    core = _last.core()
    # To ask whether the last one is this run's takes less than to find this run's.
    if core is not None and core.is_current(core.identity):
        return core
    core = core_of(current_backend().run_local(_make))
    if core.state == "closed":
        raise RuntimeError("this run's AIOContext is closed: the run is ending, or the program has closed it")
    _last.core = weakref.ref(core)
    return core


def usable_core() -> Core:
    """Return what `current_core` returns. RuntimeError also while it is closing."""
    core = current_core()
    if core.state != "open":
        raise core.refusal()
    return core


def given_core(context: AIOContext | None) -> Core | None:
    """Return the core of a context that was passed, None if none was. TypeError."""
    return None if context is None else core_of(context)


def checked_core(context: AIOContext | None) -> Core:
    """Return the core that serves a call: that of the context passed, or the run's. TypeError."""
    return current_core() if context is None else core_of(context)


def _make(backend: Backend) -> AIOContext:
    context = AIOContext()
    core_of(context).start(backend)
    return context
