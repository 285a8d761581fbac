"""`Cursor`: a file's cursor, and the piece of the file that was read at it.

A line of an ``async for`` should cost little more than the loop itself, so the loop takes it from an ``io.BytesIO`` of whole lines and
does nothing else: where the cursor is meanwhile is found out from how far that has come, when somebody asks.

A piece in memory must not outlive what it was copied from: the file's `SharedFile` says when to forget it.
"""

from __future__ import annotations

from io import SEEK_END, BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_aio._engine.shared_file import SharedFile

__all__ = ("LARGEST", "Cursor")

SMALLEST = 8 << 10  # bytes: the first piece after a jump; the next ones double
LARGEST = 64 << 10  # a copy that does not keep the loop from its other tasks
_NO_LINES = BytesIO()


class Cursor:
    """A cursor, and bytes of the file around it."""

    def __init__(self, position: int, shared_file: SharedFile) -> None:
        self._shared_file: SharedFile = shared_file
        self._forgotten: int = 0  # counts `forget`
        self._position: int = position  # the cursor without what `_lines` has given since
        self._lines: BytesIO = _NO_LINES
        self.derived: BytesIO = _NO_LINES  # what somebody has made of `_data`, and gives piece by piece
        self.registered: bool = False  # among the copies of the file's inode
        self._data: bytes = b""
        self._start: int = 0  # of `_data` in the file
        self._size: int = SMALLEST  # of the next piece

    @property
    def position(self) -> int:
        """Where the cursor is, bytes."""
        return self._position + self._lines.tell()

    def move(self, position: int) -> None:
        """Put the cursor somewhere. The lines that `split` gave end, wherever they are held."""
        self._lines.seek(0, SEEK_END)
        self._lines = _NO_LINES
        self._position = position

    def settle(self) -> int:
        """Give where the cursor is, and end the lines that were split: it stays there until `move`."""
        position = self.position
        self.move(position)
        return position

    def forget(self) -> None:
        """Hold nothing any more: the file is being changed, or was."""
        self._forgotten += 1
        self.settle()
        self.derived.truncate()  # where it is: what was not given is no more
        self.derived = _NO_LINES
        self._data = b""

    @property
    def version(self) -> int:
        """What is another number once the file has been changed, or `forget` called."""
        return self._shared_file.version + self._forgotten

    @property
    def held(self) -> int:
        """How many bytes are in memory from the cursor on."""
        at = self.position - self._start
        return max(len(self._data) - at, 0) if at >= 0 else 0

    def peek(self, size: int) -> bytes:
        """Give up to `size` bytes from the cursor on that are in memory; the cursor stays."""
        at = self.position - self._start
        return self._data[at : at + size] if at >= 0 else b""

    def line(self, limit: int) -> tuple[bytes, bool]:
        """Give what is in memory of the line at the cursor, at most `limit` bytes (-1: all), and whether that is all; the cursor stays."""
        data = self._data
        at = self.position - self._start
        if at < 0 or at >= len(data):
            return b"", limit == 0
        end = data.find(b"\n", at) + 1
        if 0 <= limit <= (end or len(data)) - at:
            return data[at : at + limit], True
        return (data[at:end], True) if end else (data[at:], False)

    def split(self) -> Iterator[bytes]:
        """Give an iterator over the whole lines that are next in memory, some or none. The cursor goes with it."""
        position = self.settle()
        data = self._data
        at = position - self._start
        end = data.rfind(b"\n", at) + 1 if at >= 0 else 0
        if end > at:
            self._lines = BytesIO(data[at:end])
        return self._lines

    def next_size(self, position: int) -> int:
        """Give how much should be read at `position`: more each time, while the reader goes straight on."""
        if position == self._start + len(self._data) and self._data:
            self._size = min(2 * self._size, LARGEST)
        else:
            self._size = SMALLEST
        return self._size

    def keep(self, start: int, data: bytes, version: int) -> None:
        """Hold what was read at `start`, unless the file has been changed since the reading began (with `version`)."""
        if version == self.version:
            self._data = data
            self._start = start
            self._shared_file.register_cache(self)
