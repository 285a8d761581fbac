"""What all who have one file open share, by whatever name or descriptor: the order of its writes, and who holds a copy of its bytes.

A copy in memory must not outlive what it was copied from. Every change that goes through the engine says so here when it begins and when
it has ended; a copy is only kept if nothing was changed while it was made.
"""

from __future__ import annotations

from typing import Protocol
from weakref import WeakSet

from trio_aio._order import Gate

__all__ = ("Copy", "Inode")


class Copy(Protocol):
    """Bytes of the file, kept in memory."""

    def forget(self) -> None:
        """Hold nothing any more: the file is being changed, or was."""


class Inode:
    """One file, as its filesystem counts files."""

    __slots__ = ("__weakref__", "copies", "gate", "version")

    def __init__(self) -> None:
        self.gate: Gate = Gate()
        self.version: int = 0  # counts `changed`
        self.copies: WeakSet[Copy] = WeakSet()  # that are kept now

    def changed(self) -> None:
        """Note that a change begins, or has ended."""
        self.version += 1
        if self.copies:
            for copy in [*self.copies]:
                copy.forget()
            self.copies.clear()
