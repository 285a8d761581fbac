"""What all who have one file open share, by whatever name or descriptor: the order of its writes, and who holds a copy of its bytes.

A copy in memory must not outlive what it was copied from. Every change that goes through the engine says so here when it begins and when
it has ended; a copy is only kept if nothing was changed while it was made.
"""

from __future__ import annotations

from typing import Protocol
from weakref import ref

from trio_aio._order import Gate

__all__ = ("Copy", "Inode")


class Copy(Protocol):
    """Bytes of the file, kept in memory."""

    listed: bool

    def forget(self) -> None:
        """Hold nothing any more: the file is being changed, or was."""


class Inode:
    """One file, as its filesystem counts files."""

    __slots__ = ("__weakref__", "_copies", "_many", "gate", "version")

    def __init__(self) -> None:
        self.gate: Gate = Gate()
        self.version: int = 0  # counts `changed`
        # Plain references and not a WeakSet, which a finalizer in another thread may change while it is gone through.
        self._copies: list[ref[Copy]] = []
        self._many: int = 8  # then those that are gone are swept out

    def list_copy(self, copy: Copy) -> None:
        """Have a copy told of the next change."""
        if copy.listed:
            return
        copy.listed = True
        self._copies.append(ref(copy))
        if len(self._copies) > self._many:
            self._copies = [known for known in self._copies if known() is not None]
            self._many = 2 * len(self._copies) + 8

    def changed(self) -> None:
        """Note that a change begins, or has ended."""
        self.version += 1
        if self._copies:
            copies, self._copies = self._copies, []
            for known in copies:
                copy = known()
                if copy is not None:
                    copy.listed = False
                    copy.forget()
