"""`Cursor`: the position of a file's cursor, and the read-ahead buffer around it.

A system call for each line would cost more than the line. So `AsyncFile` reads 8 to 64 KiB at once, and takes lines from memory.

A line of an ``async for`` should cost little more than the loop itself. The loop therefore iterates over an ``io.BytesIO`` of whole lines
and does nothing else. Nothing is counted for each line: `position` adds how far that ``io.BytesIO`` has been read.

The buffer must not outlive the bytes that it was copied from. Every write of this process to the file, through any of its fds, is noted in
the file's `SharedFile`, which then calls `forget`. A read that was in flight meanwhile is not kept: its `version` is an old one.

`AsyncFile` and `AsyncTextFile` call this with the file's lock available. Only `SharedFile` calls `forget` without it.
"""

from __future__ import annotations

from io import SEEK_END, BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_aio._engine.shared_file import SharedFile

__all__ = ("LARGEST", "Cursor")

# Bytes of the first read after a jump. Each sequential read after it is twice as long as the one before.
SMALLEST = 8 << 10
# Bytes of the longest read-ahead. The copy is short enough for the event loop's thread.
LARGEST = 64 << 10
_NO_LINES = BytesIO()


class Cursor:
    """A cursor, and bytes of the file around it."""

    def __init__(self, position: int, shared_file: SharedFile) -> None:
        self.shared_file: SharedFile = shared_file
        # How often `forget` was called.
        self._forgotten: int = 0
        # Bytes. The cursor is here, plus what has been read from `_lines` since.
        self._position: int = position
        self._lines: BytesIO = _NO_LINES
        # Lines that a text file has made from `_data`. They end when `_data` does.
        self.derived: BytesIO = _NO_LINES
        # Whether the `SharedFile` has this cursor on its list of caches.
        self.registered: bool = False
        self._data: bytes = b""
        # Offset of `_data` in the file, bytes.
        self._start: int = 0
        # Size of the last read-ahead, bytes.
        self._size: int = SMALLEST

    @property
    def position(self) -> int:
        """The position of the cursor, bytes."""
        return self._position + self._lines.tell()

    def move(self, position: int) -> None:
        """Move the cursor. Iterators that `split` has returned end here."""
        self._lines.seek(0, SEEK_END)
        self._lines = _NO_LINES
        self._position = position

    def settle(self) -> int:
        """Return the position of the cursor, and end the iterators that `split` has returned. It does not change until `move`."""
        position = self.position
        self.move(position)
        return position

    def forget(self) -> None:
        """Drop the bytes in memory: the file is being changed, or was."""
        self._forgotten += 1
        self.settle()
        # Cut at its own position: lines that have not been returned yet are dropped too.
        self.derived.truncate()
        self.derived = _NO_LINES
        self._data = b""

    def refresh(self) -> None:
        """Drop the bytes in memory, of all cursors of the file, after a change in another thread."""
        self.shared_file.note_change()

    @property
    def file_version(self) -> int:
        """A number that changes when the file is changed."""
        return self.shared_file.version

    @property
    def version(self) -> int:
        """A number that changes when the file is changed, or `forget` is called."""
        return self.shared_file.version + self._forgotten

    @property
    def available(self) -> int:
        """How many bytes from the cursor on are in memory."""
        at = self.position - self._start
        return max(len(self._data) - at, 0) if at >= 0 else 0

    def peek(self, size: int) -> bytes:
        """Return up to `size` bytes from the cursor that are in memory. The cursor does not move."""
        at = self.position - self._start
        return self._data[at : at + size] if at >= 0 else b""

    def line(self, limit: int) -> tuple[bytes, bool]:
        """Return what is in memory of the line at the cursor, and whether that is all of it, or `limit` bytes. The cursor does not move.

        limit: bytes; -1: no limit.
        """
        data = self._data
        at = self.position - self._start
        if at < 0 or at >= len(data):
            return b"", limit == 0
        end = data.find(b"\n", at) + 1
        if 0 <= limit <= (end or len(data)) - at:
            return data[at : at + limit], True
        return (data[at:end], True) if end else (data[at:], False)

    def split(self) -> Iterator[bytes]:
        """Return an iterator over the whole lines that are in memory from the cursor on, or none. The cursor moves with it."""
        position = self.settle()
        data = self._data
        at = position - self._start
        end = data.rfind(b"\n", at) + 1 if at >= 0 else 0
        if end > at:
            self._lines = BytesIO(data[at:end])
        return self._lines

    def next_size(self, position: int) -> int:
        """Return how many bytes to read at `position`: twice as many as before while reads are sequential, up to `LARGEST`."""
        if position == self._start + len(self._data) and self._data:
            self._size = min(2 * self._size, LARGEST)
        else:
            self._size = SMALLEST
        return self._size

    def keep(self, start: int, data: bytes, version: int) -> None:
        """Keep `data`, read at `start`, unless the file has changed since the read started. version: `self.version` before the read."""
        if version == self.version:
            self._data = data
            self._start = start
            self.shared_file.register_cache(self)
