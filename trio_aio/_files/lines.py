"""Lines: where one ends, how text and bytes are split into them, and how many small ones are joined before they are written."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _typeshed import ReadableBuffer

__all__ = ("end_at", "end_at_any", "end_at_newline", "gathered", "gathered_text", "last_end", "split_lines", "string_io")

_GATHERED = 1 << 20  # bytes or characters that `writelines` writes in one request


def split_lines(data: bytes) -> list[bytes]:
    """Return the lines of `data`: only b"\n" ends one, and the last one may lack it."""
    return io.BytesIO(data).readlines()  # faster than splitlines, and that would end them at b"\r" too


def end_at_newline(text: str, start: int) -> int:
    """Return where the line at `start` ends, behind its line end; 0 or less if it has none."""
    return text.find("\n", start) + 1


def end_at(newline: str) -> Callable[[str, int], int]:
    def line_end(text: str, start: int) -> int:
        at = text.find(newline, start)
        return at + len(newline) if at >= 0 else 0

    return line_end


def end_at_any(text: str, start: int) -> int:
    r"""Return the same for lines that end at \n, \r or \r\n. The decoder never separates the two characters of the last."""
    at, other = text.find("\n", start), text.find("\r", start)
    if other < 0 or 0 <= at < other:
        return at + 1
    return other + 2 if at == other + 1 else other + 1


def last_end(text: str, newline: str | None) -> int:
    """Return where the last complete line of `text` ends; 0 if there is none."""
    if newline == "":
        return max(text.rfind("\n"), text.rfind("\r")) + 1
    newline = newline or "\n"
    at = text.rfind(newline)
    return at + len(newline) if at >= 0 else 0


def string_io(text: str, newline: str) -> io.StringIO:
    lines = io.StringIO()
    # As unpickling does. The constructor would write "\r\n" for each "\n".
    lines.__setstate__((text, newline, 0, None))  # type: ignore[attr-defined]
    return lines


def gathered(lines: Iterable[ReadableBuffer]) -> Iterator[bytes]:
    """Join bytes-like objects to parts of 1 MiB or little more."""
    gathered: list[ReadableBuffer] = []
    size = 0
    for line in lines:
        gathered.append(line)
        size += memoryview(line).nbytes
        if size >= _GATHERED:
            yield b"".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield b"".join(gathered)


def gathered_text(lines: Iterable[str]) -> Iterator[list[str]]:
    """Gather strings to lists of 2**20 characters or little more."""
    gathered: list[str] = []
    size = 0
    for line in lines:
        if not isinstance(line, str):
            raise TypeError(f"write() argument must be str, not {type(line).__name__}")
        gathered.append(line)
        size += len(line)
        if size >= _GATHERED:
            yield gathered
            gathered, size = [], 0
    if gathered:
        yield gathered
