"""Large texts: encoded, decoded and joined in steps, so that other tasks run meanwhile.

Python encodes and decodes a MiB in up to several milliseconds. So texts are divided into parts of 256 Ki characters or bytes, and other
tasks run between them (`Pace`). The incremental codecs give the same result for the parts as for the whole. The few exceptions are not
divided. Joining many MiB of text is one call of Python's that cannot be divided, so a thread makes it.

`text.py` and `whole.py` call these functions. None of them raises Cancelled, except `joined_text`.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Any

from trio_aio._context.copying import joined
from trio_aio._context.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trio_aio._backends import Backend

__all__ = ("PART", "decoded", "encoded", "is_indivisible", "joined_text")

# Characters or bytes of a part.
PART = 1 << 18
# Characters that are joined by a thread, because that takes more than some milliseconds.
_FOR_A_THREAD = 1 << 22
# Texts that are encoded before we look at the time.
_TOGETHER = 256
# Their encoders treat each call as a text of its own.
_INDIVISIBLE = ("utf-7", "punycode", "idna")


def is_indivisible(encoding: str) -> bool:
    """Return whether texts of an encoding must be encoded and decoded as a whole."""
    return codecs.lookup(encoding).name in _INDIVISIBLE


def _split(text: str, encoding: str) -> Iterator[str]:
    """Yield the parts of a text that may be encoded one after the other."""
    if len(text) <= PART or is_indivisible(encoding):
        yield text
        return
    for start in range(0, len(text), PART):
        yield text[start : start + PART]


async def encoded(backend: Backend, encoder: Any, texts: Sequence[str], newline: str | None, encoding: str) -> bytes:
    """Return the texts, encoded one after the other. newline: what "\\n" becomes, if it is neither None nor "".

    UnicodeEncodeError: its `object` is the text that could not be encoded, as if it had not been divided.
    """
    pace = Pace(backend)
    replaces = newline not in (None, "", "\n")
    encode = encoder.encode
    parts: list[bytes] = []
    if all(len(text) <= PART for text in texts):
        for start in range(0, len(texts), _TOGETHER):
            some = texts[start : start + _TOGETHER]
            if replaces:
                some = [text.replace("\n", newline) for text in some]  # type: ignore[arg-type]
            # One by one, as single writes would be: in UTF-7, "a" and "b" need not be encoded as "ab" is.
            parts.append(b"".join(map(encode, some)))
            await pace.rest()
        return await joined(backend, parts)
    for text in texts:
        before = 0
        for part in _split(text, encoding):
            try:
                parts.append(encode(part.replace("\n", newline) if replaces else part))  # type: ignore[arg-type]
            except UnicodeEncodeError as error:
                if len(part) == len(text) or replaces:
                    raise
                raise UnicodeEncodeError(error.encoding, text, before + error.start, before + error.end, error.reason) from None
            before += len(part)
            await pace.rest()
    return await joined(backend, parts)


async def decoded(backend: Backend, decoder: Any, data: bytes, encoding: str) -> list[str]:
    """Return the parts of a text, of which `data` is the last of the bytes.

    UnicodeDecodeError: its `object` is all of the data, as if it had not been divided.
    """
    if len(data) <= PART or is_indivisible(encoding):
        return [decoder.decode(data, final=True)]
    pace = Pace(backend)
    parts = []
    for start in range(0, len(data), PART):
        part = data[start : start + PART]
        try:
            parts.append(decoder.decode(part, final=start + PART >= len(data)))
        except UnicodeDecodeError as error:
            # The decoder has put the bytes that it held back in front.
            before = start + len(part) - len(error.object)
            if before < 0:
                raise
            raise UnicodeDecodeError(error.encoding, data, before + error.start, before + error.end, error.reason) from None
        await pace.rest()
    return parts


async def joined_text(backend: Backend, parts: list[str]) -> str:
    """Return the parts as one text. Of a long one, Cancelled may be raised before it is joined."""
    if sum(map(len, parts)) < _FOR_A_THREAD:
        return "".join(parts)
    text: str = await backend.run_in_thread("".join, parts)
    return text
