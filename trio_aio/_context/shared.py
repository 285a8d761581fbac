"""`current_context`: the one context that all files of a run share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_aio._backends import current_backend
from trio_aio._context.context import AIOContext

if TYPE_CHECKING:
    from trio_aio._backends import Backend

__all__ = ("current_context",)


def current_context() -> AIOContext:
    """Return the context that all files of this run share, made on first use.

    It ends with the run. RuntimeError outside a run, or if the context is closed.
    """
    context: AIOContext = current_backend().run_local(_make)
    if context._state == "closed":
        raise RuntimeError("this run's AIOContext is closed: the run is ending, or the program has closed it")
    return context


def _make(backend: Backend) -> AIOContext:
    context = AIOContext()
    context._start(backend)
    return context
