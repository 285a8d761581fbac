"""What engines ask to have called at the end of a tick."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("call_last",)


def call_last(flushes: list[Callable[[], None]]) -> None:
    """Call the last function, and remove it unless it raises. It may add others.

    A function of its own: a variable of the generator that calls it would keep the last engine of a run until the run ends.
    """
    flush = flushes[-1]
    flush()
    flushes.remove(flush)
