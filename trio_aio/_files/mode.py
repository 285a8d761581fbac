"""`Mode`: what the mode string of ``open()`` means."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, NamedTuple

from trio_aio._files.text import text_format

if TYPE_CHECKING:
    from trio_aio._files.text import TextFormat

__all__ = ("Mode", "flags_of", "format_of", "parse_mode")


class Mode(NamedTuple):
    """What a mode string means. flags: for open(2). shown: `AsyncFile.mode`, as ``io.FileIO`` shows it."""

    flags: int
    shown: str
    readable: bool
    writable: bool
    text: bool


def parse_mode(mode: str) -> Mode:
    """Return what a mode means. ValueError for an invalid one; TypeError."""
    if not isinstance(mode, str):
        raise TypeError(f"mode must be str, not {type(mode).__name__}")
    return _parsed(str(mode))


@functools.lru_cache(maxsize=64)
def _parsed(mode: str) -> Mode:
    letters = set(mode)
    if len(letters) < len(mode) or letters - set("rwxabt+"):
        raise ValueError(f"invalid mode {mode!r}: it may have each of the letters r, w, x, a, b, t and + once")
    if "b" in letters and "t" in letters:
        raise ValueError(f"invalid mode {mode!r}: it must not have both 'b' (binary) and 't' (text)")
    action = letters & set("rwxa")
    if len(action) != 1:
        raise ValueError(f"invalid mode {mode!r}: it must have exactly one of 'r', 'w', 'x' and 'a' (read/write/append mode)")
    (kind,) = action
    plus = "+" in letters
    readable, writable = kind == "r" or plus, kind != "r" or plus
    flags = os.O_RDWR if readable and writable else os.O_WRONLY if writable else os.O_RDONLY
    flags |= {"r": 0, "w": os.O_CREAT | os.O_TRUNC, "x": os.O_CREAT | os.O_EXCL, "a": os.O_CREAT | os.O_APPEND}[kind]
    shown = "rb+" if kind == "w" and plus else kind + "b" + "+" * plus
    return Mode(flags | os.O_CLOEXEC, shown, readable, writable, "b" not in letters)


def format_of(
    mode: str, buffering: int, encoding: str | None, errors: str | None, newline: str | None, *, stacklevel: int
) -> TextFormat | None:
    """Return how a mode's text is encoded; None for a binary mode. ValueError, LookupError."""
    parsed = parse_mode(mode)
    if not parsed.text:
        for name, value in (("encoding", encoding), ("errors", errors), ("newline", newline)):
            if value is not None:
                raise ValueError(f"{name} must be None in binary mode, not {value!r}: for text, use mode={mode.replace('b', '')!r}")
        return None
    if buffering == 0:
        raise ValueError("buffering must not be 0 for text: open the file in binary mode, or leave buffering out")
    return text_format(encoding, errors, newline, readable=parsed.readable, writable=parsed.writable, stacklevel=stacklevel + 1)


def flags_of(mode: str) -> int:
    """Return the flags of open(2) for a mode. ValueError for an invalid one."""
    return parse_mode(mode).flags
