"""Calls that read a file, by name: for what holds of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .files import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_aio import AsyncFile


async def all_of(chunks: Any) -> list[Any]:
    """Return all that an asynchronous iterator yields."""
    return [each async for each in chunks]


# Each reads a file of at least 8 blocks that is open in a binary mode.
READS: dict[str, Callable[[AsyncFile], Any]] = {
    "pread": lambda file: file.pread(BLOCK, BLOCK),
    "pread_of_a_part": lambda file: file.pread(100, 50),
    "preadinto": lambda file: file.preadinto(bytearray(BLOCK), 0),
    "preadv": lambda file: file.preadv([bytearray(BLOCK), bytearray(10)], 0),
    "read_ranges": lambda file: file.read_ranges([(0, 100), (BLOCK, BLOCK)]),
    "read_blocks": lambda file: file.read_blocks([0, 4 * BLOCK], BLOCK),
    "read": lambda file: file.read(100),
    "readline": lambda file: file.readline(),
    "chunks": lambda file: all_of(file.chunks(4 * BLOCK)),
}
