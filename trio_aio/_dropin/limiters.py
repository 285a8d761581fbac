"""Limiters: which ones `open_file` takes, and a limiter of trio's in the form that anyio's files ask for.

anyio's files call threads, each with a token of their limiter, and take limiters of anyio's own type only. trio's has the same methods.
"""

from __future__ import annotations

import sys
from operator import attrgetter
from typing import Any

from anyio import CapacityLimiter

from trio_aio._backends.library import current_library

__all__ = ("check_limiter", "for_anyio")


def check_limiter(limiter: Any) -> None:
    """TypeError if `limiter` is neither None nor a limiter of anyio or trio. trio is not imported for that."""
    trio = sys.modules.get("trio")
    kinds = (CapacityLimiter,) if trio is None else (CapacityLimiter, trio.CapacityLimiter)
    if limiter is not None and not isinstance(limiter, kinds):
        raise TypeError(f"limiter must be an anyio.CapacityLimiter or a trio.CapacityLimiter, not {type(limiter).__name__}")


def for_anyio(limiter: Any) -> CapacityLimiter:
    """Return `limiter`, or what stands before it if it is trio's. TypeError for trio's where trio does not run: it needs tasks of trio."""
    if isinstance(limiter, CapacityLimiter):
        return limiter
    if current_library() != "trio":
        raise TypeError("limiter must be an anyio.CapacityLimiter for this file: it is used in threads, and trio's works in trio only")
    return _OfTrio(limiter)


class _OfTrio(CapacityLimiter):
    """A limiter of trio's, with the type of anyio's."""

    __slots__ = ("_limiter",)

    def __new__(cls, limiter: Any) -> _OfTrio:
        return object.__new__(cls)

    def __init__(self, limiter: Any) -> None:
        self._limiter = limiter


for _name in (
    *("__aenter__", "__aexit__", "borrowed_tokens", "available_tokens", "statistics"),
    *("acquire", "acquire_nowait", "acquire_on_behalf_of", "acquire_on_behalf_of_nowait", "release", "release_on_behalf_of"),
):
    setattr(_OfTrio, _name, property(attrgetter(f"_limiter.{_name}")))
_OfTrio.total_tokens = property(  # type: ignore[assignment]
    attrgetter("_limiter.total_tokens"), lambda self, value: setattr(self._limiter, "total_tokens", value)
)
