"""A cache of large blocks. The newest are in memory, the others in a file that bypasses the page cache: what is spilled takes no memory.

python examples/spilling_cache.py FILE [--blocks N] [--in-memory N]
"""

from __future__ import annotations

import argparse
import zlib
from collections import OrderedDict

import trio

from trio_aio import AsyncFile, aligned_buffer, open_aio

BLOCK = 256 << 10


class SpillingCache:
    """Blocks of `BLOCK` bytes by key. Only one task at a time may use it."""

    def __init__(self, file: AsyncFile, in_memory: int) -> None:
        self._file: AsyncFile = file
        self._in_memory: int = in_memory
        self._newest: OrderedDict[str, memoryview] = OrderedDict()
        self._offsets: dict[str, int] = {}
        self._free: list[int] = []
        self._end: int = 0

    def __len__(self) -> int:
        return len(self._newest) + len(self._offsets)

    async def put(self, key: str, block: bytes) -> None:
        """Keep a block. The oldest one in memory goes to the disk if there are too many."""
        if len(block) != BLOCK:
            raise ValueError(f"block must have {BLOCK} bytes, not {len(block)}")
        # Aligned memory goes to the disk without a copy.
        memory = aligned_buffer(BLOCK)
        memory[:] = block
        self._forget(key)
        self._newest[key] = memory
        await self._spill()

    async def get(self, key: str) -> memoryview:
        """Return a block; it is the newest one now. KeyError."""
        if key in self._newest:
            self._newest.move_to_end(key)
            return self._newest[key]
        memory = aligned_buffer(BLOCK)
        if await self._file.preadinto(memory, self._offsets[key]) != BLOCK:
            raise EOFError(f"the file of the cache is too short for {key!r}")
        self._forget(key)
        self._newest[key] = memory
        await self._spill()
        return memory

    def _forget(self, key: str) -> None:
        self._newest.pop(key, None)
        if key in self._offsets:
            self._free.append(self._offsets.pop(key))

    async def _spill(self) -> None:
        while len(self._newest) > self._in_memory:
            key, memory = next(iter(self._newest.items()))
            if self._free:
                offset = self._free.pop()
            else:
                offset, self._end = self._end, self._end + BLOCK
            try:
                await self._file.pwrite(memory, offset)
            except BaseException:
                # Cancelled, or the disk is full: the block stays in memory, and the place is free.
                self._free.append(offset)
                raise
            del self._newest[key]
            self._offsets[key] = offset


async def main(path: str, blocks: int, in_memory: int) -> None:
    """Put blocks in, and read them back."""
    async with open_aio(path, "w+b", direct=True) as file:
        cache = SpillingCache(file, in_memory)
        sums = {}
        for number in range(blocks):
            block = number.to_bytes(4, "little") * (BLOCK // 4)
            sums[f"{number}"] = zlib.crc32(block)
            await cache.put(f"{number}", block)
        wrong = [key for key, checksum in sums.items() if zlib.crc32(await cache.get(key)) != checksum]
        print(f"{len(cache)} blocks, {await file.size() // BLOCK} places on the disk, {len(wrong)} wrong")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--blocks", type=int, default=64)
    parser.add_argument("--in-memory", type=int, default=8)
    arguments = parser.parse_args()
    trio.run(main, arguments.file, arguments.blocks, arguments.in_memory)
