"""A position in a text file as one integer, and the search for the bytes that it stands for.

A character may take several bytes, and some encodings have a state: what a byte means depends on the bytes before it. The decoder reads
whole chunks, so it does not report where in the bytes the next character starts.

So a position is a place where the decoder holds no bytes back, its flags there, and what to do from there: how many bytes to decode, and
how many of the characters to skip. `find_position` searches such a place, close to the character. First it guesses, from the average
number of bytes per character. Then it halves what is left, and decodes the last bytes one by one.

The integer has the layout of ``io.TextIOWrapper``, so that its cookies and ours are alike. `AsyncTextFile.tell` and `seek` call this.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ("TextPosition", "find_position")

_FIELD = (1 << 64) - 1
# Bytes that are decoded one by one.
_SHORT = 64


class TextPosition(NamedTuple):
    """A position in a text: what `AsyncTextFile.tell` returns, packed into one integer."""

    # Offset in the file where the decoder starts, bytes.
    position: int
    # The decoder's state there. Some decoders need more than 64 bits, so it is the highest field of the integer.
    flags: int = 0
    # How many bytes to decode from there.
    to_feed: int = 0
    # Whether those bytes must be decoded as the last ones of the file.
    need_end: bool = False
    # How many of the decoded characters come before the position.
    to_skip: int = 0

    def pack(self) -> int:
        """Return the position as an integer: 64 bits each for the first three numbers, one for `need_end`, the rest for `flags`."""
        return self.position | self.to_feed << 64 | self.to_skip << 128 | self.need_end << 192 | self.flags << 193

    @classmethod
    def unpack(cls, cookie: int) -> TextPosition:
        """Return the position that `pack` made `cookie` of."""
        return cls(cookie & _FIELD, cookie >> 193, cookie >> 64 & _FIELD, bool(cookie >> 192 & 1), cookie >> 128 & _FIELD)

    @property
    def is_beginning(self) -> bool:
        """Whether this is the start of the file, where a decoder starts afresh."""
        return not self.position and not self.flags


def _decode(decoder: Any, flags: int, data: bytes) -> tuple[int, int, int]:
    """Decode `data` from a state. Return how many characters it has, how many bytes the decoder holds back, and its flags then."""
    decoder.setstate((b"", flags))
    count = len(decoder.decode(data))
    undecoded, flags_here = decoder.getstate()
    return count, len(undecoded), flags_here


def find_position(decoder: Any, position: int, flags: int, data: bytes, to_skip: int, ratio: float) -> TextPosition:
    """Return the position after `to_skip` characters of `data`, and leave the decoder in any state.

    position: offset of `data` in the file, bytes. flags: the decoder's state before `data`. ratio: bytes per character in `data`, for the
    first guess. OSError if `data` has fewer characters.
    """
    # Guess a place before the character where the decoder holds no bytes back.
    skipped, step = min(int(ratio * to_skip), len(data)), 1
    while skipped > 0:
        count, held, flags_here = _decode(decoder, flags, data[:skipped])
        if count <= to_skip:
            if not held:
                flags = flags_here
                to_skip -= count
                break
            skipped -= held
            step = 1
        else:
            skipped -= step
            step *= 2
    else:
        skipped = 0
    # Halve what is left, as long as it is long: characters may have different lengths, and then the guess was far off.
    span = len(data) - skipped
    while to_skip and span > _SHORT:
        span //= 2
        end = skipped + span
        count, held, flags_here = _decode(decoder, flags, data[skipped:end])
        if held:
            end -= held
            count, held, flags_here = _decode(decoder, flags, data[skipped:end])
        if count < to_skip and not held:
            skipped, flags, to_skip = end, flags_here, to_skip - count
    position += skipped
    if not to_skip:
        return TextPosition(position, flags)
    decoder.setstate((b"", flags))
    # Decode the rest byte by byte. Each place where the decoder holds no bytes back is a better start.
    fed = decoded = 0
    for i in range(skipped, len(data)):
        fed += 1
        decoded += len(decoder.decode(data[i : i + 1]))
        undecoded, flags_here = decoder.getstate()
        if not undecoded and decoded <= to_skip:
            position += fed
            to_skip -= decoded
            flags, fed, decoded = flags_here, 0, 0
        if decoded >= to_skip:
            return TextPosition(position, flags, fed, False, to_skip)
    decoded += len(decoder.decode(b"", final=True))
    if decoded < to_skip:
        raise OSError("can't reconstruct logical file position")
    return TextPosition(position, flags, fed, True, to_skip)
