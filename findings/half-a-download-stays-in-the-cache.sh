#!/bin/sh
# A download into fsspec's filecache or simplecache that breaks off leaves its first part there, and that part is the file from then on.
#
# Guess: a download that fails raises and is not cached: it goes to a temporary file, or what came is removed. When the server is well again, the
#   next read downloads the file.
# Seen: fsspec 2026.9.0, an HTTP server that closes the connection after half of a body. The first read raises ClientPayloadError. Each later one, by
#   `open` or `cat`, returns that half, without an error. Another process that uses the same folder gets the half from simplecache too. From
#   filecache it gets all, for the list of cached files was not written.
# Why it matters: the first attempt fails loudly, and the second one, which every retry is, succeeds with half of the data. Formats without a length
#   or an end mark (CSV, JSON lines, raw arrays) are read as if they were whole.
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

CONTENT = b"".join(b"%07d\n" % number for number in range(100_000))


class Server(BaseHTTPRequestHandler):
    """Serve CONTENT; while `is_broken`, only half of it, and not what Content-Length promises."""

    is_broken = False

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if Server.is_broken else CONTENT)

    def log_message(self, *_):
        pass


def read(filesystem, how, url):
    """Return, in words, what a read of the whole file returns; or the name of the error."""
    try:
        if how == "cat":
            got = filesystem.cat(url)
        else:
            with filesystem.open(url) as file:
                got = file.read()
    except Exception as error:
        return type(error).__name__
    if got == CONTENT:
        return "all"
    return "the first half" if got == CONTENT[: len(CONTENT) // 2] else "other bytes"


def main(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/file"
    print("fsspec", fsspec.__version__)
    changed = False
    for kind in ("filecache", "simplecache"):
        for how in ("open", "cat"):
            cache = f"{folder}/{kind}-{how}"
            filesystem = fsspec.filesystem(kind, target_protocol="http", cache_storage=cache)
            Server.is_broken = True
            seen = [read(filesystem, how, url)]
            Server.is_broken = False
            seen += [read(filesystem, how, url), read(filesystem, how, url)]
            program = [sys.executable, __file__, kind, cache, how, url]
            seen.append(subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
            print(f"{kind}, {how}: {seen[0]}; the server is well again: {seen[1]}, {seen[2]}; another process: {seen[3]}")
            elsewhere = "all" if kind == "filecache" else "the first half"
            changed = changed or seen != ["ClientPayloadError", "the first half", "the first half", elsewhere]
    return changed


if len(sys.argv) == 2:
    sys.exit(main(sys.argv[1]))
_, kind, cache, how, url = sys.argv
print(read(fsspec.filesystem(kind, target_protocol="http", cache_storage=cache), how, url))
PYTHON
"$folder/environment/bin/python" "$folder/program.py" "$folder"
