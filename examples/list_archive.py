"""List a zip or tar archive, and read each member: `zipfile` and `tarfile` want a synchronous file, and `blocking()` is one.

python examples/list_archive.py ARCHIVE
"""

from __future__ import annotations

import argparse
import io
import tarfile
import zipfile
import zlib

import trio

from trio_aio import open_aio


def checksums(raw: io.RawIOBase) -> dict[str, int]:
    """Return the CRC-32 of each member by its name. It runs in a thread, which may sleep."""
    buffered = io.BufferedReader(raw)
    found = {}
    if zipfile.is_zipfile(buffered):
        with zipfile.ZipFile(buffered) as archive:
            for name in archive.namelist():
                found[name] = zlib.crc32(archive.read(name))
    else:
        buffered.seek(0)
        with tarfile.open(fileobj=buffered) as archive_of_tape:
            for member in archive_of_tape:
                contents = archive_of_tape.extractfile(member)
                if contents is not None:
                    found[member.name] = zlib.crc32(contents.read())
    return found


async def main(path: str) -> None:
    """Print the members and their checksums, while the event loop runs on."""
    async with open_aio(path) as file:
        for name, checksum in (await trio.to_thread.run_sync(checksums, file.blocking())).items():
            print(f"{checksum:08x}  {name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive")
    trio.run(main, parser.parse_args().archive)
