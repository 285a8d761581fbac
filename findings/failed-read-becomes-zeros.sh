#!/bin/sh
# A read through fsspec's blockcache, or its cache "mmap", that failed once returns zeros from then on, without an error.
#
# Guess: a read that fails raises, and caches nothing. The next read of those bytes asks the server again, whatever the cache.
# Seen: fsspec 2026.9.0, an HTTP server that answers one request with 503. Five caches do as guessed. MMapCache notes blocks as cached before it asks
#   for them. The failed read raises (through the blockcache filesystem it is a TypeError, "a bytes-like object is required": the error is stored as
#   if it were the bytes). Each later read of those blocks returns zeros, of the right length. The blockcache filesystem writes its list of blocks
#   when the file is closed, so the next process gets zeros too, from a server that is well.
# Why it matters: programs try again after an error of the network, and then get zeros for data. The cache's folder stays wrong until someone
#   deletes it.
#
# Needs Python >= 3.10 and a package index for pip. Exit status 1 if the behaviour has changed.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet --disable-pip-version-check fsspec==2026.9.0 aiohttp==3.14.5

cat > "$folder/program.py" <<'PYTHON'
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec

CONTENT = bytes(range(1, 251)) * 40  # no zeros
BLOCK = 1000


class Server(BaseHTTPRequestHandler):
    """Serve CONTENT, and ranges of it; answer `fails` requests for ranges with 503."""

    fails = 0

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_GET(self):
        asked = self.headers.get("Range")
        start, end = 0, len(CONTENT)
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last) + 1, end)
        if asked and Server.fails:
            Server.fails -= 1
            self.send_error(503)
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(end - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(CONTENT)}")
        self.end_headers()
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *_):
        pass


def describe(got):
    """Return what was read, in words."""
    if got == CONTENT[:2500]:
        return "the content"
    return f"{got.count(0)} zeros and {len(got) - got.count(0)} other bytes"


def read(filesystem, url, **options):
    """Read the first 2500 bytes, and return what came; or the name of the error."""
    with filesystem.open(url, block_size=BLOCK, **options) as file:
        seen = []
        for _ in range(2):
            try:
                file.seek(0)
                seen.append(describe(file.read(2500)))
            except Exception as error:
                seen.append(type(error).__name__)
    return seen


def main(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/file"
    print("fsspec", fsspec.__version__)
    changed = False
    http = fsspec.filesystem("http")
    zeros = "2500 zeros and 0 other bytes"
    for cache in ("readahead", "bytes", "blockcache", "background", "first", "mmap"):
        Server.fails = 1
        seen = read(http, url, cache_type=cache)
        print(f"cache_type={cache!r}: {seen[0]}, then {seen[1]}")
        changed = changed or seen != ["ClientResponseError", zeros if cache == "mmap" else "the content"]

    blocks = {"fs": http, "cache_storage": folder + "/cache"}
    Server.fails = 1
    seen = read(fsspec.filesystem("blockcache", **blocks), url)
    print(f"blockcache::http: {seen[0]}, then {seen[1]}")
    changed = changed or seen != ["TypeError", zeros]
    other = subprocess.run([sys.executable, __file__, folder, url], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    print(f"blockcache::http in another process: {other}")
    return changed or other != f"{zeros}, then {zeros}"


if len(sys.argv) == 2:
    sys.exit(main(sys.argv[1]))
again = fsspec.filesystem("blockcache", target_protocol="http", cache_storage=sys.argv[1] + "/cache")
print(", then ".join(read(again, sys.argv[2])))
PYTHON
"$folder/environment/bin/python" "$folder/program.py" "$folder"
