"""`FileResponse` and `StaticFiles` for Starlette and FastAPI, with the arguments and the answers of Starlette's.

Starlette's send every step of a file to a thread: stat, open, each 64 KiB, close. Ours open the file before the response starts, read
ahead, and read several ranges of a request together. docs/integrations.md lists all differences. Two change what a client gets:

- A set of ranges of which some can be served is answered with those (RFC 9110, 14.1.2). Starlette answers 416.
- A file that is shorter than was promised ends the response with RuntimeError, so the server closes the connection. Starlette's ends the
  body as if all were well, unless several ranges were asked for. Of a file that grows, what was promised is sent.

Users return them from their endpoints, on asyncio and on trio.
"""

from __future__ import annotations

import io
import secrets
import stat
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import anyio

import trio_aio
from trio_aio.integrations import missing

try:
    import starlette.responses
    import starlette.staticfiles
    from starlette.datastructures import Headers, MutableHeaders
    from starlette.responses import PlainTextResponse
except ImportError as _error:
    raise missing("starlette", _error) from _error

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

__all__ = ("FileResponse", "StaticFiles")

# Chunks that are read ahead of the client; short ranges with as many bytes are read together.
DEPTH = 4


class _BadRange(Exception):
    """A Range header that is answered with an error."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response: Response = response


class FileResponse(starlette.responses.FileResponse):
    """Send a file. As `starlette.responses.FileResponse`, read by trio_aio.

    RuntimeError if the file is missing or no regular file, before the response starts, and if it is shorter than was promised. chunk_size:
    bytes of the file in a message of the body, at most; four times as many are read ahead.
    """

    chunk_size: int = 1 << 18
    # A request for more is answered with the whole file. Older versions of Starlette have no such limit.
    max_ranges: int = 100
    # What `set_stat_headers` has added.
    _file_headers: Mapping[str, str] = MappingProxyType({})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # The refusal of a websocket, which has a body too.
            await super().__call__(scope, receive, send)
            return
        headers, method = Headers(scope=scope), scope["method"].upper()
        by_path = "http.response.pathsend" in scope.get("extensions", {})
        if method == "HEAD" or (by_path and "range" not in headers):
            served = await self._respond(scope, receive, send, None)
        else:
            async with await self._opened() as file:
                served = await self._respond(scope, receive, send, file)
        if served and self.background is not None:
            await self.background()

    async def _opened(self) -> trio_aio.AsyncFile:
        """Return the open file. RuntimeError as Starlette's, if there is none."""
        try:
            return await trio_aio.open_aio(self.path)
        except FileNotFoundError:
            raise RuntimeError(f"File at path {self.path} does not exist.") from None
        except (IsADirectoryError, io.UnsupportedOperation):
            raise RuntimeError(f"File at path {self.path} is not a file.") from None

    async def _described(self, file: trio_aio.AsyncFile | None) -> os.stat_result:
        """Return what the response promises of the file, and set the headers that say so."""
        if self.stat_result is not None:
            return self.stat_result
        try:
            described = await trio_aio.os.stat(self.path) if file is None else await file.stat()
        except FileNotFoundError:
            raise RuntimeError(f"File at path {self.path} does not exist.") from None
        if not stat.S_ISREG(described.st_mode):
            raise RuntimeError(f"File at path {self.path} is not a file.")
        self._set_headers(described)
        return described

    def _set_headers(self, described: os.stat_result) -> None:
        """Set the headers that describe the file. A response that is sent again has those of the file as it is now."""
        removed = [name for name in self._file_headers if name not in self.headers]  # by a subclass, or the code that made the response
        for name, value in self._file_headers.items():
            if self.headers.get(name) == value:
                del self.headers[name]
        before = {*self.headers.keys()}
        self.set_stat_headers(described)
        self._file_headers = {name: self.headers[name] for name in {*self.headers.keys()} - before}
        for name in removed:
            del self.headers[name]

    async def _respond(self, scope: Scope, receive: Receive, send: Send, file: trio_aio.AsyncFile | None) -> bool:
        """Send the response. Return False if that was an error, about ranges."""
        size = (await self._described(file)).st_size
        try:
            ranges = self._ranges(scope, size)
        except _BadRange as error:
            await error.response(scope, receive, send)
            return False
        headers, parts, end = self._body(ranges, size)
        await send({"type": "http.response.start", "status": 206 if ranges else self.status_code, "headers": headers.raw})
        if scope["method"].upper() == "HEAD":
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        elif not ranges and "http.response.pathsend" in scope.get("extensions", {}):
            await send({"type": "http.response.pathsend", "path": str(self.path)})
        else:
            assert file is not None
            body = _Body(self, file, send)
            # Since 2.4, `send` raises an OSError when the client has gone.
            if tuple(map(int, scope.get("asgi", {}).get("spec_version", "2.0").split("."))) >= (2, 4):
                await body.send_parts(parts, end)
            else:
                await _until_disconnected(receive, lambda: body.send_parts(parts, end))
        return True

    def _ranges(self, scope: Scope, size: int) -> list[tuple[int, int]]:
        """Return the ranges (start, end) that the answer has; none for the whole file. _BadRange for a request that cannot be served."""
        headers = Headers(scope=scope)
        wanted, condition = headers.get("range"), headers.get("if-range")
        if wanted is None or self.status_code != 200 or scope["method"].upper() not in ("GET", "HEAD"):
            return []
        # A weak tag does not say that the bytes are the same.
        if condition is not None and (
            condition.startswith("W/") or condition not in (self.headers.get("last-modified"), self.headers.get("etag"))
        ):
            return []
        unit, equals, listed = wanted.partition("=")
        if not equals:
            raise _BadRange(PlainTextResponse("Malformed range header.", status_code=400))
        if unit.strip().lower() != "bytes":
            raise _BadRange(PlainTextResponse("Only support bytes range", status_code=400))
        if listed.count(",") >= self.max_ranges:
            return []
        numbers = _numbers(listed)
        if not numbers:
            raise _BadRange(PlainTextResponse("Range header: range must be requested", status_code=400))
        served = [(start, end) for start, end in (_limits(first, last, size) for first, last in numbers) if start < size]
        if not served:
            raise _BadRange(PlainTextResponse(status_code=416, headers={"Content-Range": f"bytes */{size}"}))
        if any(first and last and _number(last) < _number(first) for first, last in numbers):
            raise _BadRange(PlainTextResponse("Range header: start must be less than end", status_code=400))
        return _merged(served)

    def _body(self, ranges: list[tuple[int, int]], size: int) -> tuple[MutableHeaders, list[tuple[bytes, int, int, bytes]], bytes]:
        """Return the headers; the parts of the body: what comes before a range, the range, and what comes after it; and the end."""
        headers = MutableHeaders(raw=list(self.raw_headers))
        if not ranges:
            return headers, [(b"", 0, size, b"")], b""
        if len(ranges) == 1:
            [(start, end)] = ranges
            headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
            headers["content-length"] = str(end - start)
            return headers, [(b"", start, end, b"")], b""
        boundary = secrets.token_hex(13)
        about = f"--{boundary}\r\nContent-Type: {self.headers['content-type']}\r\nContent-Range: bytes "
        parts = [(f"{about}{start}-{end - 1}/{size}\r\n\r\n".encode("latin-1"), start, end, b"\r\n") for start, end in ranges]
        last = f"--{boundary}--".encode("latin-1")
        headers["content-type"] = f"multipart/byteranges; boundary={boundary}"
        headers["content-length"] = str(sum(len(before) + end - start + len(after) for before, start, end, after in parts) + len(last))
        return headers, parts, last


