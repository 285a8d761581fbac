"""Where a text file's cursor is, as one integer, and how the decoder gets there again.

A decoder keeps state between bytes, so a position is a place where its state is simple, and what must be fed to it from there on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ("TextPosition", "find_position")

_FIELD = (1 << 64) - 1


class TextPosition(NamedTuple):
    """A place in a text: what `AsyncTextFile.tell` gives, as one integer."""

    position: int  # in the file, bytes; the decoder starts there
    flags: int = 0  # the decoder's state; some need more than 64 bits
    to_feed: int = 0  # bytes to give it
    need_end: bool = False  # whether it is then told that this is the end
    to_skip: int = 0  # characters to throw away

    def pack(self) -> int:
        return self.position | self.to_feed << 64 | self.to_skip << 128 | self.need_end << 192 | self.flags << 193

    @classmethod
    def unpack(cls, cookie: int) -> TextPosition:
        return cls(cookie & _FIELD, cookie >> 193, cookie >> 64 & _FIELD, bool(cookie >> 192 & 1), cookie >> 128 & _FIELD)

    @property
    def is_beginning(self) -> bool:
        return not self.position and not self.flags


def find_position(decoder: Any, position: int, flags: int, data: bytes, to_skip: int, ratio: float) -> TextPosition:
    """Return the place behind `to_skip` characters of `data`, which is at `position` and starts with the decoder's `flags`.

    ratio: bytes for each character, of late: where to look first.
    """
    # First a guess: some bytes before it where the decoder holds nothing back.
    skipped, step = min(int(ratio * to_skip), len(data)), 1
    while skipped > 0:
        decoder.setstate((b"", flags))
        count = len(decoder.decode(data[:skipped]))
        if count <= to_skip:
            held, flags_here = decoder.getstate()
            if not held:
                flags = flags_here
                to_skip -= count
                break
            skipped -= len(held)
            step = 1
        else:
            skipped -= step
            step *= 2
    else:
        skipped = 0
        decoder.setstate((b"", flags))
    position += skipped
    if not to_skip:
        return TextPosition(position, flags)
    # Then byte by byte; each place where it holds nothing back is a better start.
    fed = decoded = 0
    for i in range(skipped, len(data)):
        fed += 1
        decoded += len(decoder.decode(data[i : i + 1]))
        held, flags_here = decoder.getstate()
        if not held and decoded <= to_skip:
            position += fed
            to_skip -= decoded
            flags, fed, decoded = flags_here, 0, 0
        if decoded >= to_skip:
            return TextPosition(position, flags, fed, False, to_skip)
    decoded += len(decoder.decode(b"", final=True))
    if decoded < to_skip:
        raise OSError("can't reconstruct logical file position")
    return TextPosition(position, flags, fed, True, to_skip)
