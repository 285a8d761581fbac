"""Lines: where one ends, how bytes and text are split into lines, and how small ones are joined before they are written.

Python's own functions do the work, because each is many times faster than a loop. ``str.splitlines`` is not among them: it ends a line
at characters such as "\\x0b" too, which ``open()`` does not.

A request costs several microseconds, whatever its size. So `writelines` joins its lines to parts of about 1 MiB, and writes each part with
one request. A part is also what is written between two cancellation points of asyncio.

Gathering and splitting lets other tasks run every few milliseconds, but never raises Cancelled. `reading.py`, `binary.py` and `text.py`
call these functions.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from trio_aio._memory.exports import export_buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _typeshed import ReadableBuffer

    from trio_aio._context.pace import Pace
    from trio_aio._memory.exports import Export

__all__ = ("Gatherer", "end_at", "end_at_any", "end_at_newline", "gathered_text", "last_end", "split_lines", "string_io")

# Bytes, or characters, of the parts that `writelines` writes: each is one request.
_PART = 1 << 20
# Lines that are gathered before they are joined, and we look at the time.
_LINES = 256
# Texts in a list. Forgetting a long one takes as long as making it, and cannot be divided.
_MOST_TEXTS = 1 << 16
# Bytes of lines that are split at once.
_STEP = 16 << 10


def end_at_newline(text: str, start: int) -> int:
    """Return the index after the line at `start` and its line end; 0 if it has no end."""
    return text.find("\n", start) + 1


def end_at(newline: str) -> Callable[[str, int], int]:
    """Return a function that does what `end_at_newline` does, for lines that end with `newline`."""

    def line_end(text: str, start: int) -> int:
        at = text.find(newline, start)
        return at + len(newline) if at >= 0 else 0

    return line_end


def end_at_any(text: str, start: int) -> int:
    r"""Do what `end_at_newline` does, for lines that end at \n, \r or \r\n. The decoder never separates the two characters of \r\n."""
    at, other = text.find("\n", start), text.find("\r", start)
    if other < 0 or 0 <= at < other:
        return at + 1
    return other + 2 if at == other + 1 else other + 1


def last_end(text: str, newline: str | None) -> int:
    """Return the index after the last complete line of `text`; 0 if it has none."""
    if newline == "":
        return max(text.rfind("\n"), text.rfind("\r")) + 1
    newline = newline or "\n"
    at = text.rfind(newline)
    return at + len(newline) if at >= 0 else 0


def string_io(text: str, newline: str) -> io.StringIO:
    """Return a StringIO that iterates over the lines of `text`, which end with `newline`."""
    lines = io.StringIO()
    # Set the state as unpickling does. The constructor would replace each "\n" by "\r\n".
    lines.__setstate__((text, newline, 0, None))  # type: ignore[attr-defined]
    return lines


async def split_lines(data: bytes, pace: Pace) -> list[bytes]:
    """Return the lines of `data`: only b"\n" ends one, and the last one may lack it."""
    # bytes.splitlines is slower, and would end a line at b"\r" too.
    source = io.BytesIO(data)
    lines = source.readlines(_STEP)
    while source.tell() < len(data):
        await pace.rest()
        lines += source.readlines(_STEP)
    return lines


class Gatherer:
    """Joins lines to parts of 1 MiB or more, at most one line more. Only the last part, and one before a line of 1 MiB, may have less."""

    def __init__(self, lines: Iterable[ReadableBuffer], pace: Pace) -> None:
        self._lines: Iterator[ReadableBuffer] = iter(lines)
        self._pace: Pace = pace
        # A long line, which is not copied.
        self._long: ReadableBuffer | None = None

    async def next(self) -> ReadableBuffer | list[Export] | None:
        """Return the next part, or None if there is none. A list: a line may belong to a mapped file, so a worker has to join them."""
        if self._long is not None:
            long, self._long = self._long, None
            return long
        joined: list[bytes] = []
        gathered: list[ReadableBuffer] = []
        size = 0
        mapped = False
        for line in self._lines:
            length, is_mapped = _measured(line)
            if length >= _PART:
                if not size:
                    return line
                self._long = line
                break
            gathered.append(line)
            size += length
            mapped = mapped or is_mapped
            if size >= _PART or (mapped and len(gathered) == _LINES):
                break
            if len(gathered) == _LINES:
                # Joining, and forgetting, half a million lines would take the event loop's thread tens of milliseconds.
                joined.append(b"".join(gathered))
                gathered.clear()
                await self._pace.rest()
        if not joined and not gathered:
            return None
        parts = [*joined, *gathered]
        return [export_buffer(part, writable=False) for part in parts] if mapped else b"".join(parts)


def _measured(line: ReadableBuffer) -> tuple[int, bool]:
    """Return the bytes of a line, and whether it may belong to a mapped file."""
    if isinstance(line, (bytes, bytearray)):
        return len(line), False
    if isinstance(line, memoryview) and line.contiguous and isinstance(line.obj, (bytes, bytearray)):
        return line.nbytes, False
    export = export_buffer(line, writable=False)
    return export.length, export.mapped


async def gathered_text(lines: Iterator[str], pace: Pace, *, joins: bool) -> list[str]:
    """Return the next of the lines: 2**20 characters or more, at most one line more. Only the last of them have fewer.

    joins: they may be joined. Otherwise there are 2**16 lines at most.
    """
    joined: list[str] = []
    gathered: list[str] = []
    size = 0
    for line in lines:
        if not isinstance(line, str):
            raise TypeError(f"lines must be strings, not {type(line).__name__}: decode it first, or open the file in binary mode")
        gathered.append(line)
        size += len(line)
        if size >= _PART:
            break
        if len(gathered) == _LINES:
            if joins:
                joined.append("".join(gathered))
            else:
                joined += gathered
            gathered.clear()
            if len(joined) >= _MOST_TEXTS:
                break
            await pace.rest()
    return joined + gathered