class _Body:
    """The body of a response: it knows the last message, and that nothing may be missing."""

    def __init__(self, response: FileResponse, file: trio_aio.AsyncFile, send: Send) -> None:
        self._response: FileResponse = response
        self._file: trio_aio.AsyncFile = file
        self._send: Send = send

    async def send_parts(self, parts: list[tuple[bytes, int, int, bytes]], end: bytes) -> None:
        """Send the parts and the end. Short parts are read together, long ones in chunks."""
        while parts:
            chunk, together, count = self._response.chunk_size, 0, 0
            for _, start, stop, _ in parts:
                together += stop - start
                if stop - start > chunk or together > chunk * DEPTH:
                    break
                count += 1
            if count:
                await self._send_short(parts[:count], b"" if parts[count:] else end, more=len(parts) > count)
            else:
                await self._send_long(parts[0], b"" if parts[1:] else end, more=len(parts) > 1)
            parts = parts[count or 1 :]

    async def _send_short(self, parts: list[tuple[bytes, int, int, bytes]], end: bytes, more: bool) -> None:
        if len(parts) == 1:
            [(_, start, stop, _)] = parts
            found = [await self._file.pread(stop - start, start)]
        else:
            found = await self._file.read_ranges([(start, stop - start) for _, start, stop, _ in parts], max_gap=4096)
        for index, ((before, start, stop, after), data) in enumerate(zip(parts, found, strict=True)):
            self._check(len(data), stop - start)
            last = index == len(parts) - 1
            await self._message(before, data, after + end if last else after, more=more or not last)

    async def _send_long(self, part: tuple[bytes, int, int, bytes], end: bytes, more: bool) -> None:
        before, start, stop, after = part
        at = start
        async for chunk in self._file.chunks(self._response.chunk_size, start=start, stop=stop, depth=DEPTH):
            at += len(chunk)
            await self._message(before, chunk, after + end if at == stop else b"", more=more or at < stop)
            before = b""
        self._check(at - start, stop - start)

    async def _message(self, before: bytes, data: bytes, after: bytes, *, more: bool) -> None:
        body = b"".join((before, data, after)) if before or after else data
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    def _check(self, sent: int, promised: int) -> None:
        if sent < promised:
            raise RuntimeError(f"File at path {self._response.path} is shorter than expected.")


