"""`AsyncTextFile`: text over an `AsyncFile`, as ``io.TextIOWrapper`` is over a buffered file.

How ``io.TextIOWrapper`` works. It reads chunks of 8 KiB, and passes each to an incremental decoder. Characters are returned from the
decoded chunk, and the cursor of the binary file is at the end of the chunk. `tell` must find where in the bytes the next character starts,
and the decoder's state there. It goes back to the snapshot, which is the decoder's state before the chunk and the chunk itself, and
decodes up to the character again. The cookie that it returns is one integer of five fields (`TextPosition`).

What we do about it: the same, with the decoders and encoders of `io` and `codecs`, so that a program sees the same characters and
positions. But a write is complete in the kernel when it returns. No data waits for a `flush` that might fail, or be forgotten.

A call holds the lock of the binary file (`_Transaction`), and calls its private methods. A call that fails restores the text in memory, the
decoder and the cursor. `open_aio` makes these files.
"""

from __future__ import annotations

import codecs
import io
import operator
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from trio_aio._arguments import checked_integer
from trio_aio._backends import Deferred, PutOff, async_resource, raise_if_cancelled
from trio_aio._context.pace import Pace
from trio_aio._errors import NotCopied
from trio_aio._files.coding import PART, decoded, encoded, is_indivisible, joined_text
from trio_aio._files.cursor import LARGEST
from trio_aio._files.lines import end_at, end_at_any, end_at_newline, gathered_text, last_end, string_io
from trio_aio._files.misuse import Misuse
from trio_aio._files.paced import PacedLines
from trio_aio._files.text_position import TextPosition, find_position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from typing_extensions import Self

    from trio_aio._backends import Backend
    from trio_aio._context.core import Core
    from trio_aio._context.lock import FairLock
    from trio_aio._files.binary import AsyncFile
    from trio_aio._files.blocking import BlockingFile
    from trio_aio._files.cursor import Cursor

__all__ = ("AsyncTextFile", "TextFormat", "text_format")

# Bytes that are decoded at once. It must be that of io.TextIOWrapper: a write after a read goes to the end of the chunk.
_CHUNK_SIZE = 8 << 10
# Encodings in which each ASCII byte is a character, whatever comes before it.
_KEEP_ASCII = ("utf-8", "ascii", "iso8859-1", "cp1252")
_NO_BYTES = io.BytesIO()
_NO_LINES: Iterator[str] = iter(())


class TextFormat(NamedTuple):
    """How a text file is encoded."""

    encoding: str
    errors: str
    newline: str | None

    def decoder(self) -> Any:
        """Return a new incremental decoder, which also translates line ends as `newline` requires."""
        decoder: Any = codecs.getincrementaldecoder(self.encoding)(self.errors)
        return decoder if self.newline else io.IncrementalNewlineDecoder(decoder, translate=self.newline is None)

    def encoder(self) -> Any:
        """Return a new incremental encoder."""
        return codecs.getincrementalencoder(self.encoding)(self.errors)


def text_format(
    encoding: str | None, errors: str | None, newline: str | None, *, readable: bool, writable: bool, stacklevel: int
) -> TextFormat:
    """Check the text arguments of ``open()``, and return them with the defaults filled in.

    stacklevel: the caller to blame in an EncodingWarning, counted as for ``warnings.warn``.
    LookupError for an unknown encoding or error handler; ValueError and TypeError as from ``open()``.
    """
    if encoding is None:
        encoding = io.text_encoding(None, stacklevel)  # type: ignore[attr-defined]  # mypy finds it from Python 3.11 on only
    below: Any = io.BytesIO()
    # A codec may be able to decode only, or to encode only.
    if not (readable and writable):
        below = io.BufferedReader(below) if readable else io.BufferedWriter(below)
    with io.TextIOWrapper(below, encoding, errors, newline) as model:
        assert model.errors is not None
        codecs.lookup_error(model.errors)
        return TextFormat(model.encoding, model.errors, newline)


