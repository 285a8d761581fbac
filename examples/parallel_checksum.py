"""Print checksums of files as `sha256sum` does. Several files are read at once, and read ahead while threads compute the hashes.

python examples/parallel_checksum.py FILE [FILE ...]
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import trio

from trio_aio import open_aio

AT_ONCE = 8
CHUNK = 4 << 20  # bytes; hashing them takes milliseconds, so it is worth a thread


async def checksum(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    async with open_aio(path) as file:
        async for chunk in file.chunks(CHUNK, depth=2):
            await trio.to_thread.run_sync(digest.update, chunk)  # meanwhile the next chunks are read
    return digest.hexdigest()


async def checksums(paths: list[Path]) -> dict[Path, str]:
    """Return the checksums of files. At most AT_ONCE files are open at a time."""
    limit = trio.CapacityLimiter(AT_ONCE)
    sums: dict[Path, str] = {}

    async def one(path: Path) -> None:
        async with limit:
            sums[path] = await checksum(path)

    async with trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(one, path)
    return sums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="+")
    files: list[Path] = parser.parse_args().file
    sums = trio.run(checksums, files)
    for path in files:
        print(f"{sums[path]}  {path}")


if __name__ == "__main__":
    main()