async def _until_disconnected(receive: Receive, send_body: Callable[[], Awaitable[None]]) -> None:
    """Send a body, until it is sent or the client has gone. Raise what stops either."""
    errors: list[Exception] = []

    async def watch() -> None:
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except Exception as error:
            errors.append(error)
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        try:
            await send_body()
        except Exception as error:
            errors.append(error)
        tasks.cancel_scope.cancel()
    if errors:
        raise errors[0]


def _numbers(listed: str) -> list[tuple[str, str]]:
    """Return first and last byte of each range, as they are written; what is no range is left out."""
    found = []
    for part in listed.split(","):
        # No regular expression: a header of many spaces would take one the square of their number.
        first, hyphen, last = (text.strip() for text in part.partition("-"))
        digits = first + last
        if hyphen and digits.isascii() and digits.isdigit():
            found.append((first, last))
    return found


def _limits(first: str, last: str, size: int) -> tuple[int, int]:
    """Return (start, end) of a range in a file of `size` bytes."""
    if not first:
        return max(size - _number(last), 0), size
    return _number(first), min(_number(last) + 1, size) if last else size


def _number(digits: str) -> int:
    """Return a number, at most 2**63. ``int`` refuses more than 4300 digits, and no file is so long."""
    digits = digits.lstrip("0")
    return min(int(digits or "0"), 1 << 63) if len(digits) < 20 else 1 << 63


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges in the order of the file, those that overlap or touch as one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


class StaticFiles(starlette.staticfiles.StaticFiles):
    """Serve the files of a directory. As `starlette.staticfiles.StaticFiles`, with our `FileResponse`."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return the response for a path in the directory. HTTPException: 404, 405, 401."""
        response = await super().get_response(path, scope)
        if type(response) is starlette.responses.FileResponse:  # 404.html
            return _static(response.path, response.stat_result, response.status_code)
        return response

    def file_response(self, full_path: Any, stat_result: os.stat_result, scope: Scope, status_code: int = 200) -> Response:
        """Return the response with a file, or the one that says it has not changed."""
        response = _static(full_path, stat_result, status_code)
        if self.is_not_modified(response.headers, Headers(scope=scope)):
            return starlette.staticfiles.NotModifiedResponse(response.headers)
        return response


def _static(path: Any, described: os.stat_result | None, status_code: int) -> FileResponse:
    """Return a response that has the headers of a file already. If another file is opened, it has those of that one."""
    response = FileResponse(path, status_code=status_code)
    if described is not None:
        response._set_headers(described)
    return response
