"""Keep pages of a file for clients. A page that was acknowledged survives a crash, and a damaged page is an error, never data.

python examples/page_server.py serve FILE [--port PORT] [--direct]
python examples/page_server.py put NUMBER TEXT [--port PORT]
python examples/page_server.py get NUMBER [--port PORT]
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import functools
import os
import struct
import sys
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

import trio_aio
from trio_aio import AsyncFile, aligned_buffer, open_aio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PAGE = 4096  # bytes of a page on the disk
HEADER = struct.Struct("<IQ")  # the checksum of all that follows, and the number of the page
DATA = PAGE - HEADER.size  # bytes of a page for the client
MOST = (1 << 63) // PAGE - 1  # the last page of the longest file

REQUEST = struct.Struct("<cQ")  # GET, or PUT with DATA bytes after it; the number of the page
GET, PUT = b"g", b"p"
# The answer is one byte, and DATA bytes after it if a page was read.
OK, MISSING, DAMAGED, FAILED = b"+", b"0", b"!", b"-"


class DamagedPageError(Exception):
    """A page is not what was written: its write was torn, or the disk has changed it or put it elsewhere."""


class PageFile:
    """Pages of `DATA` bytes by number. Any number of tasks may use it at once."""

    def __init__(self, file: AsyncFile) -> None:
        self._file: AsyncFile = file
        # The kernel does not keep a read from seeing half of a write, so a page is read or written, not both. Pages share locks.
        self._locks: list[trio.Lock] = [trio.Lock() for _ in range(256)]

    async def get(self, number: int) -> bytes:
        """Return a page. KeyError if it was never written; DamagedPageError."""
        async with self._locks[number % len(self._locks)]:
            page = await self._file.pread(PAGE, number * PAGE)
        if not page.strip(b"\0"):  # past the end of the file, or in a hole
            raise KeyError(number)
        # The number is part of it: a page that the disk wrote in the wrong place has a good checksum, but another number.
        if len(page) < PAGE or HEADER.unpack_from(page) != (zlib.crc32(page[4:]), number):
            raise DamagedPageError(f"page {number} is damaged")
        return page[HEADER.size :]

    async def put(self, number: int, data: bytes) -> None:
        """Write a page of `DATA` bytes. Not durable before `commit`."""
        if len(data) != DATA:
            raise ValueError(f"data must have {DATA} bytes, not {len(data)}")
        page = aligned_buffer(PAGE)  # with direct=True it goes to the disk without a copy
        HEADER.pack_into(page, 0, 0, number)
        page[HEADER.size :] = data
        struct.pack_into("<I", page, 0, zlib.crc32(page[4:]))
        async with self._locks[number % len(self._locks)]:
            await self._file.pwrite(page, number * PAGE)

    async def commit(self) -> None:
        """Make all pages durable that were put. Calls of many clients share one sync, which starts after the last of their writes."""
        await self._file.fdatasync()


async def open_pages(path: str, *, direct: bool = False, context: trio_aio.AIOContext | None = None) -> AsyncFile:
    """Open a page file, or make one. OSError with EWOULDBLOCK if another server has it."""

    def opener(path: Any, flags: int) -> int:  # runs in a thread
        fd = os.open(path, flags | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(fd)
            raise
        return fd

    file = await open_aio(path, "r+b", direct=direct, opener=opener, context=context)
    try:
        # The name of a new file has to be durable too.
        await trio_aio.os.sync_directory(os.path.dirname(path) or ".")
    except BaseException:
        await file.aclose()
        raise
    return file


# ---- server


async def answer(pages: PageFile, kind: bytes, number: int, data: bytes) -> bytes:
    """Serve a request, and return the answer. A sync that fails raises OSError."""
    try:
        if kind == GET:
            return OK + await pages.get(number)
        await pages.put(number, data)
    except KeyError:
        return MISSING
    except DamagedPageError:
        return DAMAGED
    except OSError as error:
        print(f"page {number}: {error}", file=sys.stderr)
        return FAILED
    # After a failed sync the kernel may drop what it could not write, and the next sync may succeed: no later answer could be trusted.
    # So this error is not caught. It ends the server, and every client that waits learns that its page was not acknowledged.
    await pages.commit()
    return OK


async def serve_client(pages: PageFile, stream: trio.abc.Stream) -> None:
    """Answer the requests of a client one after another. Many clients are served at the same time."""
    receive = Receiver(stream)
    try:
        while head := await receive(REQUEST.size, may_end=True):
            kind, number = REQUEST.unpack(head)
            if kind not in (GET, PUT) or number > MOST:
                return  # this is no client of ours
            data = await receive(DATA) if kind == PUT else b""
            await stream.send_all(await answer(pages, kind, number, data))
    except trio.BrokenResourceError:
        pass  # the client has gone; that is its right


class Receiver:
    """Receives as many bytes as are wanted."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream: trio.abc.Stream = stream
        self._rest: bytearray = bytearray()

    async def __call__(self, size: int, *, may_end: bool = False) -> bytes:
        """Return `size` bytes, or none at the end if it `may_end` here. BrokenResourceError if the stream ends too early."""
        while len(self._rest) < size:
            received = await self._stream.receive_some()
            if not received:
                if may_end and not self._rest:
                    return b""
                raise trio.BrokenResourceError("the connection ended in the middle of a message")
            self._rest += received
        data = bytes(self._rest[:size])
        del self._rest[:size]
        return data


