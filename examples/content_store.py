"""A store of contents by their digest. What `put` has returned survives a power failure; equal contents are kept once.

python examples/content_store.py STORE FILE...
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import trio

import trio_aio


class ContentStore:
    """Files that are named by the SHA-256 of their contents, in 256 folders. Any number of tasks and processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self._root: Path = root

    def path(self, digest: str) -> Path:
        """Return where the contents of a digest are."""
        return self._root / digest[:2] / digest[2:]

    async def put(self, data: bytes) -> str:
        """Keep contents, and return their digest. They are durable when this returns."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        await trio_aio.os.makedirs(path.parent, exist_ok=True)
        try:
            # No reader sees a part of the file: it gets its name when it is whole.
            await trio_aio.write_bytes(path, data, atomic=True, exclusive=True, durable=True)
        except FileExistsError:
            # Another task has written it. It may not be on the disk yet.
            async with trio_aio.open_aio(path) as file:
                await file.fsync()
            await trio_aio.os.sync_directory(path.parent)
        # The name of the folder, which this call or another one has made.
        await trio_aio.os.sync_directory(self._root)
        return digest

    async def get(self, digest: str) -> bytes:
        """Return contents. KeyError if there are none; ValueError if the disk has changed them."""
        try:
            data = await trio_aio.read_bytes(self.path(digest))
        except FileNotFoundError:
            raise KeyError(digest) from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"the contents of {digest} are damaged")
        return data


async def main(root: Path, paths: list[Path]) -> None:
    """Keep files, all at once, and print their digests."""
    store = ContentStore(root)
    digests: dict[Path, str] = {}

    async def keep(path: Path) -> None:
        digests[path] = await store.put(await trio_aio.read_bytes(path))

    await trio_aio.os.makedirs(root, exist_ok=True)
    # The name of a new store has to be durable too.
    await trio_aio.os.sync_directory(root.parent)
    async with trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(keep, path)
    for path in paths:
        print(f"{digests[path]}  {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    arguments = parser.parse_args()
    trio.run(main, arguments.store, arguments.files)
