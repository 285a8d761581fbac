"""`AsyncTextFile`: text over an `AsyncFile`, as ``io.TextIOWrapper`` is over a buffered file.

How ``io.TextIOWrapper`` works. It reads chunks of 8 KiB and gives each to an incremental decoder; characters are given from the decoded
chunk, and the file's own cursor is behind the chunk. `tell` has to say where in the bytes the next character begins, and in which state
the decoder is there: it goes back to the snapshot, which is the decoder's state before the chunk and the chunk itself, and decodes up
to the character again. The cookie that it gives is one integer of five fields.

What we do about it: the same, with the decoders and encoders of `io` and `codecs`, so that a program sees the same characters
and positions. But a write is with the kernel when it returns, and nothing waits for a `flush` that might fail, or be forgotten.
"""

from __future__ import annotations

import codecs
import io
import operator
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from trio_aio._arguments import checked_integer
from trio_aio._backends import async_resource
from trio_aio._files.cursor import LARGEST
from trio_aio._files.lines import end_at, end_at_any, end_at_newline, gathered_text, last_end, string_io
from trio_aio._files.text_position import TextPosition, find_position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import NoReturn, SupportsIndex

    from typing_extensions import Self

    from trio_aio._files.binary import AsyncFile

__all__ = ("AsyncTextFile", "TextFormat", "text_format")

_CHUNK = 8 << 10  # bytes: io.TextIOWrapper's; a write after a read goes behind the chunk
_KEEP_ASCII = ("utf-8", "ascii", "iso8859-1", "cp1252")  # each byte of ASCII is a character, whatever comes before it
_NO_BYTES = io.BytesIO()
_NO_LINES: Iterator[str] = iter(())


class TextFormat(NamedTuple):
    """How a text file is coded."""

    encoding: str
    errors: str
    newline: str | None

    def decoder(self) -> Any:
        """Give a fresh incremental decoder."""
        decoder: Any = codecs.getincrementaldecoder(self.encoding)(self.errors)
        return decoder if self.newline else io.IncrementalNewlineDecoder(decoder, translate=self.newline is None)

    def encoder(self) -> Any:
        """Give a fresh incremental encoder."""
        return codecs.getincrementalencoder(self.encoding)(self.errors)


def text_format(
    encoding: str | None, errors: str | None, newline: str | None, *, readable: bool, writable: bool, stacklevel: int
) -> TextFormat:
    """Check what ``open()`` takes for text, and fill in what was not given.

    LookupError for an encoding or error handler that does not exist; ValueError, TypeError as ``open()``. EncodingWarning likewise, for
    a caller, counted as for ``warnings.warn``.
    """
    if encoding is None:
        encoding = io.text_encoding(None, stacklevel)  # type: ignore[attr-defined]  # mypy finds it from Python 3.11 on only
    below: Any = io.BytesIO()
    if not (readable and writable):  # a codec may have only one of the ways
        below = io.BufferedReader(below) if readable else io.BufferedWriter(below)
    with io.TextIOWrapper(below, encoding, errors, newline) as model:
        assert model.errors is not None
        codecs.lookup_error(model.errors)
        return TextFormat(model.encoding, model.errors, newline)