async def serve(path: str, port: int, *, direct: bool) -> None:
    """Serve a page file on localhost. Port 0 takes a free one. OSError if the disk fails."""
    async with await open_pages(path, direct=direct) as file:
        handler = functools.partial(serve_client, PageFile(file))
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(functools.partial(trio.serve_tcp, handler, port, host="127.0.0.1"))
            print(f"{path} is served on port {listeners[0].socket.getsockname()[1]}", flush=True)


# ---- client


class Client:
    """A connection to the server. One task at a time may use it; after an error or a cancellation, connect again."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream: trio.abc.Stream = stream
        self._receive: Receiver = Receiver(stream)

    async def get(self, number: int) -> bytes:
        """Return a page. KeyError if it was never written; DamagedPageError; OSError."""
        await self._stream.send_all(REQUEST.pack(GET, number))
        await self._result(number)
        return await self._receive(DATA)

    async def put(self, number: int, data: bytes) -> None:
        """Write a page, filled up with zeros. It is durable when this returns. If this raises, it may be old, new or damaged."""
        if len(data) > DATA:
            raise ValueError(f"data must have at most {DATA} bytes, not {len(data)}")
        await self._stream.send_all(REQUEST.pack(PUT, number) + data.ljust(DATA, b"\0"))
        await self._result(number)

    async def _result(self, number: int) -> None:
        result = await self._receive(1)
        if result == MISSING:
            raise KeyError(number)
        if result == DAMAGED:
            raise DamagedPageError(f"page {number} is damaged")
        if result != OK:
            raise OSError(errno.EIO, f"the server could not read or write page {number}")


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[Client]:
    """Yield a client of the server on localhost. OSError if there is none."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        yield Client(stream)


async def put(port: int, number: int, text: str) -> None:
    """Write a text into a page."""
    async with connect(port) as client:
        await client.put(number, text.encode())


async def get(port: int, number: int) -> None:
    """Print the text of a page."""
    async with connect(port) as client:
        print((await client.get(number)).rstrip(b"\0").decode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("serve", "put", "get"):
        one = commands.add_parser(command)
        if command == "serve":
            one.add_argument("file")
            one.add_argument("--direct", action="store_true", help="bypass the page cache (O_DIRECT)")
        else:
            one.add_argument("number", type=int)
        if command == "put":
            one.add_argument("text")
        one.add_argument("--port", type=int, default=7070)
    arguments = parser.parse_args()
    if arguments.command == "serve":
        trio.run(functools.partial(serve, arguments.file, arguments.port, direct=arguments.direct))
    elif arguments.command == "put":
        trio.run(put, arguments.port, arguments.number, arguments.text)
    else:
        trio.run(get, arguments.port, arguments.number)