@async_resource
class AsyncTextFile(PacedLines[str], Misuse, NotCopied):
    """A text file, made by `open_aio` with a mode that has no "b".

    Characters, line ends, byte order marks and positions are those of ``io.TextIOWrapper``, with one difference: `write` has no buffer. The
    text is complete in the kernel when `write` returns. So no error is reported later, by another call, and no text is lost if `aclose` is
    never reached. Join many small strings, or write them with one `writelines`.

    Every coroutine is a checkpoint. A call that raises Cancelled had no effect, as with `AsyncFile`. A call that fails does not move the
    cursor. Tasks that use the file at once, or the cursor of its `buffer`, are served one after the other, in
    the order of their calls.

    ``async for line in file`` is a checkpoint when it reads from the file, once in 8 to 64 KiB, and at the latest one millisecond after the
    last one. A line that is in memory costs no system call. The loop may be left at any line, and `tell` works at each.

    Errors: those of `AsyncFile`; UnicodeError.
    """

    def __init__(self, buffer: AsyncFile, format: TextFormat, mode: str, *, line_buffering: bool) -> None:
        PacedLines.__init__(self)
        self._buffer: AsyncFile = buffer
        self._format: TextFormat = format
        self._mode: str = mode
        self._line_buffering: bool = line_buffering
        self._decoder: Any = format.decoder() if buffer._readable else None
        self._encoder: Any = format.encoder() if buffer._writable else None
        # Of the binary file, whose cursor and turns it shares.
        self._core: Core = buffer._core
        self._backend: Backend = buffer._backend
        self._cursor: Cursor = buffer._cursor
        self._lock: FairLock = buffer._lock
        if self._cursor.position:
            self._set_encoder(beginning=False)
        # Text that is decoded, and still needed.
        self._text: str = ""
        # How many characters of `_text` were returned, without those that `_lines` has returned since.
        self._used: int = 0
        # What the lines are read from that `async for` returns next. Its position is the number of characters that they had.
        self._split: io.StringIO | io.BytesIO = _NO_BYTES
        self._keeps_ascii: bool = codecs.lookup(format.encoding).name in _KEEP_ASCII
        # Offset in the file where the bytes of `_text` end, if each character is one byte, and `_text` may reach beyond the chunk of the
        # next character. Otherwise -1.
        self._plain_end: int = -1
        # Version of the file when `_plain_end` was set.
        self._version: int = 0
        # The decoder's flags before `_text`, the bytes that `_text` was decoded from, and the offset in the file where these end.
        self._snapshot: tuple[int, bytes, int] | None = None
        # Bytes per character of `_text`.
        self._ratio: float = 0.0
        newline = format.newline
        ends = {None: end_at_newline, "\n": end_at_newline, "": end_at_any}
        self._line_end: Callable[[str, int], int] = ends.get(newline) or end_at(newline or "")

    # ---- what it is

    @property
    def buffer(self) -> AsyncFile:
        """The binary file underneath. Its cursor is after the bytes that have been read ahead."""
        return self._buffer

    def blocking(self, position: int = 0, *, allow_loop: bool = False) -> BlockingFile:
        """Return a synchronous binary file on the same open file; see `AsyncFile.blocking`. Put it into ``io.TextIOWrapper`` for text."""
        return self._buffer.blocking(position, allow_loop=allow_loop)

    @property
    def wrapped(self) -> BlockingFile:
        """That of `buffer`; see `AsyncFile.wrapped`."""
        return self._buffer.wrapped

    @property
    def encoding(self) -> str:
        """The name of the encoding."""
        return self._format.encoding

    @property
    def errors(self) -> str:
        """How bytes or characters that cannot be converted are handled: "strict", "replace" and so on."""
        return self._format.errors

    @property
    def newlines(self) -> str | tuple[str, ...] | None:
        """The line ends seen so far; None if there were none, or if `newline` is neither None nor ""."""
        newlines: str | tuple[str, ...] | None = getattr(self._decoder, "newlines", None)
        return newlines

    @property
    def line_buffering(self) -> bool:
        """Whether `buffering` was 1. It has no effect: there is no write buffer."""
        return self._line_buffering

    @property
    def write_through(self) -> bool:
        """True: there is no write buffer."""
        return True

    @property
    def name(self) -> Any:
        """The path as it was given, or the descriptor."""
        return self._buffer.name

    @property
    def mode(self) -> str:
        """The mode as it was given."""
        return self._mode

    @property
    def closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._buffer.closed

    @property
    def limiter(self) -> Any:
        """The limiter that `open_file` was called with, or None. It has no effect: no call of this file takes a thread."""
        return self._buffer.limiter

    def fileno(self) -> int:
        """Return the descriptor. It belongs to the file: do not close it. See `AsyncFile.fileno` for what changes with the first call."""
        if self._buffer._shared is None and self._lock.free:
            self._drop_ahead()
        return self._buffer.fileno()

    def readable(self) -> bool:
        """Return whether it was opened for reading."""
        return self._buffer.readable()

    def writable(self) -> bool:
        """Return whether it was opened for writing."""
        return self._buffer.writable()

    def seekable(self) -> bool:
        """Return True: regular files and block devices are seekable."""
        return self._buffer.seekable()

    def isatty(self) -> bool:
        """Return False."""
        return self._buffer.isatty()

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<trio_aio.{type(self).__name__} name={self.name!r} mode={self._mode!r} encoding={self.encoding!r}{state}>"

    # ---- reading

    async def read(self, size: int | None = -1) -> str:
        """Return `size` characters from the cursor, fewer only at the end of the file.

        size: characters; negative or None: everything up to the end of the file. Cancelled, OSError or UnicodeError: the cursor has not
        moved. UnsupportedOperation if not open for reading.
        """
        count = -1 if size is None else checked_integer(size, "size")
        async with _Transaction(self, reading=True):
            if count < 0:
                data = await self._buffer._read_all()
                backend = self._backend
                parts = [self._take(len(self._text)), *await decoded(backend, self._decoder, data, self.encoding)]
                self._drop_text()
                return await joined_text(backend, parts)
            if count <= self._remaining or self._cursor.available:
                await self._core.checkpoint()
            parts = [self._take(count)]
            missing = count - len(parts[0])
            while missing and await self._read_chunk(min(missing, PART)):
                parts.append(self._take(missing))
                missing -= len(parts[-1])
            return await joined_text(self._backend, parts)

    async def readline(self, size: int | None = -1) -> str:
        """Return a line with its end, at most `size` characters of it; "" at the end of the file. Only the last line may lack its end.

        size: characters; negative or None: the whole line. Otherwise as `read`.
        """
        limit = -1 if size is None else checked_integer(size, "size")
        async with _Transaction(self, reading=True, lines=True):
            if self._cursor.available or 0 <= limit <= self._remaining or self._line_end(self._text, self._consumed) > 0:
                await self._core.checkpoint()
            return await self._line(limit)

    async def readlines(self, hint: int | None = -1) -> list[str]:
        """Return the lines up to the end of the file, or until they have more than `hint` characters.

        hint: characters; 0, negative or None: no limit. Otherwise as `read`.
        """
        limit = -1 if hint is None else checked_integer(hint, "hint")
        lines: list[str] = []
        total = 0
        async with _Transaction(self, reading=True, lines=True):
            pace = Pace(self._backend)
            while (limit <= 0 or total <= limit) and (line := await self._line(-1)):
                lines.append(line)
                total += len(line)
                if len(lines) & 0x7F == 0:
                    await pace.rest()
            await self._core.checkpoint()
        return lines

    def __aiter__(self) -> Self:
        self._buffer._check_open()
        return self

    async def __anext__(self) -> str:
        for line in self._lines:
            return line
        if self._is_due():
            await self._core.checkpoint()
            self._note_checkpoint()
        for line in self._lines:
            return line
        line = (self._next_lines_in_memory() if self._lock.free else "") or await self._next_lines()
        if not line:
            raise StopAsyncIteration
        return line

    def _next_lines_in_memory(self) -> str:
        """Do what `_next_lines` does, in a sixth of the time, if the next chunk is in memory and has a line end. Otherwise return "".

        No other task has the lock. Of plain text, with one byte per character, it takes all chunks that are in memory at once.
        """
        cursor = self._cursor
        if self._version != cursor.version:
            self._drop_surplus()
        rest = self._text[self._consumed :]
        data = cursor.peek(LARGEST if self._keeps_ascii else _CHUNK_SIZE)
        if not data or self._line_end is not end_at_newline or "\n" in rest:
            return ""
        decoder = self._decoder
        state = decoder.getstate()
        plain = self._keeps_ascii and data.isascii() and b"\r" not in data and state == (b"", 0)
        if not plain:
            if len(data) < _CHUNK_SIZE:
                return ""  # a chunk reaches beyond what is in memory
            data = data[:_CHUNK_SIZE]
        try:
            text: str = decoder.decode(data)
        except UnicodeError:
            text = ""
        first, last = text.find("\n") + 1, text.rfind("\n") + 1
        if not first:
            decoder.setstate(state)
            return ""
        self._drop_text()
        cursor.move(cursor.position + len(data))
        self._text = text
        self._used = first
        self._plain_end = cursor.position if plain else -1
        self._version = cursor.version
        self._snapshot = (state[1], state[0] + data, cursor.position)
        self._ratio = len(data) / len(text)
        if plain:
            self._split = cursor.derived = io.BytesIO(data[first:last])
            self._hand_out(map(bytes.decode, self._split))
        else:
            self._split = string_io(text[first:last], "\n")
            self._hand_out(self._split)
        return rest + text[:first]

    def _drop_surplus(self) -> None:
        """Drop the text that ``io.TextIOWrapper`` would not have: what comes after the chunk of the next character.

        If the file has changed, drop all text that has not been returned, because it shows the file as it was before.
        """
        end, self._plain_end = self._plain_end, -1
        cursor = self._cursor
        # If the program has moved the cursor through `buffer`, the text in memory stays, as one long chunk.
        if end < 0 or cursor.position != end:
            return
        consumed = self._settle()
        keep = consumed if self._version != cursor.version else -(-consumed // _CHUNK_SIZE) * _CHUNK_SIZE
        cursor.move(end - max(len(self._text) - keep, 0))
        self._text = self._text[:keep]
        assert self._snapshot is not None
        self._snapshot = self._snapshot[0], self._snapshot[1][:keep], cursor.position

    async def _next_lines(self) -> str:
        """Return the next line, and let `_lines` be the whole lines after it that are in memory."""
        async with _Transaction(self, reading=True, lines=True):
            buffer = self._buffer
            self._core.check()
            if not self._cursor.available:
                await buffer._fill(line=True)
                self._note_checkpoint()
            line = self._next_lines_in_memory()
            if line:
                return line
            line = await self._line(-1)
            start = self._settle()
            end = last_end(self._text, self._format.newline)
            if end > start:
                newline = "\n" if self._format.newline is None else self._format.newline
                self._split = string_io(self._text[start:end], newline)
                self._hand_out(self._split)
            return line

    async def _line(self, limit: int) -> str:
        """Do what `readline` does, without a checkpoint if the line is in memory. The caller holds the lock."""
        start = self._consumed
        text = self._text
        end = self._line_end(text, start)
        if end > 0 and not 0 <= limit < end - start:
            return self._take(end - start)
        # As io.TextIOWrapper, it reads a chunk even if no character is wanted: a write that follows comes after that chunk.
        if 0 <= limit <= len(text) - start and len(text) > start:
            return self._take(limit)
        parts = [self._take(len(text))]
        length = len(parts[0])
        # A line end of two characters may be split between two chunks.
        tail = parts[0][-1:]
        while await self._read_chunk():
            text = self._text
            end = self._line_end(tail + text, 0) - len(tail)
            room = limit - length if limit >= 0 else len(text) + 1
            if end > 0 and end <= room:
                parts.append(self._take(end))
                break
            if room <= len(text):
                parts.append(self._take(room))
                break
            parts.append(self._take(len(text)))
            length += len(text)
            tail = text[-1:] or tail
        else:
            # At the end of the file, the position is that of the binary file: no snapshot is needed.
            self._drop_text()
        return "".join(parts)

    async def _read_chunk(self, wanted: int = 0) -> bool:
        """Decode the next chunk of the file, long enough for about `wanted` characters. Return False at the end of the file.

        The caller holds the lock.
        """
        decoder = self._decoder
        before, flags = decoder.getstate()
        data = await self._buffer._read_available(max(_CHUNK_SIZE, int(max(self._ratio, 1.0) * wanted)), line=not wanted)
        text = decoder.decode(data, final=not data)
        self._drop_text()
        self._text = text
        self._ratio = len(data) / len(text) if text else 0.0
        self._snapshot = (flags, before + data, self._cursor.position)
        return bool(data or text)

    # ---- the characters in memory

    @property
    def _consumed(self) -> int:
        """How many characters of `_text` have been returned."""
        return self._used + self._split.tell()

    @property
    def _remaining(self) -> int:
        """How many characters of `_text` have not been returned."""
        return len(self._text) - self._consumed

    def _settle(self) -> int:
        """Return how many characters of `_text` have been returned, and end `_lines`."""
        self._used += self._split.tell()
        self._split = _NO_BYTES
        self._source = self._lines = _NO_LINES
        return self._used

    def _take(self, count: int) -> str:
        """Return the next `count` characters of `_text`, or as many as it has."""
        start = self._settle()
        text = self._text[start : start + count]
        self._used += len(text)
        return text

    def _drop_text(self) -> None:
        self._settle()
        self._text = ""
        self._used = 0
        self._plain_end = -1
        self._snapshot = None

    def _drop_ahead(self) -> None:
        """Keep no text that was not returned, and move the cursor of `buffer` back to where it starts in the file.

        If a part of the characters that some bytes stand for was returned, the others stay in memory, and the cursor is behind those bytes.
        If the program has moved the cursor of `buffer`, it stays there, and the text in memory stays too, as with ``io.TextIOWrapper``.
        So does the text of a codec that cannot tell where it starts in the file.
        """
        self._drop_surplus()
        decoder, snapshot = self._decoder, self._snapshot
        cursor = self._cursor
        if decoder is None or snapshot is None or cursor.position != snapshot[2]:
            return
        end = cursor.position
        try:
            place = self._tell()
        except Exception:  # of the codec, or of the caller's error handler, too
            return
        if place.flags & 1 and isinstance(decoder, io.IncrementalNewlineDecoder):
            # It holds a "\r" back, because "\n" may follow.
            if place.to_skip == 1:
                # None does: the line has ended, and was returned.
                place = TextPosition(place.position, place.flags & ~1)
            elif not place.to_skip:
                # It was not returned.
                width = len("\r\r".encode(self.encoding)) - len("\r".encode(self.encoding))
                place = TextPosition(place.position - width, place.flags & ~1)
        at = place.position - (end - len(snapshot[1]))
        data = snapshot[1][at : at + place.to_feed]
        if place.is_beginning:
            decoder.reset()
        else:
            decoder.setstate((b"", place.flags))
        self._drop_text()
        cursor.move(place.position + len(data))
        self._snapshot = place.flags, data, cursor.position
        if place.to_skip:
            self._text = decoder.decode(data, final=place.need_end)
            self._used = place.to_skip

    # ---- writing

    async def write(self, text: str) -> int:
        """Write text at the cursor of `buffer`, or at the end of a file opened for appending, and return its length in characters.

        After a read, the cursor of `buffer` is after the bytes that were read ahead, as with ``io.TextIOWrapper``: call `seek` first.
        Cancelled before the write has started: no effect. Later: the result is returned, and Cancelled is raised at the next checkpoint.
        OSError: the cursor has not moved, so the call can be repeated; ``characters_written`` is the number of bytes that were written,
        and may end inside a character. Of a file opened for appending these bytes stay at the end: call `truncate` before you repeat it.
        UnicodeEncodeError: nothing was written.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be str, not {type(text).__name__}: decode it first, or open the file in binary mode")
        async with _Transaction(self, writing=True):
            await self._write([text])
            return len(text)

    async def writelines(self, lines: Iterable[str]) -> None:
        """Write strings one after the other, many in one request. Otherwise as `write`.

        An error in a line after the first 2**20 characters: ``characters_written`` is the number of bytes that were written before, also of
        UnicodeEncodeError, and of what the iterable raises. The cursor has not moved, as with `write`.

        Cancelled before the first 2**20 characters have been written: no effect. Later: all of them are written, and Cancelled is raised at
        the next checkpoint. asyncio's own `Task.cancel` stops it between two such parts instead, with the cursor after the last part known
        to be written.
        """
        async with _Transaction(self, writing=True) as transaction:
            pace = Pace(self._backend)
            left = iter(lines)
            joins = not is_indivisible(self.encoding)
            texts = await gathered_text(left, pace, joins=joins)
            if not texts:
                await self._core.checkpoint()
                return
            written = await self._write(texts)
            transaction.commit()
            try:
                with self._backend.shielded():
                    while texts := await gathered_text(left, pace, joins=joins):
                        written += await self._write(texts)
            except Exception as error:
                error.characters_written = written + getattr(error, "characters_written", 0)  # type: ignore[attr-defined]
                raise

    async def _write(self, texts: list[str]) -> int:
        """Write texts one after the other, and return how many bytes they took. The caller holds the lock."""
        encoder = self._encoder
        state = encoder.getstate()
        try:
            data = await encoded(self._backend, encoder, texts, self._format.newline, self.encoding)
            await self._buffer._write(data)
        except BaseException:
            encoder.setstate(state)
            raise
        self._drop_text()
        if self._decoder is not None:
            self._decoder.reset()
        return len(data)

    async def flush(self) -> None:
        """Check that the file is open. Writes are complete in the kernel when they return; for the disk use ``buffer.fsync``.

        What was read ahead from an adopted descriptor is given back; see `AsyncFile.flush`.
        """
        if self._buffer._shared is None:
            await self._buffer.flush()
            return
        async with _Transaction(self):
            await self._buffer._tell()

    async def truncate(self, size: int | None = None) -> int:
        """Set the size of the file in bytes, by default to the cursor of `buffer`, and return it. The cursor does not move. ftruncate(2).

        Cancellation and errors as `AsyncFile.truncate`.
        """
        self._buffer._check_writable()
        self._core.check()
        if self._buffer._shared is not None and self._lock.free:
            self._drop_ahead()
        else:
            self._drop_surplus()
        return await self._buffer.truncate(size)

    # ---- the cursor

    async def tell(self) -> int:
        """Return a cookie for the position of the next character, for `seek`. It is no number of bytes or characters, unless it is 0."""
        async with _Transaction(self):
            await self._buffer._tell()
            return self._tell().pack()

    def _tell(self) -> TextPosition:
        position = self._cursor.position
        if self._snapshot is None:
            return TextPosition(position)
        flags, data, _ = self._snapshot
        position -= len(data)
        to_skip = self._consumed
        if not to_skip:
            return TextPosition(position, flags)
        decoder = self._decoder
        state = decoder.getstate()
        try:
            return find_position(decoder, position, flags, data, to_skip, self._ratio)
        finally:
            decoder.setstate(state)

    async def seek(self, cookie: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position that `tell` returned, or to the start (0), and return its cookie.

        whence: ``os.SEEK_SET``; with a `cookie` of 0 also ``os.SEEK_CUR`` (drop the bytes that were read ahead) or ``os.SEEK_END``.
        Cancelled or OSError: the cursor has not moved. ``io.UnsupportedOperation`` for another `cookie` with them; ValueError for a
        negative one, or another `whence`.
        """
        self._buffer._check_open()
        cookie, whence = operator.index(cookie), operator.index(whence)
        if whence in (os.SEEK_CUR, os.SEEK_END) and cookie:
            raise io.UnsupportedOperation(f"can't do nonzero {'cur' if whence == os.SEEK_CUR else 'end'}-relative seeks")
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
            raise ValueError(f"whence must be os.SEEK_SET, SEEK_CUR or SEEK_END, not {whence}")
        if cookie < 0:
            raise ValueError(f"cookie must be 0 or what `tell` returned, not {cookie}")
        buffer = self._buffer
        async with _Transaction(self):
            if whence == os.SEEK_END:
                position = await buffer._seek(0, os.SEEK_END)
                self._drop_text()
                if self._decoder is not None:
                    self._decoder.reset()
                self._set_encoder(beginning=not position)
                return position
            if buffer._shared is not None and whence == os.SEEK_CUR:
                await buffer._tell()
            place = self._tell() if whence == os.SEEK_CUR else TextPosition.unpack(cookie)
            # A program that goes back wants the bytes that the file has now.
            self._cursor.forget()
            await self._restore(place)
            return place.pack()

    async def _restore(self, place: TextPosition) -> None:
        """Move the binary file, the decoder and the encoder to a position. OSError if the file has no such position any more."""
        buffer, decoder = self._buffer, self._decoder
        await buffer._seek(place.position, os.SEEK_SET)
        data = await buffer._read(place.to_feed) if place.to_skip and place.to_feed else b""
        self._drop_text()
        if decoder is not None:
            if place.is_beginning:
                decoder.reset()
            else:
                decoder.setstate((b"", place.flags))
            self._snapshot = (place.flags, data, self._cursor.position)
            if place.to_skip:
                self._text = decoder.decode(data, final=place.need_end)
                if len(self._text) < place.to_skip:
                    raise OSError("can't restore logical file position")
                self._used = place.to_skip
        self._set_encoder(beginning=place.is_beginning)

    def _set_encoder(self, *, beginning: bool) -> None:
        """Let the encoder start with its byte order mark, if it has one, at the beginning of the file, and without it elsewhere."""
        if self._encoder is None:
            return
        if beginning:
            self._encoder.reset()
        else:
            self._encoder.setstate(0)

    # ---- its end

    async def aclose(self) -> None:
        """Close the file, also in a cancelled scope, and then raise Cancelled; see `AsyncFile.aclose`."""
        await self._close()
        await raise_if_cancelled()

    async def _close(self) -> None:
        """Do what `aclose` does, and do not raise Cancelled."""
        if self._buffer._shared is not None and self._lock.free:
            self._drop_ahead()
        try:
            await self._buffer._close()
        finally:
            if self._buffer.closed:  # not where the call was refused
                self._drop_text()

    async def __aenter__(self) -> Self:
        self._buffer._check_open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        with Deferred(self._backend, value):
            await (self.aclose() if value is None else self._close())


class _Transaction:
    """Holds the lock during one call. If the call fails, it restores the text in memory, the decoder and the cursor.

    A write that failed half way restores all this too, so it can be repeated.

    If others may use the descriptor too, no text is kept beyond the call, and what was read ahead is given back. lines: the call returns
    lines, and may keep what was read ahead for the next one, if the descriptor was adopted.
    """

    def __init__(self, file: AsyncTextFile, *, reading: bool = False, writing: bool = False, lines: bool = False) -> None:
        self._file: AsyncTextFile = file
        self._lines: bool = lines
        buffer = file._buffer
        if reading:
            buffer._check_readable()
        elif writing:
            buffer._check_writable()
        else:
            buffer._check_open()
        self._saved: Any = None
        self._committed: bool = False

    def commit(self) -> None:
        """Note that a part of the call has taken effect: asyncio's own Task.cancel may end it there, and restores nothing."""
        self._committed = True

    @property
    def _keeps_none(self) -> bool:
        shared = self._file._buffer._shared
        return shared is not None and not (self._lines and shared.keeps_ahead)

    async def __aenter__(self) -> _Transaction:
        file = self._file
        buffer = file._buffer
        if not file._lock.acquire():
            await file._lock.wait()
            if buffer.closed:
                file._lock.release()
                buffer._check_open()
        try:
            if self._keeps_none:
                file._drop_ahead()
            else:
                file._drop_surplus()
            decoder = file._decoder
            state = decoder.getstate() if decoder is not None else None
            encoder = file._encoder.getstate() if file._encoder is not None else None
            self._saved = file._text, file._settle(), file._snapshot, file._ratio, state, encoder, file._cursor.settle()
        except BaseException:
            file._lock.release()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        file = self._file
        buffer = file._buffer
        stops_behind_a_part = self._committed and file._backend.is_native(value)
        if value is not None and not stops_behind_a_part:
            self._restore()
        try:
            if self._keeps_none and not buffer.closed:
                with Deferred(file._backend, value) as put_off:
                    loses_result = value is None and not self._committed
                    try:
                        await self._give_back(put_off)
                    except BaseException:
                        if loses_result:
                            self._restore()
                        raise
                    if put_off.due and loses_result:
                        # asyncio's own Task.cancel: the result is lost, so the cursor stays where it was.
                        self._restore()
                        await self._give_back(put_off)
        finally:
            file._lock.release()

    def _restore(self) -> None:
        file = self._file
        file._drop_text()
        file._text, file._used, file._snapshot, file._ratio, state, encoder, position = self._saved
        if file._decoder is not None:
            file._decoder.setstate(state)
        if file._encoder is not None:
            file._encoder.setstate(encoder)
        file._cursor.move(position)

    async def _give_back(self, put_off: PutOff) -> None:
        shared = self._file._buffer._shared
        assert shared is not None
        self._file._drop_ahead()
        with put_off:
            await shared.give_back()
