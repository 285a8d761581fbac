#!/bin/sh
# The last 0 bytes of a value: zarr's FsspecStore returns all of them.
#
# Guess: `store.get(key, prototype, SuffixByteRequest(n))` returns the last n bytes, and all of a value that has fewer, as a suffix range of HTTP
#   does (RFC 9110, 14.1.2). For 0 it returns no bytes, or refuses. All stores of zarr do the same.
# Seen: zarr 3.4.2 with fsspec 2026.9.0. Of a value of 100 bytes, SuffixByteRequest(0) is nothing with LocalStore and MemoryStore, and all 100 bytes
#   with FsspecStore. For 10, 100 and 150 all stores agree. (In zarr 3.1.6, the newest for Python 3.11, MemoryStore returned 50 bytes from the middle
#   for 150.)
# Why it matters: a program that computes how much of an index is missing gets 0 when nothing is, and then fetches the whole object from the network. No
#   test with files or memory finds it.
#
# Needs Python >= 3.12 and a package index for pip. Exit status 1 if the behaviour has changed.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet --disable-pip-version-check zarr==3.4.2 fsspec==2026.9.0

cat > "$folder/program.py" <<'PYTHON'
import asyncio
import sys

import fsspec
import zarr
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from zarr.abc.store import SuffixByteRequest
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ZipStore

VALUE = bytes(range(100))
folder = sys.argv[1]
expected = {  # the bytes that come for a suffix of 10, 100, 150 and 0
    "LocalStore": (VALUE[90:], VALUE, VALUE, b""),
    "ZipStore": (VALUE[90:], VALUE, VALUE),  # the last 0 bytes depend on the version of Python's zipfile
    "MemoryStore": (VALUE[90:], VALUE, VALUE, b""),
    "FsspecStore": (VALUE[90:], VALUE, VALUE, VALUE),
}


async def main():
    changed = False
    stores = {
        "LocalStore": LocalStore(f"{folder}/local"),
        "ZipStore": ZipStore(f"{folder}/values.zip", mode="w"),
        "MemoryStore": MemoryStore(),
        "FsspecStore": FsspecStore(AsyncFileSystemWrapper(fsspec.filesystem("memory")), path="/values"),
    }
    for name, store in stores.items():
        if not store._is_open:
            await store._open()
        await store.set("key", cpu.Buffer.from_bytes(VALUE))
        for suffix, wanted in zip((10, 100, 150, 0), expected[name]):
            got = (await store.get("key", default_buffer_prototype(), SuffixByteRequest(suffix))).to_bytes()
            print(f"{name:12} the last {suffix:3} of 100 bytes: {len(got)} bytes", f"from offset {got[0]}" if got else "")
            changed = changed or got != wanted
        store.close()
    return changed


print("zarr", zarr.__version__, "fsspec", fsspec.__version__)
sys.exit(asyncio.run(main()))
PYTHON
"$folder/environment/bin/python" "$folder/program.py" "$folder"
