"""`current_context`: the one context that all files of a run share."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

from trio_aio._backends import current_backend
from trio_aio._context.context import AIOContext

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_aio._backends import Backend

__all__ = ("current_context", "usable_context")


class _Last(threading.local):
    """The context that `current_context` has returned last in this thread. Weak: an open context keeps its event loop alive."""

    context: Callable[[], AIOContext | None] = staticmethod(lambda: None)


_last = _Last()


def current_context() -> AIOContext:
    """Return the context that all files of this run share, made on first use.

    It ends with the run. RuntimeError outside a run, or if the context is closed.
    """
    context = _last.context()
    # To ask whether the last one is this run's takes less than to find this run's.
    if context is not None and context._is_current(context._identity):
        return context
    shared: AIOContext = current_backend().run_local(_make)
    if shared._state == "closed":
        raise RuntimeError("this run's AIOContext is closed: the run is ending, or the program has closed it")
    _last.context = weakref.ref(shared)
    return shared


def usable_context() -> AIOContext:
    """Return what `current_context` returns. RuntimeError also while it is closing."""
    context = current_context()
    if context._state != "open":
        raise context._refusal()
    return context


def _make(backend: Backend) -> AIOContext:
    context = AIOContext()
    context._start(backend)
    return context
