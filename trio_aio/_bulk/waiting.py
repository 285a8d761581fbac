"""What `Chunks` and `Writer` share: how deep they go, and how they wait for a request that is in flight."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_aio._backends import Backend
    from trio_aio._requests.base import Request

__all__ = ("checked_depth", "wait_for", "wait_shielded")


def checked_depth(depth: int) -> int:
    depth = operator.index(depth)
    if depth < 1:
        raise ValueError(f"depth must be at least 1, not {depth}")
    return depth


async def wait_for(backend: Backend, request: Request) -> None:
    """Wait for a request that is out. Cancelled: it goes on, and can be waited for again."""

    def leave() -> bool:
        request.waiter = None
        return True

    await backend.wait(request, leave)


async def wait_shielded(backend: Backend, request: Request) -> None:
    await backend.wait(request, lambda: False)
