"""`PacedLines`: what an ``async for`` over lines needs, so that other tasks run every millisecond.

A line that is in memory costs little more than the loop itself, and no checkpoint. But there may be thousands, and the body of the loop may
take long with each. A look at the clock costs a quarter of a line. So lines are handed out some at a time, and the clock is read between.
Their number is what the last ones took: one line at a time if the body is slow, at most 64 if it is fast.

`ReadableFile` and `AsyncTextFile` put the lines that they have in memory into `_source`.
"""

from __future__ import annotations

from itertools import islice
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("PacedLines",)

_Line = TypeVar("_Line", bytes, str)

# Seconds from a checkpoint to the look at the clock that asks for the next one. With the lines until then it is less than a millisecond.
_LONGEST = 0.0007
# Seconds that the lines between two looks at the clock may take, about.
_STEP = 0.0001
# Lines between two looks, at most.
_MOST = 64


class PacedLines(Generic[_Line]):
    """Lines in memory, some at a time."""

    def __init__(self) -> None:
        # All lines in memory that `async for` returns next.
        self._source: Iterator[_Line] = iter(())
        # The first of them.
        self._lines: Iterator[_Line] = self._source
        # How many these are.
        self._count: int = 1
        # When the clock was read last, and when a checkpoint is due.
        self._read_at: float = 0.0
        self._due: float = inf

    def _hand_out(self, source: Iterator[_Line]) -> None:
        """Let `source` be the lines in memory. A checkpoint may have come just before."""
        self._source = source
        self._lines = islice(source, self._count)

    def _note_checkpoint(self) -> None:
        """Note that other tasks have just run."""
        self._read_at = now = perf_counter()
        self._due = now + _LONGEST

    def _is_due(self) -> bool:
        """Hand out more lines, and return whether a checkpoint is due before."""
        now = perf_counter()
        if self._due == inf:
            self._due = now + _LONGEST
        spent, self._read_at = now - self._read_at, now
        if spent > 2 * _STEP:
            self._count = 1
        elif spent < _STEP and self._count < _MOST:
            self._count *= 2
        self._lines = islice(self._source, self._count)
        return now >= self._due
