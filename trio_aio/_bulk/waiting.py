"""What `Chunks` and `Writer` share: the check of `depth`, and the wait for one request that is in flight.

Other calls submit a request and wait for it in one step, and cancellation withdraws it. Requests that read ahead or write behind are in
flight long before a task waits for them. A cancelled task must not withdraw them: it only stops waiting.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_aio._backends import Backend
    from trio_aio._requests.base import Request

__all__ = ("checked_depth", "wait_for", "wait_shielded")


def checked_depth(depth: int) -> int:
    """Return `depth` as an int. ValueError if it is less than 1."""
    depth = operator.index(depth)
    if depth < 1:
        raise ValueError(f"depth must be at least 1, not {depth}")
    return depth


async def wait_for(backend: Backend, request: Request) -> None:
    """Wait for a request that is in flight. Cancelled: the request continues, and can be waited for again."""

    def leave() -> bool:
        request.waiter = None
        return True

    await backend.wait(request, leave)


async def wait_shielded(backend: Backend, request: Request) -> None:
    """Wait for a request that is in flight. Cancelled: Cancelled is raised at the next checkpoint."""
    await backend.wait(request, lambda: False)
