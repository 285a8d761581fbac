#!/bin/sh
# A download from Starlette that was compressed by its GZipMiddleware, and is resumed, is made of gzip bytes and plain bytes.
#
# Guess: the compressed response is another representation than the file. So GZipMiddleware weakens the ETag of FileResponse ("W/..."), as RFC 9110
#   (8.8.1, 8.8.3.3) asks and nginx does, or takes it and Accept-Ranges away. A client that resumes with If-Range then gets all of it again (200).
# Seen: Starlette 1.10.0. The compressed response has `Accept-Ranges: bytes` and the same strong ETag as the plain one. A request for the rest,
#   `Range: bytes=5000-` with `If-Range: <that ETag>` and the same Accept-Encoding, is answered 206 with bytes 5000 to the end of the plain file: the
#   middleware leaves responses with a Content-Range alone. What the client has then is neither the file nor its gzip. StaticFiles and FileResponse alike.
# Why it matters: every header says that the parts fit. The client notices when it unpacks the file, or never, if it stores the bytes as they came.
#
# Needs Python >= 3.10 and a package index for pip. Exit status 1 if the behaviour has changed.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet --disable-pip-version-check starlette==1.10.0 httpx==0.28.1

cat > "$folder/program.py" <<'PYTHON'
import asyncio
import sys
import zlib
from importlib.metadata import version

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

folder = sys.argv[1]
DATA = b"".join(b"line %06d of the file\n" % i for i in range(5000))
BROKEN_AT = 5000  # bytes that had come when the connection broke


async def fetch(client, url, headers):
    async with client.stream("GET", url, headers={"accept-encoding": "gzip", **headers}) as response:
        return response, b"".join([part async for part in response.aiter_raw()])


def unpacked(body):
    try:
        return zlib.decompress(body, wbits=31)
    except zlib.error:
        return None


async def main():
    with open(f"{folder}/file.txt", "wb") as file:
        file.write(DATA)
    app = Starlette(
        routes=[Route("/response", lambda request: FileResponse(f"{folder}/file.txt")), Mount("/static", StaticFiles(directory=folder))],
        middleware=[Middleware(GZipMiddleware)],
    )
    changed = False
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://example.org") as client:
        for url in ("/response", "/static/file.txt"):
            first, body = await fetch(client, url, {})
            tag = first.headers["etag"]
            rest, more = await fetch(client, url, {"range": f"bytes={BROKEN_AT}-", "if-range": tag})
            joined = body[:BROKEN_AT] + more
            print(url)
            print("  all: ", first.status_code, {name: first.headers.get(name) for name in ("content-encoding", "accept-ranges", "etag")}, len(body))
            print("  rest:", rest.status_code, {name: rest.headers.get(name) for name in ("content-encoding", "content-range", "etag")}, len(more))
            print("  joined: the file:", joined == DATA, " the file compressed:", unpacked(joined) == DATA)
            changed = changed or not (
                (first.status_code, first.headers.get("content-encoding"), first.headers.get("accept-ranges")) == (200, "gzip", "bytes")
                and unpacked(body) == DATA
                and not tag.startswith("W/")
                and (rest.status_code, rest.headers.get("content-encoding"), rest.headers["etag"]) == (206, None, tag)
                and more == DATA[BROKEN_AT:]
                and joined != DATA
                and unpacked(joined) is None
            )
    return changed


print("starlette", version("starlette"), "httpx", version("httpx"))
sys.exit(asyncio.run(main()))
PYTHON
"$folder/environment/bin/python" "$folder/program.py" "$folder"
