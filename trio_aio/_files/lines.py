"""Lines: where one ends, how bytes and text are split into lines, and how small ones are joined before they are written.

Python's own functions do the work, because each is many times faster than a loop. ``str.splitlines`` is not among them: it ends a line
at characters such as "\\x0b" too, which ``open()`` does not.

A request costs several microseconds, whatever its size. So `writelines` joins its lines to parts of about 1 MiB, and writes each part with
one request. A part is also what is written between two cancellation points of asyncio.

`binary.py` and `text.py` call these functions. None of them is a checkpoint.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _typeshed import ReadableBuffer

__all__ = ("end_at", "end_at_any", "end_at_newline", "gathered", "gathered_text", "last_end", "split_lines", "string_io")

# Bytes, or characters, of the parts that `writelines` writes: each is one request.
_PART = 1 << 20


def split_lines(data: bytes) -> list[bytes]:
    """Return the lines of `data`: only b"\n" ends one, and the last one may lack it."""
    # bytes.splitlines is slower, and would end a line at b"\r" too.
    return io.BytesIO(data).readlines()


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


def gathered(lines: Iterable[ReadableBuffer]) -> Iterator[bytes]:
    """Yield the lines joined to parts: each has 1 MiB or more, at most one line more. Only the last may have less."""
    gathered: list[ReadableBuffer] = []
    size = 0
    for line in lines:
        gathered.append(line)
        size += memoryview(line).nbytes
        if size >= _PART:
            yield b"".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield b"".join(gathered)


def gathered_text(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield lists of the lines: each has 2**20 characters or more, at most one line more. Only the last may have fewer."""
    gathered: list[str] = []
    size = 0
    for line in lines:
        if not isinstance(line, str):
            raise TypeError(f"lines must be strings, not {type(line).__name__}: decode it first, or open the file in binary mode")
        gathered.append(line)
        size += len(line)
        if size >= _PART:
            yield gathered
            gathered, size = [], 0
    if gathered:
        yield gathered