@async_resource
class AsyncTextFile:
    """A text file, made by `open_aio` with a mode that has no "b".

    Characters, line ends, byte order marks and positions are ``io.TextIOWrapper``'s, with one difference: `write` does not
    gather. What it was given is with the kernel when it returns, so no error comes later, at another call, and nothing is
    lost if `aclose` is never reached. Many small pieces are better written by one `writelines`, or joined.

    Every coroutine is a checkpoint, and one that raises Cancelled had no effect, as with `AsyncFile`; an error leaves the file where it
    was too, unless a part was written. Calls of several tasks take turns, in order, those of `buffer`'s cursor among them.

    ``async for line in file`` is a checkpoint only where it reads on, once in 8 to 64 KiB: a line that is in memory comes without a
    system call and without letting other tasks run. It may be left at any line, and `tell` works at each.

    Errors: those of `AsyncFile`; UnicodeError.
    """

    def __init__(self, buffer: AsyncFile, format: TextFormat, mode: str, *, line_buffering: bool) -> None:
        self._buffer: AsyncFile = buffer
        self._format: TextFormat = format
        self._mode: str = mode
        self._line_buffering: bool = line_buffering
        self._decoder: Any = format.decoder() if buffer._readable else None
        self._encoder: Any = format.encoder() if buffer._writable else None
        if buffer._cursor.position:
            self._set_encoder(beginning=False)
        self._text: str = ""  # decoded and not thrown away yet
        self._used: int = 0  # characters of it that were given, without what `_lines` has given since
        self._lines: Iterator[str] = _NO_LINES  # whole lines, which `async for` gives next
        self._split: io.StringIO | io.BytesIO = _NO_BYTES  # where they come from: it knows how many characters they were
        self._keeps_ascii: bool = codecs.lookup(format.encoding).name in _KEEP_ASCII
        # Where the bytes of `_text` end, if it may go beyond the chunk that the next character is in, and is a byte for each character
        self._plain_end: int = -1
        self._version: int = 0  # of the file, at that
        self._snapshot: tuple[int, bytes] | None = None  # the decoder's flags before `_text`, and the bytes that `_text` was
        self._ratio: float = 0.0  # bytes for a character
        newline = format.newline
        ends = {None: end_at_newline, "\n": end_at_newline, "": end_at_any}
        self._line_end: Callable[[str, int], int] = ends.get(newline) or end_at(newline or "")

    # ---- what it is

    @property
    def buffer(self) -> AsyncFile:
        """The binary file below. Its cursor is behind what has been read ahead."""
        return self._buffer

    @property
    def encoding(self) -> str:
        """The encoding's name."""
        return self._format.encoding

    @property
    def errors(self) -> str:
        """What is done about what cannot be coded: "strict", "replace" and so on."""
        return self._format.errors

    @property
    def newlines(self) -> str | tuple[str, ...] | None:
        """The line ends seen so far, if any are recognised (`newline` None or "")."""
        newlines: str | tuple[str, ...] | None = getattr(self._decoder, "newlines", None)
        return newlines

    @property
    def line_buffering(self) -> bool:
        """Whether `buffering` was 1. Of no effect: writes are never held back."""
        return self._line_buffering

    @property
    def write_through(self) -> bool:
        """True: writes are never held back."""
        return True

    @property
    def name(self) -> Any:
        """The path as it was given, or the descriptor."""
        return self._buffer.name

    @property
    def mode(self) -> str:
        """The mode as it was given."""
        return self._mode

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(f"cannot copy or pickle {type(self).__name__!r} object: it owns a descriptor")

    @property
    def closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._buffer.closed

    def fileno(self) -> int:
        """Give the descriptor. It belongs to the file: do not close it."""
        return self._buffer.fileno()

    def readable(self) -> bool:
        """Whether it was opened for reading."""
        return self._buffer.readable()

    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self._buffer.writable()

    def seekable(self) -> bool:
        """Give True: regular files and block devices are."""
        return self._buffer.seekable()

    def isatty(self) -> bool:
        """Give False."""
        return self._buffer.isatty()

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<trio_aio.{type(self).__name__} name={self.name!r} mode={self._mode!r} encoding={self.encoding!r}{state}>"

    # ---- reading

    async def read(self, size: int | None = -1) -> str:
        """Read `size` characters, fewer only at the end of the file; all that is left for -1 or None."""
        count = -1 if size is None else checked_integer(size, "size")
        async with _Turn(self, reading=True):
            if count < 0:
                data = await self._buffer._read_all()
                text: str = self._take(len(self._text)) + self._decoder.decode(data, final=True)
                self._drop_text()
                return text
            if count <= self._left or self._buffer._cursor.available:
                await self._buffer._context._checkpoint()
            text = self._take(count)
            while len(text) < count and await self._read_chunk(count - len(text)):
                text += self._take(count - len(text))
            return text

    async def readline(self, size: int | None = -1) -> str:
        """Read a line with its end, or `size` characters of it; "" at the end of the file. The last line may lack its end."""
        limit = -1 if size is None else checked_integer(size, "size")
        async with _Turn(self, reading=True):
            if self._buffer._cursor.available or 0 <= limit <= self._left or self._line_end(self._text, self._given) > 0:
                await self._buffer._context._checkpoint()
            return await self._line(limit)

    async def readlines(self, hint: int | None = -1) -> list[str]:
        """Read the lines up to the end of the file; with a positive `hint` no more of them once they have more characters than that."""
        limit = -1 if hint is None else checked_integer(hint, "hint")
        lines: list[str] = []
        total = 0
        async with _Turn(self, reading=True):
            while (limit <= 0 or total <= limit) and (line := await self._line(-1)):
                lines.append(line)
                total += len(line)
                if len(lines) & 0xFFF == 0:
                    await self._buffer._context._checkpoint()
            await self._buffer._context._checkpoint()
        return lines

    def __aiter__(self) -> Self:
        self._buffer._check_open()
        return self

    async def __anext__(self) -> str:
        for line in self._lines:
            return line
        line = (self._next_lines_in_memory() if self._buffer._lock.free else "") or await self._next_lines()
        if not line:
            raise StopAsyncIteration
        return line

    def _next_lines_in_memory(self) -> str:
        """Do what `_next_lines` does if the next chunk is in memory and easy, in a sixth of the time; else "". Nobody else has the turn.

        Of plain text, of which a character is a byte, it takes all chunks that are in memory at once.
        """
        ahead = self._buffer._cursor
        if self._version != ahead.version:
            self._put_back()
        rest = self._text[self._given :]
        data = ahead.peek(LARGEST if self._keeps_ascii else _CHUNK)
        if not data or self._line_end is not end_at_newline or "\n" in rest:
            return ""
        decoder = self._decoder
        state = decoder.getstate()
        plain = self._keeps_ascii and data.isascii() and b"\r" not in data and state == (b"", 0)
        if not plain:
            data = data[:_CHUNK]
        try:
            text: str = decoder.decode(data)
        except UnicodeError:
            text = ""
        first, last = text.find("\n") + 1, text.rfind("\n") + 1
        if not first:
            decoder.setstate(state)
            return ""
        self._drop_text()
        ahead.move(ahead.position + len(data))
        self._text = text
        self._used = first
        self._plain_end = ahead.position if plain else -1
        self._version = ahead.version
        self._snapshot = (state[1], state[0] + data)
        self._ratio = len(data) / len(text)
        if plain:
            self._split = ahead.derived = io.BytesIO(data[first:last])
            self._lines = map(bytes.decode, self._split)
        else:
            self._lines = self._split = string_io(text[first:last], "\n")
        return rest + text[:first]

    def _put_back(self) -> None:
        """Have no more of the text in memory than ``io.TextIOWrapper`` would: to the end of the chunk that the next character is in.

        Nothing that the file had before it was changed.
        """
        end, self._plain_end = self._plain_end, -1
        ahead = self._buffer._cursor
        if end < 0 or ahead.position != end:  # somebody has moved it by `buffer`: what is in memory stays, as one long chunk
            return
        given = self._settle()
        keep = given if self._version != ahead.version else -(-given // _CHUNK) * _CHUNK
        ahead.move(end - max(len(self._text) - keep, 0))
        self._text = self._text[:keep]
        assert self._snapshot is not None
        self._snapshot = self._snapshot[0], self._snapshot[1][:keep]

    async def _next_lines(self) -> str:
        """Give the next line, and make `_lines` those behind it that are in memory."""
        async with _Turn(self, reading=True):
            buffer = self._buffer
            buffer._context._check()
            if not buffer._cursor.available:
                await buffer._fill()
            line = self._next_lines_in_memory()
            if line:
                return line
            line = await self._line(-1)
            start = self._settle()
            end = last_end(self._text, self._format.newline)
            if end > start:
                newline = "\n" if self._format.newline is None else self._format.newline
                self._lines = self._split = string_io(self._text[start:end], newline)
            return line

    async def _line(self, limit: int) -> str:
        """Do what `readline` does; no checkpoint if the line is in memory. The turn is ours."""
        start = self._given
        text = self._text
        end = self._line_end(text, start)
        if end > 0 and not 0 <= limit < end - start:
            return self._take(end - start)
        if 0 <= limit <= len(text) - start:
            return self._take(limit)
        parts = [self._take(len(text))]
        length = len(parts[0])
        # An end of two characters may lie in two chunks.
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
            self._drop_text()  # at the end of the file the place is the file's
        return "".join(parts)

    async def _read_chunk(self, wanted: int = 0) -> bool:
        """Decode the next chunk of the file, big enough for `wanted` characters; give whether there was one. The turn is ours."""
        decoder = self._decoder
        before, flags = decoder.getstate()
        data = await self._buffer._read_available(max(_CHUNK, int(max(self._ratio, 1.0) * wanted)))
        text = decoder.decode(data, final=not data)
        self._drop_text()
        self._text = text
        self._ratio = len(data) / len(text) if text else 0.0
        self._snapshot = (flags, before + data)
        return bool(data or text)

    # ---- the characters in memory

    @property
    def _given(self) -> int:
        return self._used + self._split.tell()

    @property
    def _left(self) -> int:
        return len(self._text) - self._given

    def _settle(self) -> int:
        """Give how much of `_text` was given, and end the lines that were split."""
        self._used += self._split.tell()
        self._split = _NO_BYTES
        self._lines = _NO_LINES
        return self._used

    def _take(self, count: int) -> str:
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

    # ---- writing

    async def write(self, text: str) -> int:
        """Write text where the cursor of `buffer` is, or at the end of a file opened for appending; give its length in characters.

        After a read that is behind what was read ahead, as with ``io.TextIOWrapper``: `seek` first. OSError: ``characters_written``
        says how many bytes were written.
        """
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        async with _Turn(self, writing=True):
            await self._write([text])
            return len(text)

    async def writelines(self, lines: Iterable[str]) -> None:
        """Write strings one behind the other, as `write`; many in one request.

        Cancelled: nothing was written. Once the first MiB is written, cancellation has to wait for the end; but asyncio's native
        cancellation stops it between two MiB, with the cursor behind the last that it knows of.
        """
        async with _Turn(self, writing=True) as turn:
            pieces = gathered_text(lines)
            piece = next(pieces, None)
            if piece is None:
                await self._buffer._context._checkpoint()
                return
            await self._write(piece)
            turn.commit()
            with self._buffer._backend.shielded():
                for piece in pieces:
                    await self._write(piece)

    async def _write(self, texts: list[str]) -> None:
        newline = self._format.newline
        if newline and newline != "\n":
            texts = [text.replace("\n", newline) for text in texts]
        encoder = self._encoder
        state = encoder.getstate()
        try:
            # One by one: "a" and "b" need not be coded as "ab" is (UTF-7).
            data = encoder.encode(texts[0]) if len(texts) == 1 else b"".join(map(encoder.encode, texts))
            await self._buffer._write(data)
        except BaseException as error:
            if getattr(error, "characters_written", 0):
                self._drop_text()
            else:
                encoder.setstate(state)
            raise
        self._drop_text()
        if self._decoder is not None:
            self._decoder.reset()

    async def flush(self) -> None:
        """Do nothing but check: writes are with the kernel when they return. For the disk there is ``buffer.fsync``."""
        await self._buffer.flush()

    async def truncate(self, size: int | None = None) -> int:
        """Make the file `size` bytes long (default: up to the cursor of `buffer`), and give that. The cursor stays. ftruncate(2)."""
        self._buffer._check_writable()
        self._buffer._context._check()
        self._put_back()
        return await self._buffer.truncate(size)

    # ---- the cursor

    async def tell(self) -> int:
        """Give a cookie for the place of the next character, for `seek`: not a number of bytes or characters, unless it is 0."""
        async with _Turn(self):
            await self._buffer._context._checkpoint()
            return self._tell().pack()

    def _tell(self) -> TextPosition:
        position = self._buffer._cursor.position
        if self._snapshot is None:
            return TextPosition(position)
        flags, data = self._snapshot
        position -= len(data)
        to_skip = self._given
        if not to_skip:
            return TextPosition(position, flags)
        decoder = self._decoder
        state = decoder.getstate()
        try:
            return find_position(decoder, position, flags, data, to_skip, self._ratio)
        finally:
            decoder.setstate(state)

    async def seek(self, cookie: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place that `tell` gave, to the beginning (0), or, with an offset of 0, to where it is (SEEK_CUR) or the end (SEEK_END).

        Gives the cookie of the place. ``io.UnsupportedOperation`` for other offsets.
        """
        self._buffer._check_open()
        cookie, whence = operator.index(cookie), operator.index(whence)
        if whence in (os.SEEK_CUR, os.SEEK_END) and cookie:
            raise io.UnsupportedOperation(f"can't do nonzero {'cur' if whence == os.SEEK_CUR else 'end'}-relative seeks")
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        if cookie < 0:
            raise ValueError(f"negative seek position {cookie}")
        buffer = self._buffer
        async with _Turn(self):
            if whence == os.SEEK_END:
                position = await buffer._seek(0, os.SEEK_END)
                self._drop_text()
                if self._decoder is not None:
                    self._decoder.reset()
                self._set_encoder(beginning=not position)
                return position
            place = self._tell() if whence == os.SEEK_CUR else TextPosition.unpack(cookie)
            buffer._cursor.forget()  # who goes back wants to see what is there now
            await self._go(place)
            return place.pack()

    async def _go(self, place: TextPosition) -> None:
        buffer, decoder = self._buffer, self._decoder
        await buffer._seek(place.position, os.SEEK_SET)
        data = await buffer._read(place.to_feed) if place.to_skip and place.to_feed else b""
        self._drop_text()
        if decoder is not None:
            if place.is_beginning:
                decoder.reset()
            else:
                decoder.setstate((b"", place.flags))
            self._snapshot = (place.flags, data)
            if place.to_skip:
                self._text = decoder.decode(data, final=place.need_end)
                if len(self._text) < place.to_skip:
                    raise OSError("can't restore logical file position")
                self._used = place.to_skip
        self._set_encoder(beginning=place.is_beginning)

    def _set_encoder(self, *, beginning: bool) -> None:
        """Have the encoder write a byte order mark next, if it has one; or, not at the beginning, none."""
        if self._encoder is None:
            return
        if beginning:
            self._encoder.reset()
        else:
            self._encoder.setstate(0)

    # ---- its end

    async def aclose(self) -> None:
        """Close the file; see `AsyncFile.aclose`."""
        self._drop_text()
        await self._buffer.aclose()

    async def __aenter__(self) -> Self:
        self._buffer._check_open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        await self.aclose()


class _Turn:
    """The turn of one call. When it fails, the text and the cursor are put back where they were."""

    def __init__(self, file: AsyncTextFile, *, reading: bool = False, writing: bool = False) -> None:
        self._file: AsyncTextFile = file
        buffer = file._buffer
        if reading:
            buffer._check_readable()
        elif writing:
            buffer._check_writable()
        else:
            buffer._check_open()
        self._saved: Any = None

    def commit(self) -> None:
        """Put nothing back from now on: a part of the call is done."""
        self._saved = None

    async def __aenter__(self) -> _Turn:
        file = self._file
        buffer = file._buffer
        if not buffer._lock.acquire():
            await buffer._lock.wait()
            if buffer._closed:
                buffer._lock.release()
                buffer._check_open()
        file._put_back()
        decoder = file._decoder
        state = decoder.getstate() if decoder is not None else None
        self._saved = file._text, file._settle(), file._snapshot, file._ratio, state, buffer._cursor.settle()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        file = self._file
        buffer = file._buffer
        if value is not None and self._saved is not None and not getattr(value, "characters_written", 0):
            file._drop_text()
            file._text, file._used, file._snapshot, file._ratio, state, position = self._saved
            if file._decoder is not None:
                file._decoder.setstate(state)
            buffer._cursor.move(position)
        buffer._lock.release()
